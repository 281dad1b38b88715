#include "cuda.h"

#include <dlfcn.h>

#include <stdexcept>

namespace reprise {
namespace {

// From the CUDA driver API, https://docs.nvidia.com/cuda/cuda-driver-api/.
using Result = int;
constexpr unsigned kStreamNonBlocking = 1;
constexpr unsigned kEventBlockingSync = 1;
constexpr unsigned kEventDisableTiming = 2;
constexpr unsigned kHostRegisterPortable = 1;

}  // namespace

struct Cuda::Driver {
  explicit Driver(const std::string& name) {
    // Never closed: torch holds it anyway, and a driver does not survive being closed.
    library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) throw std::runtime_error("the CUDA driver cannot be opened: " + std::string(dlerror()));
    Find(init, "cuInit");
    Find(device_get, "cuDeviceGet");
    Find(context_retain, "cuDevicePrimaryCtxRetain");
    Find(context_release, "cuDevicePrimaryCtxRelease_v2");
    Find(context_push, "cuCtxPushCurrent_v2");
    Find(context_pop, "cuCtxPopCurrent_v2");
    Find(stream_create, "cuStreamCreate");
    Find(stream_destroy, "cuStreamDestroy_v2");
    Find(stream_wait_event, "cuStreamWaitEvent");
    Find(stream_synchronize, "cuStreamSynchronize");
    Find(event_create, "cuEventCreate");
    Find(event_destroy, "cuEventDestroy_v2");
    Find(event_record, "cuEventRecord");
    Find(event_synchronize, "cuEventSynchronize");
    Find(copy_to_host, "cuMemcpyDtoHAsync_v2");
    Find(copy_to_device, "cuMemcpyHtoDAsync_v2");
    Find(host_register, "cuMemHostRegister_v2");
    Find(host_unregister, "cuMemHostUnregister");
    Find(error_string, "cuGetErrorString");
  }

  void Check(Result result, const char* what) const {
    if (result == 0) return;
    const char* text = nullptr;
    error_string(result, &text);
    throw std::runtime_error(std::string("CUDA: ") + what + ": " + (text ? text : "unknown error") + " (" +
                             std::to_string(result) + ")");
  }

  void* library;
  Result (*init)(unsigned);
  Result (*device_get)(int*, int);
  Result (*context_retain)(void**, int);
  Result (*context_release)(int);
  Result (*context_push)(void*);
  Result (*context_pop)(void**);
  Result (*stream_create)(void**, unsigned);
  Result (*stream_destroy)(void*);
  Result (*stream_wait_event)(void*, void*, unsigned);
  Result (*stream_synchronize)(void*);
  Result (*event_create)(void**, unsigned);
  Result (*event_destroy)(void*);
  Result (*event_record)(void*, void*);
  Result (*event_synchronize)(void*);
  Result (*copy_to_host)(void*, Address, size_t, void*);
  Result (*copy_to_device)(Address, const void*, size_t, void*);
  Result (*host_register)(void*, size_t, unsigned);
  Result (*host_unregister)(void*);
  Result (*error_string)(Result, const char**);

 private:
  template <typename Function>
  void Find(Function& function, const char* name) {
    function = reinterpret_cast<Function>(dlsym(library, name));
    if (!function) throw std::runtime_error(std::string("the CUDA driver has no ") + name + "; it is too old");
  }
};

// The device's context, current on this thread for as long as this lives: torch may have another device current.
class Cuda::Current {
 public:
  explicit Current(const Cuda& cuda) : driver_(*cuda.driver_) {
    driver_.Check(driver_.context_push(cuda.context_), "making the device current");
  }
  Current(const Current&) = delete;
  Current& operator=(const Current&) = delete;
  ~Current() {
    void* popped = nullptr;
    driver_.context_pop(&popped);
  }

 private:
  const Driver& driver_;
};

Cuda::Cuda(int device, unsigned events, const std::string& library) : driver_(std::make_unique<Driver>(library)) {
  driver_->Check(driver_->init(0), "starting the driver");
  driver_->Check(driver_->device_get(&device_, device), "finding the device");
  driver_->Check(driver_->context_retain(&context_, device_), "using the device");
  const Current current(*this);
  driver_->Check(driver_->stream_create(&stream_, kStreamNonBlocking), "making a stream");
  for (unsigned i = 0; i < events; ++i) {
    void* event = nullptr;
    driver_->Check(driver_->event_create(&event, kEventBlockingSync | kEventDisableTiming), "making an event");
    events_.push_back(event);
  }
}

Cuda::~Cuda() {
  // At the end of a process the driver may be gone already; then there is nothing left to give back.
  void* popped = nullptr;
  if (driver_->context_push(context_) == 0) {
    driver_->stream_synchronize(stream_);
    for (void* const event : events_) driver_->event_destroy(event);
    driver_->stream_destroy(stream_);
    driver_->context_pop(&popped);
  }
  driver_->context_release(device_);
}

void Cuda::Pin(std::byte* begin, uint64_t bytes) {
  const Current current(*this);
  driver_->Check(driver_->host_register(begin, bytes, kHostRegisterPortable), "pinning host memory");
}

void Cuda::Unpin(std::byte* begin) {
  const Current current(*this);
  driver_->Check(driver_->host_unregister(begin), "giving back pinned memory");
}

void Cuda::Record(unsigned event, Stream stream) {
  const Current current(*this);
  driver_->Check(driver_->event_record(events_[event], stream), "recording an event");
}

void Cuda::RecordOwn(unsigned event) { Record(event, stream_); }

void Cuda::StreamWaits(Stream stream, unsigned event) {
  const Current current(*this);
  driver_->Check(driver_->stream_wait_event(stream, events_[event], 0), "waiting for an event");
}

void Cuda::OwnStreamWaits(unsigned event) { StreamWaits(stream_, event); }

void Cuda::WaitFor(unsigned event) {
  const Current current(*this);
  driver_->Check(driver_->event_synchronize(events_[event]), "waiting for a copy");
}

void Cuda::WaitForAll() {
  const Current current(*this);
  driver_->Check(driver_->stream_synchronize(stream_), "waiting for copies");
}

void Cuda::ToHost(std::byte* target, Address source, uint64_t bytes) {
  const Current current(*this);
  driver_->Check(driver_->copy_to_host(target, source, bytes, stream_), "copying to the host");
}

void Cuda::ToDevice(Address target, const std::byte* source, uint64_t bytes) {
  const Current current(*this);
  driver_->Check(driver_->copy_to_device(target, source, bytes, stream_), "copying to the device");
}

}  // namespace reprise
