#include "ucx.h"

#if defined(REPRISE_HAVE_UCX)

#include <dlfcn.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>

#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string_view>
#include <system_error>
#include <utility>

#include "copy.h"

namespace reprise {
namespace {

constexpr unsigned kMajor = 1, kMinor = 13;

// Shared memory knows nothing of a peer that dies, and the memory of a graphics card is not ours to read.
constexpr const char* kTransports =
    "^posix,sysv,xpmem,cma,knem,cuda_copy,cuda_ipc,gdr_copy,rocm_copy,rocm_ipc,ze_copy,ze_ipc";

// Where neither the user nor an administrator has said otherwise. A host that vanishes is noticed by these alone.
constexpr std::pair<const char*, const char*> kSettings[] = {
    {"TCP_CONN_NB", "y"},    // or making a connection waits for the other host
    {"ZCOPY_THRESH", "8K"},  // or UCX 1.22 cuts what TCP takes in one piece into pieces of 8 KiB and copies them
    {"TCP_KEEPIDLE", "3s"}, {"TCP_KEEPINTVL", "1s"}, {"TCP_KEEPCNT", "3"}, {"KEEPALIVE_INTERVAL", "3s"},
};

// What UCX prints about one of its objects.
template <typename Print>
std::string Printed(Print print) {
  char* text = nullptr;
  size_t bytes = 0;
  FILE* const stream = open_memstream(&text, &bytes);
  if (!stream) return "";
  print(stream);
  std::fclose(stream);
  std::string printed(text, bytes);
  std::free(text);
  return printed;
}

bool InEnvironment(const std::string& name) { return std::getenv(("UCX_" + name).c_str()) != nullptr; }

// While it lives, whoever sets handlers for faults does so in vain: UCX puts its own in place when it is loaded, and so
// in the place of Python's faulthandler or a sanitizer's.
class FaultHandlersKept {
 public:
  FaultHandlersKept() {
    for (size_t i = 0; i < std::size(kFaults); ++i) sigaction(kFaults[i], nullptr, &before_[i]);
  }
  FaultHandlersKept(const FaultHandlersKept&) = delete;
  FaultHandlersKept& operator=(const FaultHandlersKept&) = delete;
  ~FaultHandlersKept() {
    for (size_t i = 0; i < std::size(kFaults); ++i) sigaction(kFaults[i], &before_[i], nullptr);
  }

 private:
  static constexpr int kFaults[] = {SIGILL, SIGSEGV, SIGBUS, SIGFPE};
  struct sigaction before_[std::size(kFaults)];
};

void* Open(const std::string& name) {
  const SignalsBlocked blocked;
  const FaultHandlersKept kept;
  // Never closed: it has threads, and hooks in the memory allocator.
  void* const library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) throw std::runtime_error("UCX cannot be opened: " + std::string(dlerror()));
  return library;
}

}  // namespace

