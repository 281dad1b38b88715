#include "network_client.h"

#if defined(REPRISE_HAVE_UCX)

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "copy.h"

namespace reprise {
namespace {

using Clock = std::chrono::steady_clock;

// Told messages to one rank that wait for room; after that only the latest news of each rank are kept.
constexpr uint32_t kMaxSending = 64;
constexpr auto kEndLimit = std::chrono::milliseconds(250);
constexpr auto kLookEvery = std::chrono::milliseconds(10);

std::string Seconds(std::chrono::nanoseconds time) {
  const auto tenths = std::chrono::duration_cast<std::chrono::milliseconds>(time).count() / 100;
  return std::to_string(tenths / 10) + "." + std::to_string(tenths % 10) + " s";
}

}  // namespace

NetworkClient::NetworkClient(const UcxLibrary& library, const NetworkOptions& options, const Layout& layout,
                             NewsBoard& board, std::function<void()> unfinished)
    : library_(library),
      options_(options),
      board_(board),
      unfinished_(std::move(unfinished)),
      wake_(MakeEventDescriptor()),
      peers_(options.world_size),
      reads_(worker_, options, layout, board, [this](uint32_t rank) { Broken(rank); }),
      worker_(library, options.devices, options.transports, options.reads) {
  for (size_t field = 0; field < layout.num_fields(); ++field) record_bytes_ += layout.field_bytes(field);
  for (uint32_t rank = 0; rank < peers_.size(); ++rank) {
    peers_[rank].client = this;
    peers_[rank].rank = rank;
  }
  worker_.Handle(wire::kReply, OnReply, this);
}

NetworkClient::~NetworkClient() { close(wake_); }

void NetworkClient::Connect(uint32_t rank, std::string server, Window window) {
  const std::lock_guard lock(mutex_);
  peers_[rank].address = std::move(server);
  reads_.Connect(rank, std::move(window));
}

std::vector<std::string> NetworkClient::describe() const {
  const std::lock_guard lock(mutex_);
  std::vector<std::string> lines;
  for (const Peer& peer : peers_) {
    if (!peer.endpoint) continue;
    lines.push_back("rank " + std::to_string(peer.rank) + ": " + worker_.Transports(peer.endpoint) +
                    reads_.Describe(peer.rank));
  }
  return lines;
}

// ---- sending

void NetworkClient::Tell(uint32_t rank, std::span<const News> news) {
  bool unfinished;
  {
    const std::lock_guard lock(mutex_);
    Peer& peer = peers_[rank];
    if (!Reach(peer)) return;
    if (peer.sending < kMaxSending && peer.owed.empty()) {
      SendNews(peer, news);
    } else {
      Owe(peer, news);
    }
    unfinished = Unfinished();
  }
  if (unfinished) unfinished_();
}

void NetworkClient::SendNews(Peer& peer, std::span<const News> news) {
  Message& message = NewMessage(peer, sizeof(wire::Tell) + news.size_bytes());
  const wire::Tell head{options_.key, options_.rank, static_cast<uint32_t>(news.size())};
  std::memcpy(message.bytes.data(), &head, sizeof(head));
  if (!news.empty()) std::memcpy(message.bytes.data() + sizeof(head), news.data(), news.size_bytes());
  peer.told = true;
  Send(message, wire::kTell);
}

void NetworkClient::Owe(Peer& peer, std::span<const News> news) {
  if (news.empty()) return;
  owing_ += peer.owed.empty();
  for (const News& one : news) {
    const auto found =
        std::find_if(peer.owed.begin(), peer.owed.end(), [&](const News& other) { return other.rank == one.rank; });
    if (found == peer.owed.end()) {
      peer.owed.push_back(one);
    } else {
      *found = one;
    }
  }
}

void NetworkClient::PayOwed() {
  if (owing_ == 0) return;
  for (Peer& peer : peers_) {
    if (peer.owed.empty() || (!peer.broken && peer.sending >= kMaxSending)) continue;
    --owing_;
    if (!peer.broken) SendNews(peer, peer.owed);
    peer.owed.clear();
  }
}

void NetworkClient::Request(uint32_t rank, std::span<const uint32_t> slots, std::span<const Network::Target> targets,
                            const News& own) {
  const std::lock_guard lock(mutex_);
  if (asked_before_.empty()) asked_before_.push_back(std::make_unique<Asked>());
  Asked& asked = *asked_before_.back();
  asked.targets.assign(targets.begin(), targets.end());
  asked.ends.clear();
  uint64_t bytes = 0;
  for (const Network::Target& target : targets) asked.ends.push_back(bytes += target.bytes);
  if (bytes != slots.size() * (sizeof(ReplyHead) + record_bytes_)) {
    throw std::invalid_argument("targets of " + std::to_string(bytes) + " bytes for " + std::to_string(slots.size()) +
                                " samples of " + std::to_string(record_bytes_) + " bytes");
  }
  Peer& peer = peers_[rank];
  if (!Reach(peer)) {
    lost_ = true;
    return;
  }
  const auto deadline = Clock::now() + options_.limit;
  if (reads_.is_open(rank)) {
    // A goodbye that has come meanwhile is heard before the connection is found to be broken.
    while (worker_.Progress()) {
    }
    if (!peer.told && !peer.broken) SendNews(peer, {&own, 1});
    if (peer.broken) {
      lost_ = true;
      return;
    }
    return reads_.Begin(rank, slots, targets, deadline);
  }
  asked.id = ++last_id_;
  asked.rank = rank;
  asked.received = 0;
  asked.deadline = deadline;
  asked_.push_back(std::move(asked_before_.back()));
  asked_before_.pop_back();
  Message& message = NewMessage(peer, sizeof(wire::Request) + slots.size_bytes());
  const wire::Request head{options_.key, asked.id, options_.rank, static_cast<uint32_t>(slots.size()), own};
  std::memcpy(message.bytes.data(), &head, sizeof(head));
  if (!slots.empty()) std::memcpy(message.bytes.data() + sizeof(head), slots.data(), slots.size_bytes());
  Send(message, wire::kRequest);
}

bool NetworkClient::Reach(Peer& peer) {
  if (peer.rank == options_.rank) throw std::invalid_argument("a rank does not ask itself");
  if (board_.has_failed(peer.rank) || peer.broken) return false;
  if (peer.endpoint) return true;
  if (peer.address.empty()) throw std::invalid_argument("rank " + std::to_string(peer.rank) + " has no address yet");
  const SignalsBlocked blocked;  // UCX may start a thread
  peer.endpoint = worker_.Connect(peer.address, OnBroken, &peer);
  if (peer.endpoint) {
    reads_.Open(peer.rank, peer.endpoint);
  } else {
    Fail(peer.rank, Counters::kBroken, "its address cannot be reached from here");
  }
  return peer.endpoint;
}

NetworkClient::Message& NetworkClient::NewMessage(Peer& peer, uint64_t bytes) {
  if (messages_.empty()) messages_.push_back(std::make_unique<Message>());
  Message* const message = messages_.back().release();
  messages_.pop_back();
  message->client = this;
  message->peer = &peer;
  message->bytes.resize(bytes);
  return *message;
}

void NetworkClient::Send(Message& message, unsigned id) {
  Peer& peer = *message.peer;
  messages_sent_.fetch_add(1, std::memory_order_relaxed);
  bytes_sent_.fetch_add(message.bytes.size(), std::memory_order_relaxed);
  ucs_status_ptr_t const request = worker_.Send(peer.endpoint, id, {}, message.bytes, OnSent, &message);
  if (UCS_PTR_IS_PTR(request)) {
    ++sending_;
    ++peer.sending;
    return;
  }
  messages_.emplace_back(&message);
  if (UCS_PTR_IS_ERR(request)) {
    Doubt(peer.rank, "sending failed: " + library_.Text(UCS_PTR_STATUS(request)));
  }
}

void NetworkClient::OnSent(void* request, ucs_status_t, void* arg) {
  Message* const message = static_cast<Message*>(arg);
  NetworkClient& client = *message->client;
  --client.sending_;
  --message->peer->sending;
  client.messages_.emplace_back(message);
  client.library_.request_free(request);
}

// ---- receiving

ucs_status_t NetworkClient::OnReply(void* arg, const void* header, size_t header_bytes, void* data, size_t bytes,
                                    const ucp_am_recv_param_t* param) {
  NetworkClient& client = *static_cast<NetworkClient*>(arg);
  if ((param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) || header_bytes != sizeof(wire::Reply)) return UCS_OK;
  const auto reply = wire::Read<wire::Reply>(header);
  if (reply.key != client.options_.key || reply.rank >= client.peers_.size() || reply.own.rank != reply.rank) {
    return UCS_OK;
  }
  client.bytes_received_.fetch_add(header_bytes + bytes, std::memory_order_relaxed);
  client.Deliver(reply, static_cast<const std::byte*>(data), bytes);
  return UCS_OK;
}

NetworkClient::Asked* NetworkClient::Find(const wire::Reply& reply) {
  for (const auto& asked : asked_) {
    if (asked->id == reply.id && asked->rank == reply.rank) return asked.get();
  }
  return nullptr;
}

void NetworkClient::Deliver(const wire::Reply& reply, const std::byte* data, uint64_t bytes) {
  board_.Learn(reply.own);
  if (reply.status == wire::kLeft) return Fail(reply.rank, Counters::kClosed, "closed");
  if (reply.status == wire::kFailed) return Fail(reply.rank, Counters::kBroken, "its rehearsal buffer has failed");
  Asked* const asked = Find(reply);
  if (!asked) return;
  if (reply.status != wire::kRecords) {
    lost_ = true;
    return;
  }
  const uint64_t total = asked->ends.empty() ? 0 : asked->ends.back();
  if (reply.offset > total || bytes > total - reply.offset) return;
  asked->received += bytes;
  size_t i = std::upper_bound(asked->ends.begin(), asked->ends.end(), reply.offset) - asked->ends.begin();
  for (uint64_t at = reply.offset; bytes > 0; ++i) {
    const Network::Target& target = asked->targets[i];
    const uint64_t part = std::min(bytes, asked->ends[i] - at);
    std::memcpy(target.begin + (target.bytes - (asked->ends[i] - at)), data, part);
    data += part;
    at += part;
    bytes -= part;
  }
  if (asked->received < total) return;
  const auto found =
      std::find_if(asked_.begin(), asked_.end(), [&](const auto& other) { return other.get() == asked; });
  asked_before_.push_back(std::move(*found));
  asked_.erase(found);
}

bool NetworkClient::Finish() {
  std::unique_lock lock(mutex_);
  const auto wanting = [&] {
    const bool going_on = !lost_ && !reads_.lost() && !stopping_.load(std::memory_order_relaxed);
    return going_on && (!asked_.empty() || !reads_.done());
  };
  for (bool idle = false; wanting();) {
    const bool progressed = worker_.Progress();
    if (reads_.Go() || progressed) {
      idle = false;
      continue;
    }
    if (Overdue()) break;
    if (!idle) {
      idle = worker_.Arm();
      continue;
    }
    Sleep();
    idle = false;
  }
  const bool complete = asked_.empty() && !lost_ && reads_.done() && !reads_.lost();
  for (auto& asked : asked_) asked_before_.push_back(std::move(asked));
  asked_.clear();
  SettleReads();
  if (!complete) AwaitVerdicts();
  lost_ = false;
  PayOwed();
  const bool unfinished = Unfinished();
  lock.unlock();
  if (unfinished) unfinished_();
  return complete;
}

bool NetworkClient::Overdue() {
  const auto now = Clock::now();
  for (const auto& asked : asked_) {
    if (now >= asked->deadline)
      Fail(asked->rank, Counters::kBroken, "it has not answered within " + Seconds(options_.limit));
  }
  for (const uint32_t rank : reads_.TakeLate(now)) {
    Fail(rank, Counters::kBroken, "it has not answered within " + Seconds(options_.limit));
  }
  return lost_;
}

void NetworkClient::SettleReads() {
  bool hurried = false;
  for (bool idle = false;;) {
    CloseBroken();
    if (!reads_.under_way()) break;
    if (!hurried && stopping_.load(std::memory_order_relaxed)) {
      hurried = true;
      reads_.Hurry(Clock::now() + kEndLimit);
    }
    if (worker_.Progress()) {
      idle = false;
      continue;
    }
    for (const uint32_t rank : reads_.TakeLate(Clock::now())) {
      if (!hurried) {
        Fail(rank, Counters::kBroken, "it has not answered within " + Seconds(options_.limit));
      } else {
        peers_[rank].broken = broken_ = true;  // nobody wants to know why
      }
    }
    if (!idle) {
      idle = worker_.Arm();
      continue;
    }
    SleepUntil(reads_.next(), !hurried);
    idle = false;
  }
  reads_.Clear();
}

void NetworkClient::AwaitVerdicts() {
  while (board_.any_in_doubt() && !stopping_.load(std::memory_order_relaxed)) {
    if (worker_.Progress()) continue;
    const auto now = Clock::now();
    const auto judge = board_.Judge(now);
    // Goodbyes come to the server as well.
    if (board_.any_in_doubt() && worker_.Arm()) SleepUntil(std::min(judge, now + kLookEvery), true);
  }
  CloseBroken();
}

void NetworkClient::Sleep() {
  auto deadline = reads_.next();
  for (const auto& asked : asked_) deadline = std::min(deadline, asked->deadline);
  SleepUntil(deadline, true);
}

void NetworkClient::SleepUntil(Clock::time_point end, bool stoppable) {
  const auto left = std::clamp<std::chrono::nanoseconds>(end - Clock::now(), {}, std::chrono::seconds(60));
  const timespec time{static_cast<time_t>(left.count() / 1'000'000'000),
                      static_cast<long>(left.count() % 1'000'000'000)};
  pollfd sources[] = {{worker_.descriptor(), POLLIN, 0}, {wake_, POLLIN, 0}};
  ppoll(sources, stoppable ? 2 : 1, &time, nullptr);
}

void NetworkClient::Stop() {
  stopping_.store(true, std::memory_order_relaxed);
  eventfd_write(wake_, 1);  // never read: it wakes all later ones, too
}

// ---- failures, and the end

void NetworkClient::OnBroken(void* arg, ucp_ep_h, ucs_status_t status) {
  Peer& peer = *static_cast<Peer*>(arg);
  NetworkClient& client = *peer.client;
  client.Doubt(peer.rank, "the connection is broken: " + client.library_.Text(status));
}

void NetworkClient::Fail(uint32_t rank, Counters::State state, const std::string& reason) {
  board_.Fail(rank, state, reason);
  Broken(rank);
}

void NetworkClient::Doubt(uint32_t rank, const std::string& reason) {
  board_.Doubt(rank, reason);
  Broken(rank);
}

void NetworkClient::Broken(uint32_t rank) {
  Peer& peer = peers_[rank];
  if (peer.endpoint) peer.broken = broken_ = true;
  for (const auto& asked : asked_) lost_ |= asked->rank == rank;
  lost_ |= reads_.is_reading(rank);
}

void NetworkClient::CloseBroken() {
  if (!std::exchange(broken_, false)) return;
  for (Peer& peer : peers_) {
    if (!peer.broken || !peer.endpoint) continue;
    reads_.Close(peer.rank);
    worker_.Close(std::exchange(peer.endpoint, nullptr));
  }
}

int NetworkClient::Advance() {
  const std::unique_lock lock(mutex_, std::try_to_lock);
  if (!lock) return -1;
  for (;;) {
    while (worker_.Progress()) {
    }
    PayOwed();
    CloseBroken();
    if (!Unfinished()) return -1;
    if (worker_.Arm()) return worker_.descriptor();
  }
}

void NetworkClient::End(const News& own) {
  const std::lock_guard lock(mutex_);
  for (Peer& peer : peers_) {
    if (!peer.endpoint || peer.broken || board_.has_failed(peer.rank)) continue;
    SendNews(peer, {&own, 1});
  }
  worker_.ProgressWhile([&] { return sending_ > 0; }, kEndLimit);
  for (Peer& peer : peers_) {
    if (!peer.endpoint) continue;
    reads_.Close(peer.rank);
    worker_.Close(std::exchange(peer.endpoint, nullptr));
  }
  worker_.ProgressWhile([&] { return sending_ > 0 || worker_.closing(); }, kEndLimit);
}

Network::Traffic NetworkClient::traffic() const {
  return {messages_sent_.load(std::memory_order_relaxed) + reads_.num_reads(),
          bytes_sent_.load(std::memory_order_relaxed),
          bytes_received_.load(std::memory_order_relaxed) + reads_.num_bytes()};
}

}  // namespace reprise

#endif
