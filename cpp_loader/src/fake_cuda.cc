// A stand-in for the CUDA driver library, for the tests of what the engine asks of it on machines without a GPU.
//
// Streams are threads that work off what was queued, each operation after a short random delay; device memory is host
// memory that only these threads touch. So a copy that was not waited for is late, and a missing event is a wrong byte
// or a race that ThreadSanitizer reports. Built as a shared library of its own, opened like the real one.
#include "fake_cuda.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <thread>

namespace {

constexpr int kSuccess = 0;
constexpr int kInvalidValue = 1;
constexpr int kInvalidContext = 201;

int context_token;
thread_local int depth = 0;  // contexts pushed on this thread

struct Event {
  std::mutex mutex;
  std::condition_variable changed;
  uint64_t recorded = 0, over = 0;

  void Wait(uint64_t number) {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return over >= number; });
  }
};

// As with the real driver, an event may be destroyed while streams still wait for it.
using EventHandle = std::shared_ptr<Event>;

EventHandle Shared(void* handle) { return *static_cast<EventHandle*>(handle); }

class Stream {
 public:
  Stream() : thread_([this] { Loop(); }) {}
  ~Stream() {
    Queue(nullptr);
    thread_.join();
  }
  void Queue(std::function<void()> operation) {
    {
      const std::lock_guard lock(mutex_);
      queue_.push_back(std::move(operation));
    }
    changed_.notify_all();
  }
  void Synchronize() {
    Event done;
    Queue([&] {
      const std::lock_guard lock(done.mutex);
      done.over = 1;
      done.changed.notify_all();
    });
    done.Wait(1);
  }

 private:
  void Loop() {
    std::minstd_rand random(1);
    for (;;) {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return !queue_.empty(); });
      const std::function<void()> operation = std::move(queue_.front());
      queue_.pop_front();
      lock.unlock();
      if (!operation) return;
      std::this_thread::sleep_for(std::chrono::microseconds(random() % 50));
      operation();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> queue_;
  std::thread thread_;
};

std::mutex registered_mutex;
std::map<const std::byte*, size_t> registered;
std::atomic<uint64_t> unpinned_copies{0};

void CountUnlessPinned(const void* host, size_t bytes) {
  const auto* const begin = static_cast<const std::byte*>(host);
  const std::lock_guard lock(registered_mutex);
  auto after = registered.upper_bound(begin);
  const bool pinned =
      after != registered.begin() && begin + bytes <= std::prev(after)->first + std::prev(after)->second;
  unpinned_copies += !pinned;
}

int Copy(void* target, const void* source, size_t bytes, void* stream) {
  if (!depth) return kInvalidContext;
  static_cast<Stream*>(stream)->Queue([=] { std::memcpy(target, source, bytes); });
  return kSuccess;
}

}  // namespace

extern "C" {

int cuInit(unsigned) { return kSuccess; }
int cuDeviceGet(int* device, int ordinal) {
  *device = ordinal;
  return ordinal == 0 ? kSuccess : 101;
}
int cuDevicePrimaryCtxRetain(void** context, int) {
  *context = &context_token;
  return kSuccess;
}
int cuDevicePrimaryCtxRelease_v2(int) { return kSuccess; }
int cuCtxPushCurrent_v2(void* context) {
  ++depth;
  return context == &context_token ? kSuccess : kInvalidContext;
}
int cuCtxPopCurrent_v2(void** context) {
  *context = &context_token;
  return --depth < 0 ? kInvalidContext : kSuccess;
}
int cuStreamCreate(void** stream, unsigned) {
  if (!depth) return kInvalidContext;
  *stream = new Stream;
  return kSuccess;
}
int cuStreamDestroy_v2(void* stream) {
  delete static_cast<Stream*>(stream);
  return kSuccess;
}
int cuStreamWaitEvent(void* stream, void* handle, unsigned) {
  if (!depth) return kInvalidContext;
  const EventHandle event = Shared(handle);
  uint64_t number;
  {
    const std::lock_guard lock(event->mutex);
    number = event->recorded;
  }
  static_cast<Stream*>(stream)->Queue([=] { event->Wait(number); });
  return kSuccess;
}
int cuStreamSynchronize(void* stream) {
  if (!depth) return kInvalidContext;
  static_cast<Stream*>(stream)->Synchronize();
  return kSuccess;
}
int cuEventCreate(void** event, unsigned) {
  *event = new EventHandle(std::make_shared<Event>());
  return kSuccess;
}
int cuEventDestroy_v2(void* event) {
  delete static_cast<EventHandle*>(event);
  return kSuccess;
}
int cuEventRecord(void* handle, void* stream) {
  if (!depth) return kInvalidContext;
  const EventHandle event = Shared(handle);
  uint64_t number;
  {
    const std::lock_guard lock(event->mutex);
    number = ++event->recorded;
  }
  static_cast<Stream*>(stream)->Queue([=] {
    const std::lock_guard lock(event->mutex);
    event->over = number;
    event->changed.notify_all();
  });
  return kSuccess;
}
int cuEventSynchronize(void* handle) {
  if (!depth) return kInvalidContext;
  const EventHandle event = Shared(handle);
  uint64_t number;
  {
    const std::lock_guard lock(event->mutex);
    number = event->recorded;
  }
  event->Wait(number);
  return kSuccess;
}
int cuMemcpyDtoHAsync_v2(void* target, uint64_t source, size_t bytes, void* stream) {
  CountUnlessPinned(target, bytes);
  return Copy(target, reinterpret_cast<const void*>(source), bytes, stream);
}
int cuMemcpyHtoDAsync_v2(uint64_t target, const void* source, size_t bytes, void* stream) {
  CountUnlessPinned(source, bytes);
  return Copy(reinterpret_cast<void*>(target), source, bytes, stream);
}
int cuMemHostRegister_v2(void* begin, size_t bytes, unsigned) {
  const std::lock_guard lock(registered_mutex);
  return registered.emplace(static_cast<const std::byte*>(begin), bytes).second ? kSuccess : kInvalidValue;
}
int cuMemHostUnregister(void* begin) {
  const std::lock_guard lock(registered_mutex);
  return registered.erase(static_cast<const std::byte*>(begin)) ? kSuccess : kInvalidValue;
}
int cuGetErrorString(int, const char** text) {
  *text = "a fake error";
  return kSuccess;
}

void fakeLaunch(void* stream, void (*kernel)(void*), void* argument) {
  static_cast<Stream*>(stream)->Queue([=] { kernel(argument); });
}
uint64_t fakeUnpinnedCopies() { return unpinned_copies; }
uint64_t fakePinnedRanges() {
  const std::lock_guard lock(registered_mutex);
  return registered.size();
}

}  // extern "C"