UcxLibrary::UcxLibrary(const std::string& name) : library_(Open(name)) {
  get_version = Find(get_version, "ucp_get_version");
  unsigned major = 0, minor = 0, release = 0;
  get_version(&major, &minor, &release);
  if (major != kMajor || minor < kMinor) {
    throw std::runtime_error(name + " is UCX " + version() + "; 1.13 or a later 1.x is needed");
  }
  config_read = Find(config_read, "ucp_config_read");
  config_modify = Find(config_modify, "ucp_config_modify");
  config_release = Find(config_release, "ucp_config_release");
  init_version = Find(init_version, "ucp_init_version");
  cleanup = Find(cleanup, "ucp_cleanup");
  context_print_info = Find(context_print_info, "ucp_context_print_info");
  worker_create = Find(worker_create, "ucp_worker_create");
  worker_destroy = Find(worker_destroy, "ucp_worker_destroy");
  worker_get_address = Find(worker_get_address, "ucp_worker_get_address");
  worker_release_address = Find(worker_release_address, "ucp_worker_release_address");
  worker_get_efd = Find(worker_get_efd, "ucp_worker_get_efd");
  worker_progress = Find(worker_progress, "ucp_worker_progress");
  worker_arm = Find(worker_arm, "ucp_worker_arm");
  worker_set_am_recv_handler = Find(worker_set_am_recv_handler, "ucp_worker_set_am_recv_handler");
  worker_flush_nbx = Find(worker_flush_nbx, "ucp_worker_flush_nbx");
  ep_create = Find(ep_create, "ucp_ep_create");
  ep_close_nbx = Find(ep_close_nbx, "ucp_ep_close_nbx");
  ep_print_info = Find(ep_print_info, "ucp_ep_print_info");
  am_send_nbx = Find(am_send_nbx, "ucp_am_send_nbx");
  mem_map = Find(mem_map, "ucp_mem_map");
  mem_unmap = Find(mem_unmap, "ucp_mem_unmap");
  rkey_pack = Find(rkey_pack, "ucp_rkey_pack");
  rkey_buffer_release = Find(rkey_buffer_release, "ucp_rkey_buffer_release");
  ep_rkey_unpack = Find(ep_rkey_unpack, "ucp_ep_rkey_unpack");
  rkey_destroy = Find(rkey_destroy, "ucp_rkey_destroy");
  get_nbx = Find(get_nbx, "ucp_get_nbx");
  request_check_status = Find(request_check_status, "ucp_request_check_status");
  request_free = Find(request_free, "ucp_request_free");
  status_string = Find(status_string, "ucs_status_string");
  // Not public, and not needed: without it UCX is talkative.
  using SetOption = ucs_status_t(const char*, const char*);
  auto* const set_option = reinterpret_cast<SetOption*>(dlsym(library_, "ucs_global_opts_set_value"));
  if (set_option && !InEnvironment("LOG_LEVEL")) set_option("LOG_LEVEL", "fatal");
}

template <typename Function>
Function* UcxLibrary::Find(Function*, const char* name) const {
  auto* const function = reinterpret_cast<Function*>(dlsym(library_, name));
  if (!function) throw std::runtime_error("UCX " + std::string(get_version ? version() : "") + " has no " + name);
  return function;
}

std::string UcxLibrary::version() const {
  unsigned major = 0, minor = 0, release = 0;
  get_version(&major, &minor, &release);
  return std::to_string(major) + "." + std::to_string(minor) + "." + std::to_string(release);
}

void UcxLibrary::Check(ucs_status_t status, const std::string& what) const {
  if (status != UCS_OK) throw std::runtime_error("UCX " + version() + ": " + what + ": " + Text(status));
}

int MakeEventDescriptor() {
  const int descriptor = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (descriptor < 0) throw std::system_error(errno, std::generic_category(), "eventfd");
  return descriptor;
}

bool ReadsNatively(const std::string& transports) {
  const std::string text = " " + transports;
  return text.find(" rc_") != std::string::npos || text.find(" dc_") != std::string::npos;
}

UcxWorker::UcxWorker(const UcxLibrary& library, const std::string& devices, const std::string& transports, Reads reads)
    : library_(library) {
  try {
    Make(devices, transports, reads);
  } catch (...) {
    Free();
    throw;
  }
}

UcxWorker::~UcxWorker() { Free(); }

