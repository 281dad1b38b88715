// The part of DLPack's binary interface (version 1) that is needed to look at a tensor without owning it.
//
// Layouts as in the DLPack specification, https://dmlc.github.io/dlpack/latest/c_api.html; names in our style.
#pragma once

#include <cstdint>

namespace reprise::dlpack {

inline constexpr uint32_t kMajorVersion = 1;
inline constexpr const char* kExchangeApiName = "dlpack_exchange_api";
inline constexpr const char* kExchangeApiAttribute = "__dlpack_c_exchange_api__";

inline constexpr int32_t kCpu = 1;
inline constexpr int32_t kCuda = 2;
inline constexpr int32_t kCudaHost = 3;

struct Device {
  int32_t type;
  int32_t index;
};

struct DataType {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;

  friend bool operator==(const DataType&, const DataType&) = default;
};

struct Tensor {
  void* data;
  Device device;
  int32_t ndim;
  DataType type;
  int64_t* shape;
  int64_t* strides;  // in elements; nullptr: rows back to back
  uint64_t byte_offset;
};

struct Version {
  uint32_t major;
  uint32_t minor;
};

// A framework's table of functions, found in a capsule on its tensor type.
struct ExchangeApi {
  Version version;
  const ExchangeApi* previous;
  void* allocate;
  void* managed_from_object;
  void* managed_to_object;
  // Fills in a view of a tensor object; 0, or -1 with a Python error. May be null.
  int (*view_of_object)(void* object, Tensor* view);
  // The stream that the framework works on, on a device.
  int (*current_stream)(int32_t device_type, int32_t device_index, void** stream);
};

}  // namespace reprise::dlpack
