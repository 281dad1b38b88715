// The few things the engine does with a CUDA device, through the driver library opened at run time.
//
// A build needs no CUDA and links none; a machine without it never comes here. The driver's interface is stable, so one
// build serves every CUDA. Everything is in stream order on one stream of our own: the stream that the caller trains on
// is waited for and made to wait by events, and never synchronised.
//
// Threads: every method may be called from any thread, one at a time. Errors: std::runtime_error with the driver's
// words.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace reprise {

class Cuda {
 public:
  using Stream = void*;  // the driver's handle, as torch gives it out
  using Address = uint64_t;

  // device: ordinal. events: how many events there are, numbered from 0. library: what to open, for tests.
  Cuda(int device, unsigned events, const std::string& library = "libcuda.so.1");
  Cuda(const Cuda&) = delete;
  Cuda& operator=(const Cuda&) = delete;
  ~Cuda();

  // Make host memory such that copies need no detour. It must be given back before it is unmapped.
  void Pin(std::byte* begin, uint64_t bytes);
  void Unpin(std::byte* begin);

  // Mark this point of the caller's stream, or of ours.
  void Record(unsigned event, Stream stream);
  void RecordOwn(unsigned event);
  // Let a stream wait for an event, without waiting here. An event never recorded is over.
  void StreamWaits(Stream stream, unsigned event);
  void OwnStreamWaits(unsigned event);
  // Sleep until an event, or all our stream has to do, is over.
  void WaitFor(unsigned event);
  void WaitForAll();

  // Queue a copy on our stream. Host memory must stay until an event recorded later is over.
  void ToHost(std::byte* target, Address source, uint64_t bytes);
  void ToDevice(Address target, const std::byte* source, uint64_t bytes);

 private:
  struct Driver;
  class Current;

  std::unique_ptr<const Driver> driver_;
  int device_ = 0;
  void* context_ = nullptr;
  Stream stream_ = nullptr;
  std::vector<void*> events_;
};

}  // namespace reprise
