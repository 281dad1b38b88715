// UCX as network.h uses it: the library, opened at run time, and a worker with active messages, an event descriptor
// and, where the hardware reads the memory of others by itself, such reads.
//
// Only what UCX 1.13 has is used (OpenUCX API, https://openucx.readthedocs.io/), so that it works with whatever libucp
// the process has loaded already, for MPI for one. Empty in a build without UCX's headers.
//
// Errors: std::runtime_error with UCX's words. A worker, its endpoints included, is for one thread at a time.
#pragma once

#if defined(REPRISE_HAVE_UCX)

#include <ucp/api/ucp.h>

#include <chrono>
#include <cstddef>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "network.h"

namespace reprise {

class UcxLibrary {
 public:
  explicit UcxLibrary(const std::string& name);

  std::string version() const;
  std::string Text(ucs_status_t status) const { return status_string(status); }
  void Check(ucs_status_t status, const std::string& what) const;

 private:
  void* library_;

  template <typename Function>
  Function* Find(Function*, const char* name) const;

 public:
  decltype(&::ucp_get_version) get_version = nullptr;
  decltype(&::ucp_config_read) config_read = nullptr;
  decltype(&::ucp_config_modify) config_modify = nullptr;
  decltype(&::ucp_config_release) config_release = nullptr;
  decltype(&::ucp_init_version) init_version = nullptr;
  decltype(&::ucp_cleanup) cleanup = nullptr;
  decltype(&::ucp_context_print_info) context_print_info = nullptr;
  decltype(&::ucp_worker_create) worker_create = nullptr;
  decltype(&::ucp_worker_destroy) worker_destroy = nullptr;
  decltype(&::ucp_worker_get_address) worker_get_address = nullptr;
  decltype(&::ucp_worker_release_address) worker_release_address = nullptr;
  decltype(&::ucp_worker_get_efd) worker_get_efd = nullptr;
  decltype(&::ucp_worker_progress) worker_progress = nullptr;
  decltype(&::ucp_worker_arm) worker_arm = nullptr;
  decltype(&::ucp_worker_set_am_recv_handler) worker_set_am_recv_handler = nullptr;
  decltype(&::ucp_worker_flush_nbx) worker_flush_nbx = nullptr;
  decltype(&::ucp_ep_create) ep_create = nullptr;
  decltype(&::ucp_ep_close_nbx) ep_close_nbx = nullptr;
  decltype(&::ucp_ep_print_info) ep_print_info = nullptr;
  decltype(&::ucp_am_send_nbx) am_send_nbx = nullptr;
  decltype(&::ucp_mem_map) mem_map = nullptr;
  decltype(&::ucp_mem_unmap) mem_unmap = nullptr;
  decltype(&::ucp_rkey_pack) rkey_pack = nullptr;
  decltype(&::ucp_rkey_buffer_release) rkey_buffer_release = nullptr;
  decltype(&::ucp_ep_rkey_unpack) ep_rkey_unpack = nullptr;
  decltype(&::ucp_rkey_destroy) rkey_destroy = nullptr;
  decltype(&::ucp_get_nbx) get_nbx = nullptr;
  decltype(&::ucp_request_check_status) request_check_status = nullptr;
  decltype(&::ucp_request_free) request_free = nullptr;
  decltype(&::ucs_status_string) status_string = nullptr;
};

// Non-blocking; to wake a thread that sleeps in poll.
int MakeEventDescriptor();

// Whether hardware reads remote memory over one of these transports: those of InfiniBand and RoCE with reliable
// connections. Over others UCX has the owner's processor do it, by messages.
bool ReadsNatively(const std::string& transports);

class UcxWorker {
 public:
  // devices, transports, reads: see NetworkOptions. The library must live longer.
  UcxWorker(const UcxLibrary& library, const std::string& devices, const std::string& transports, Reads reads);
  UcxWorker(const UcxWorker&) = delete;
  UcxWorker& operator=(const UcxWorker&) = delete;
  ~UcxWorker();

  const std::string& address() const { return address_; }
  // Whether memory can be offered and read at all. Else UCX does not answer those who ask for it: what it would do for
  // them on TCP, it would do at any address that they name.
  bool reads() const { return reads_; }

  // callback: what a message with this number does; `arg` is its first argument. UCX 1.13 does
  // not survive a message with a number that has no handler.
  void Handle(unsigned id, ucp_am_recv_callback_t callback, void* arg);

  // An endpoint to a worker by its address. nullptr: the address cannot be reached at all. failed: called by Progress()
  // when the connection breaks.
  ucp_ep_h Connect(const std::string& address, ucp_err_handler_cb_t failed, void* arg);
  // Without waiting for anything; messages under way come to their end, with an error as it may be. Not from a
  // callback.
  void Close(ucp_ep_h endpoint);
  // Closing connections that have not come to an end yet.
  bool closing() const { return !closing_.empty(); }

  // nullptr: it has left. An error pointer (UCS_PTR_IS_ERR): it will not. Else `done` will be called, with its request
  // to be freed; until then header and data must stay.
  ucs_status_ptr_t Send(ucp_ep_h endpoint, unsigned id, std::span<const std::byte> header,
                        std::span<const std::byte> data, ucp_send_nbx_callback_t done, void* arg);

  // Copy remote memory to `target`. Returns and calls `done` as Send does; nullptr: it is there.
  ucs_status_ptr_t Get(ucp_ep_h endpoint, ucp_rkey_h key, void* target, uint64_t remote, uint64_t bytes,
                       ucp_send_nbx_callback_t done, void* arg);

  // Do what is to be done. Whether that was anything.
  bool Progress();
  // false: there is something to be done. true: the descriptor becomes readable when there is.
  bool Arm();
  int descriptor() const { return descriptor_; }

  // Sleep and do what is to be done, as long as busy() and at most so long.
  void ProgressWhile(const std::function<bool()>& busy, std::chrono::nanoseconds limit);
  // Until what was sent has reached the others, as far as the transport tells, and at most so long.
  void Flush(std::chrono::nanoseconds limit);

  // The transports of a connection, like "tcp/eth0".
  std::string Transports(ucp_ep_h endpoint) const;

  ucp_worker_h handle() const { return worker_; }
  ucp_context_h context() const { return context_; }
  const UcxLibrary& library() const { return library_; }

 private:
  void Make(const std::string& devices, const std::string& transports, Reads reads);
  void Free();

  const UcxLibrary& library_;
  ucp_context_h context_ = nullptr;
  ucp_worker_h worker_ = nullptr;
  int descriptor_ = -1;
  bool reads_ = false;
  std::string address_;
  std::vector<void*> closing_;
};

// Memory that others may read, as long as this lives: it may not be unmapped before. With hardware that does so it
// stays in RAM from now on, all of it; otherwise no page of it is touched.
class UcxMemory {
 public:
  // worker: whose address the others have; must live longer, and reads().
  UcxMemory(const UcxWorker& worker, std::byte* begin, uint64_t bytes);
  UcxMemory(const UcxMemory&) = delete;
  UcxMemory& operator=(const UcxMemory&) = delete;
  ~UcxMemory();

  // What others need to read it, besides its address here.
  const std::string& key() const { return key_; }

 private:
  const UcxWorker& worker_;
  ucp_mem_h memory_ = nullptr;
  std::string key_;
};

}  // namespace reprise

#endif
