// Reads batches of torch tensors for the engine, without torch: one C call per tensor where torch offers it.
//
// A step must not cost more than microseconds on the training thread, whose caches are cold when it comes here: asking
// a tensor for dtype, shape, strides and device through Python attributes would be most of that. torch >= 2.10 hands
// all of it out at once (DLPack's exchange interface); older ones are asked through attributes.
//
// Knows Python, not pybind11. Everything here needs the GIL.
#pragma once

#include <Python.h>

#include <cstdint>
#include <deque>
#include <string>
#include <utility>
#include <vector>

#include "dlpack.h"
#include "engine.h"

namespace reprise {

// A strong reference to a Python object. Only to be copied, moved and destroyed with the GIL.
class Object {
 public:
  Object() = default;
  // Takes over a reference (nullptr: none), as most functions of the C API return one.
  static Object Own(PyObject* object) { return Object(object); }
  static Object Share(PyObject* object) { return Object(Py_XNewRef(object)); }
  Object(const Object& other) : object_(Py_XNewRef(other.object_)) {}
  Object(Object&& other) noexcept : object_(std::exchange(other.object_, nullptr)) {}
  Object& operator=(Object other) noexcept {
    std::swap(object_, other.object_);
    return *this;
  }
  ~Object() { Py_XDECREF(object_); }
  PyObject* get() const { return object_; }
  explicit operator bool() const { return object_ != nullptr; }

 private:
  explicit Object(PyObject* object) : object_(object) {}
  PyObject* object_ = nullptr;
};

// The tensors of one batch, kept alive while the engine may read them.
class KeptBatch {
 public:
  void Keep(PyObject* name, PyObject* tensor);
  // The name of a tensor that was changed in place since it was kept, as far as torch counts that; else empty.
  std::string Changed() const;

 private:
  struct Entry {
    Object name, tensor;
    int64_t version;  // torch's counter of in-place changes; -1 where there is none
  };
  std::vector<Entry> entries_;
};

class Intake {
 public:
  // prototypes: dict name -> tensor (0, *shape) of the right dtype, in the engine's order of fields. labels: an int64
  // tensor (0,). cuda_device: where tensors may also lie; -1: nowhere. current_stream: a callable that returns the
  // driver's handle of the stream that torch works on there. Throws std::invalid_argument for anything else.
  Intake(PyObject* prototypes, PyObject* labels, int cuda_device, PyObject* current_stream);

  // Describe a batch to the engine if it is plain: exactly the right fields, all of them torch tensors in host memory
  // or on the device, with the right dtype and shape and rows back to back; task an int, None or an int64 tensor (b,).
  // Returns false for any other, which is then not described; why is for the caller to find out. Never raises.
  bool Read(PyObject* fields, PyObject* labels, PyObject* task, Batch& batch, KeptBatch& kept) const;

  // The stream that the caller's work on the device goes to; nullptr without a device.
  Cuda::Stream CurrentStream() const;

 private:
  struct Column {
    Object name;
    Object dtype;
    dlpack::DataType type;
    std::vector<int64_t> shape;  // of one row
    bool is_complex;
  };
  struct View {
    const std::byte* data;
    int64_t rows;
    bool on_device;
  };

  Column Describe(PyObject* name, PyObject* prototype);
  // Whether the object is a plain tensor of this kind, and if so where it lies.
  bool ReadTensor(PyObject* object, const Column& column, View& view) const;
  bool ReadByAttributes(PyObject* object, const Column& column, View& view) const;

  PyTypeObject* tensor_type_ = nullptr;  // torch.Tensor, which never goes away
  const dlpack::ExchangeApi* api_ = nullptr;
  int cuda_device_;
  Object current_stream_;
  std::vector<Column> fields_;
  Column labels_;
  Object task_name_;
};

}  // namespace reprise
