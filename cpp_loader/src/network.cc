#include "network.h"

#include <unistd.h>

#include <cstring>
#include <stdexcept>
#include <string_view>
#include <utility>

#include "network_client.h"
#include "network_news.h"
#include "network_reads.h"
#include "network_server.h"
#include "ucx.h"

namespace reprise {

#if defined(REPRISE_HAVE_UCX)

class Network::Impl {
 public:
  Impl(NetworkOptions options, const Layout& layout, const Shard& own)
      : options_(Checked(std::move(options))),
        own_(own),
        process_(getpid()),
        board_(options_.rank, options_.world_size),
        library_(options_.library),
        server_(library_, options_, layout, own, board_),
        client_(library_, options_, layout, board_, [this] { server_.Wake(); }) {
    const AddressHead head{static_cast<uint32_t>(server_.address().size()),
                           static_cast<uint32_t>(server_.window().size())};
    address_.assign(reinterpret_cast<const char*>(&head), sizeof(head));
    address_ += server_.address() + server_.window() + client_.address();
    server_.Start([this] { return client_.Advance(); });
  }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  ~Impl() {
    client_.Stop();
    News own = NewsOf(options_.rank, own_.counters());
    if (own.state == Counters::kOpen) own.state = Counters::kClosed;
    server_.End(own);
    client_.End(own);
  }

  void Connect(uint32_t rank, const std::string& address) {
    AddressHead head{};
    if (rank >= options_.world_size || address.size() < sizeof(head)) Refuse(rank, address);
    std::memcpy(&head, address.data(), sizeof(head));
    const uint64_t before_client = sizeof(head) + uint64_t{head.server_bytes} + head.window_bytes;
    if (head.server_bytes == 0 || before_client >= address.size()) Refuse(rank, address);
    Window window =
        Window::Unpack(std::string_view(address).substr(sizeof(head) + head.server_bytes, head.window_bytes));
    client_.Connect(rank, address.substr(sizeof(head), head.server_bytes), std::move(window));
    server_.Connect(rank, address.substr(before_client));
  }

  const NetworkOptions options_;
  const Shard& own_;
  const pid_t process_;
  NewsBoard board_;
  const UcxLibrary library_;
  NetworkServer server_;
  NetworkClient client_;
  std::string address_;

 private:
  // Before the server's address, its window and the client's address.
  struct AddressHead {
    uint32_t server_bytes;
    uint32_t window_bytes;
  };

  static NetworkOptions Checked(NetworkOptions options) {
    if (options.rank < options.world_size) return options;
    throw std::invalid_argument("rank " + std::to_string(options.rank) + " of " + std::to_string(options.world_size));
  }
  static void Refuse(uint32_t rank, const std::string& address) {
    throw std::invalid_argument("no address of rank " + std::to_string(rank) + ": " + std::to_string(address.size()) +
                                " bytes");
  }
};

Network::Network(NetworkOptions options, const Layout& layout, const Shard& own)
    : impl_(std::make_unique<Impl>(std::move(options), layout, own)) {}

Network::~Network() {
  if (getpid() != impl_->process_) static_cast<void>(impl_.release());
}

const std::string& Network::address() const { return impl_->address_; }

void Network::Connect(uint32_t rank, const std::string& address) { impl_->Connect(rank, address); }

std::string Network::describe() const {
  std::string text = "UCX " + impl_->library_.version();
  for (const std::string& line : impl_->client_.describe()) text += "\n" + line;
  if (!impl_->server_.why_no_window().empty())
    text += "\nother ranks read by request: " + impl_->server_.why_no_window();
  return text;
}

const Counters& Network::counters(uint32_t rank) const { return impl_->board_.counters(rank); }

std::vector<uint32_t> Network::TakeNews() { return impl_->board_.Take(); }

std::string Network::failed(uint32_t rank) const { return impl_->board_.failed(rank); }

void Network::Tell(uint32_t rank, std::span<const News> news) { impl_->client_.Tell(rank, news); }

void Network::Request(uint32_t rank, std::span<const uint32_t> slots, std::span<const Target> targets,
                      const News& own) {
  impl_->client_.Request(rank, slots, targets, own);
}

bool Network::Finish() { return impl_->client_.Finish(); }

void Network::Look() {
  impl_->client_.Advance();
  if (impl_->board_.any_in_doubt()) impl_->server_.Wake();  // which judges
}

void Network::Stop() { impl_->client_.Stop(); }

Network::Traffic Network::traffic() const {
  const Traffic asked = impl_->client_.traffic(), answered = impl_->server_.traffic();
  return {asked.messages_sent + answered.messages_sent, asked.bytes_sent + answered.bytes_sent,
          asked.bytes_received + answered.bytes_received};
}

std::string WhyNoNetwork(const std::string& library) {
  try {
    const UcxLibrary opened(library);
    return "";
  } catch (const std::runtime_error& error) {
    return error.what();
  }
}

#else

namespace {
constexpr const char* kNoHeaders = "this build has no UCX: its headers were not found";
}

std::string WhyNoNetwork(const std::string&) { return kNoHeaders; }

class Network::Impl {};

Network::Network(NetworkOptions, const Layout&, const Shard&) { throw std::runtime_error(kNoHeaders); }

Network::~Network() = default;

// Never called, as there is no Network.
const std::string& Network::address() const { std::terminate(); }
void Network::Connect(uint32_t, const std::string&) { std::terminate(); }
std::string Network::describe() const { std::terminate(); }
const Counters& Network::counters(uint32_t) const { std::terminate(); }
std::vector<uint32_t> Network::TakeNews() { std::terminate(); }
std::string Network::failed(uint32_t) const { std::terminate(); }
void Network::Tell(uint32_t, std::span<const News>) {}
void Network::Request(uint32_t, std::span<const uint32_t>, std::span<const Target>, const News&) {}
bool Network::Finish() { return false; }
void Network::Look() {}
void Network::Stop() {}
Network::Traffic Network::traffic() const { return {}; }

#endif

}  // namespace reprise