void UcxWorker::Make(const std::string& devices, const std::string& transports, Reads reads) {
  const SignalsBlocked blocked;  // UCX starts a thread
  ucp_config_t* config = nullptr;
  library_.Check(library_.config_read(nullptr, nullptr, &config), "reading its configuration");
  ucs_status_t status = UCS_OK;
  const auto set = [&](const char* name, const std::string& value) {
    if (status == UCS_OK) status = library_.config_modify(config, name, value.c_str());
  };
  if (!devices.empty()) set("NET_DEVICES", devices);
  if (!transports.empty()) {
    set("TLS", transports);
  } else if (!InEnvironment("TLS")) {
    set("TLS", kTransports);
  }
  for (const auto& [name, value] : kSettings) {
    if (InEnvironment(name)) continue;
    // Later versions know a transport's settings by their full names, 1.13 by the part after the transport's.
    library_.config_modify(config, name, value);
    const std::string_view full(name);
    if (full.starts_with("TCP_")) library_.config_modify(config, full.substr(4).data(), value);
  }
  std::string what = "setting its options";
  const auto init = [&](uint64_t features) {
    ucp_params_t params{};
    params.field_mask = UCP_PARAM_FIELD_FEATURES;
    params.features = UCP_FEATURE_AM | UCP_FEATURE_WAKEUP | features;
    status = library_.init_version(kMajor, kMinor, &params, config, &context_);
  };
  if (status == UCS_OK) {
    reads_ = reads == Reads::kGet;
    init(reads_ ? UCP_FEATURE_RMA : 0);
    what = "no usable interface (devices \"" + devices + "\", transports \"" + transports + "\")";
  }
  if (status == UCS_OK && reads == Reads::kAuto &&
      ReadsNatively(Printed([&](FILE* stream) { library_.context_print_info(context_, stream); }))) {
    // Only a context knows what there is, and what it can do is settled when it is made.
    library_.cleanup(std::exchange(context_, nullptr));
    init(UCP_FEATURE_RMA);
    reads_ = status == UCS_OK;
    if (!reads_) init(0);
  }
  library_.config_release(config);
  library_.Check(status, what);
  ucp_worker_params_t params{};
  params.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE | UCP_WORKER_PARAM_FIELD_EVENTS;
  params.thread_mode = UCS_THREAD_MODE_SERIALIZED;
  params.events = UCP_WAKEUP_RX | UCP_WAKEUP_TX | (reads_ ? UCP_WAKEUP_RMA : 0);
  library_.Check(library_.worker_create(context_, &params, &worker_), what);
  library_.Check(library_.worker_get_efd(worker_, &descriptor_), "sleeping on these transports");
  ucp_address_t* address = nullptr;
  size_t bytes = 0;
  library_.Check(library_.worker_get_address(worker_, &address, &bytes), "finding its own address");
  address_.assign(reinterpret_cast<const char*>(address), bytes);
  library_.worker_release_address(worker_, address);
}

void UcxWorker::Free() {
  for (void* const request : closing_) library_.request_free(request);
  if (worker_) library_.worker_destroy(worker_);
  if (context_) library_.cleanup(context_);
}

void UcxWorker::Handle(unsigned id, ucp_am_recv_callback_t callback, void* arg) {
  ucp_am_handler_param_t params{};
  params.field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_CB | UCP_AM_HANDLER_PARAM_FIELD_ARG |
                      UCP_AM_HANDLER_PARAM_FIELD_FLAGS;
  params.id = id;
  params.flags = UCP_AM_FLAG_WHOLE_MSG;
  params.cb = callback;
  params.arg = arg;
  library_.Check(library_.worker_set_am_recv_handler(worker_, &params), "setting a message handler");
}

ucp_ep_h UcxWorker::Connect(const std::string& address, ucp_err_handler_cb_t failed, void* arg) {
  ucp_ep_params_t params{};
  params.field_mask =
      UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE | UCP_EP_PARAM_FIELD_ERR_HANDLER;
  params.address = reinterpret_cast<const ucp_address_t*>(address.data());
  params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
  params.err_handler.cb = failed;
  params.err_handler.arg = arg;
  ucp_ep_h endpoint = nullptr;
  return library_.ep_create(worker_, &params, &endpoint) == UCS_OK ? endpoint : nullptr;
}

void UcxWorker::Close(ucp_ep_h endpoint) {
  ucp_request_param_t params{};
  params.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
  params.flags = UCP_EP_CLOSE_FLAG_FORCE;
  void* const request = library_.ep_close_nbx(endpoint, &params);
  if (UCS_PTR_IS_PTR(request)) closing_.push_back(request);
}

ucs_status_ptr_t UcxWorker::Send(ucp_ep_h endpoint, unsigned id, std::span<const std::byte> header,
                                 std::span<const std::byte> data, ucp_send_nbx_callback_t done, void* arg) {
  ucp_request_param_t params{};
  params.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_FLAGS;
  params.cb.send = done;
  params.user_data = arg;
  params.flags = UCP_AM_SEND_FLAG_EAGER;
  return library_.am_send_nbx(endpoint, id, header.data(), header.size(), data.data(), data.size(), &params);
}

ucs_status_ptr_t UcxWorker::Get(ucp_ep_h endpoint, ucp_rkey_h key, void* target, uint64_t remote, uint64_t bytes,
                                ucp_send_nbx_callback_t done, void* arg) {
  ucp_request_param_t params{};
  params.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
  params.cb.send = done;
  params.user_data = arg;
  return library_.get_nbx(endpoint, target, bytes, remote, key, &params);
}

bool UcxWorker::Progress() {
  const bool any = library_.worker_progress(worker_) != 0;
  std::erase_if(closing_, [&](void* request) {
    if (library_.request_check_status(request) == UCS_INPROGRESS) return false;
    library_.request_free(request);
    return true;
  });
  return any;
}

bool UcxWorker::Arm() { return library_.worker_arm(worker_) == UCS_OK; }

void UcxWorker::ProgressWhile(const std::function<bool()>& busy, std::chrono::nanoseconds limit) {
  const auto end = std::chrono::steady_clock::now() + limit;
  while (busy()) {
    if (Progress() || !Arm()) continue;
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(end - std::chrono::steady_clock::now()).count();
    if (left <= 0) return;
    pollfd source{descriptor_, POLLIN, 0};
    poll(&source, 1, static_cast<int>(left));
  }
}

void UcxWorker::Flush(std::chrono::nanoseconds limit) {
  ucp_request_param_t params{};
  void* const request = library_.worker_flush_nbx(worker_, &params);
  if (!UCS_PTR_IS_PTR(request)) return;
  ProgressWhile([&] { return library_.request_check_status(request) == UCS_INPROGRESS; }, limit);
  closing_.push_back(request);  // to be freed when it has come to its end
}

std::string UcxWorker::Transports(ucp_ep_h endpoint) const {
  const std::string info = Printed([&](FILE* stream) { library_.ep_print_info(endpoint, stream); });
  // "#    lane[0]: 1:tcp/lo.0 md[1] ..."
  std::string found;
  for (size_t at = info.find("lane["); at != std::string::npos; at = info.find("lane[", at + 1)) {
    const size_t colon = info.find(':', info.find(':', at) + 1);
    const size_t end = info.find_first_of(" .\n", colon);
    if (colon == std::string::npos || end == std::string::npos) break;
    const std::string name = info.substr(colon + 1, end - colon - 1);
    if (found.find(name) == std::string::npos) found += (found.empty() ? "" : ", ") + name;
  }
  return found.empty() ? "unknown" : found;
}

UcxMemory::UcxMemory(const UcxWorker& worker, std::byte* begin, uint64_t bytes) : worker_(worker) {
  const UcxLibrary& library = worker.library();
  ucp_mem_map_params_t params{};
  params.field_mask = UCP_MEM_MAP_PARAM_FIELD_ADDRESS | UCP_MEM_MAP_PARAM_FIELD_LENGTH | UCP_MEM_MAP_PARAM_FIELD_PROT;
  params.address = begin;
  params.length = bytes;
  params.prot = UCP_MEM_MAP_PROT_LOCAL_READ | UCP_MEM_MAP_PROT_REMOTE_READ;
  const std::string what = "registering " + std::to_string((bytes + (1 << 20) - 1) >> 20) + " MiB was refused";
  library.Check(library.mem_map(worker.context(), &params, &memory_), what);
  void* key = nullptr;
  size_t key_bytes = 0;
  const ucs_status_t status = library.rkey_pack(worker.context(), memory_, &key, &key_bytes);
  if (status == UCS_OK) {
    key_.assign(static_cast<const char*>(key), key_bytes);
    library.rkey_buffer_release(key);
    return;
  }
  library.mem_unmap(worker.context(), memory_);
  library.Check(status, what);
}

UcxMemory::~UcxMemory() { worker_.library().mem_unmap(worker_.context(), memory_); }

}  // namespace reprise

#endif
