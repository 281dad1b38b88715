#include "network_server.h"

#if defined(REPRISE_HAVE_UCX)

#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <numeric>
#include <stdexcept>

#include "network_reads.h"

namespace reprise {
namespace {

// Gathered in one go, unless a record is longer.
constexpr uint64_t kSegmentBytes = 256 << 10;
// To one rank at a time; what the kernel takes in at once does not count.
constexpr uint32_t kMaxSending = 4;
// Kept for later.
constexpr size_t kKeptSegments = 8;
// A rank asks once per step. More than so many unanswered requests are not its engine's.
constexpr size_t kMaxJobs = 64;
constexpr uint32_t kMaxSlots = 1 << 20;
// A record is being written for about as long as the copy of a batch takes.
constexpr auto kPause = std::chrono::microseconds(20);
constexpr auto kEndLimit = std::chrono::milliseconds(250);

wire::Status StatusOf(Counters::State state) {
  return state == Counters::kOpen ? wire::kRecords : state == Counters::kClosed ? wire::kLeft : wire::kFailed;
}

std::span<const std::byte> Bytes(const wire::Reply& reply) { return std::as_bytes(std::span(&reply, 1)); }

}  // namespace

NetworkServer::NetworkServer(const UcxLibrary& library, const NetworkOptions& options, const Layout& layout,
                             const Shard& own, NewsBoard& board)
    : library_(library),
      options_(options),
      layout_(layout),
      own_(own),
      board_(board),
      wake_(MakeEventDescriptor()),
      peers_(options.world_size),
      worker_(library, options.devices, options.transports, options.reads) {
  for (size_t field = 0; field < layout.num_fields(); ++field) {
    offsets_.push_back(record_bytes_);
    record_bytes_ += layout.field_bytes(field);
  }
  for (uint32_t rank = 0; rank < peers_.size(); ++rank) {
    peers_[rank].server = this;
    peers_[rank].rank = rank;
  }
  worker_.Handle(wire::kRequest, OnRequest, this);
  worker_.Handle(wire::kTell, OnTell, this);
  if (worker_.reads()) Offer();
}

NetworkServer::~NetworkServer() { close(wake_); }

void NetworkServer::Offer() {
  if (!options_.may_pin) {
    why_no_window_ = "its samples are in a file, which is not to be kept in memory";
    return;
  }
  Counters& counters = own_.counters();
  auto* const begin = reinterpret_cast<std::byte*>(&counters);
  try {
    memory_ = std::make_unique<UcxMemory>(worker_, begin, Shard::Bytes(layout_, own_.share()));
    const auto base = static_cast<uint64_t>(reinterpret_cast<uintptr_t>(begin));
    window_ = Window{base, counters.token(), own_.share(), memory_->key()}.Pack();
  } catch (const std::runtime_error& error) {
    why_no_window_ = error.what();
  }
}

void NetworkServer::Start(std::function<int()> advance) {
  advance_ = std::move(advance);
  const SignalsBlocked blocked;
  thread_ = std::thread([this] { Loop(); });
  pthread_setname_np(thread_.native_handle(), "reprise-network");
}

void NetworkServer::Connect(uint32_t rank, std::string client) {
  {
    const std::lock_guard lock(mutex_);
    addresses_.emplace_back(rank, std::move(client));
  }
  Wake();
}

void NetworkServer::Wake() { eventfd_write(wake_, 1); }

void NetworkServer::Loop() {
  // As the engine's thread (engine.cc): training goes on where cores are scarce.
  const sched_param no_priority{};
  pthread_setschedparam(pthread_self(), SCHED_BATCH, &no_priority);
  int other = -1;
  while (!stopping_.load(std::memory_order_relaxed)) {
    const bool progressed = worker_.Progress();
    CloseBroken();
    if (Work() || progressed || !worker_.Arm()) continue;
    pollfd sources[] = {{wake_, POLLIN, 0}, {worker_.descriptor(), POLLIN, 0}, {other, POLLIN, 0}};
    const auto now = NewsBoard::Clock::now();
    const auto judge = board_.Judge(now);
    const bool forever = judge == NewsBoard::Clock::time_point::max();
    const auto left = forever ? -1 : std::chrono::ceil<std::chrono::milliseconds>(judge - now).count();
    if (poll(sources, std::size(sources), static_cast<int>(left)) <= 0) continue;
    if (sources[0].revents) {
      eventfd_t ignored;
      eventfd_read(wake_, &ignored);
      TakeAddresses();
    }
    if (sources[0].revents || sources[2].revents) other = advance_();
  }
}

void NetworkServer::TakeAddresses() {
  const std::lock_guard lock(mutex_);
  for (auto& [rank, address] : addresses_) peers_[rank].address = std::move(address);
  addresses_.clear();
}

// ---- receiving

ucs_status_t NetworkServer::OnRequest(void* arg, const void*, size_t header_bytes, void* data, size_t bytes,
                                      const ucp_am_recv_param_t* param) {
  NetworkServer& server = *static_cast<NetworkServer*>(arg);
  if ((param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) || header_bytes != 0 || bytes < sizeof(wire::Request)) {
    return UCS_OK;
  }
  const auto request = wire::Read<wire::Request>(data);
  if (request.key != server.options_.key || request.rank >= server.peers_.size() ||
      request.rank == server.options_.rank || request.own.rank != request.rank || request.num_slots > kMaxSlots ||
      bytes != sizeof(request) + uint64_t{request.num_slots} * sizeof(uint32_t)) {
    return UCS_OK;
  }
  Peer& peer = server.peers_[request.rank];
  if (peer.broken || peer.jobs.size() >= kMaxJobs) return UCS_OK;
  if (server.jobs_.empty()) server.jobs_.push_back(std::make_unique<Job>());
  Job& job = *server.jobs_.back();
  job.slots.resize(request.num_slots);
  if (request.num_slots) {
    std::memcpy(job.slots.data(), static_cast<const std::byte*>(data) + sizeof(request), bytes - sizeof(request));
  }
  const auto last = std::max_element(job.slots.begin(), job.slots.end());
  if (last != job.slots.end() && *last >= server.own_.share()) return UCS_OK;
  server.bytes_received_.fetch_add(bytes, std::memory_order_relaxed);
  job.id = request.id;
  job.status = StatusOf(server.own_.counters().state());
  if (job.status == wire::kRecords && last != job.slots.end() && *last >= server.own_.counters().fill().stored) {
    job.status = wire::kMissing;
  }
  job.next = 0;
  job.heads.clear();
  peer.jobs.push_back(std::move(server.jobs_.back()));
  server.jobs_.pop_back();
  server.Activate(peer);
  server.board_.Learn(request.own);
  return UCS_OK;
}

ucs_status_t NetworkServer::OnTell(void* arg, const void*, size_t header_bytes, void* data, size_t bytes,
                                   const ucp_am_recv_param_t* param) {
  NetworkServer& server = *static_cast<NetworkServer*>(arg);
  if ((param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) || header_bytes != 0 || bytes < sizeof(wire::Tell)) {
    return UCS_OK;
  }
  const auto tell = wire::Read<wire::Tell>(data);
  if (tell.key != server.options_.key || tell.rank >= server.peers_.size() || tell.rank == server.options_.rank ||
      bytes != sizeof(tell) + uint64_t{tell.num_news} * sizeof(News)) {
    return UCS_OK;
  }
  server.bytes_received_.fetch_add(bytes, std::memory_order_relaxed);
  const auto* const news = static_cast<const std::byte*>(data) + sizeof(tell);
  for (uint32_t i = 0; i < tell.num_news; ++i) server.board_.Learn(wire::Read<News>(news + i * sizeof(News)));
  server.Activate(server.peers_[tell.rank]);
  return UCS_OK;
}

void NetworkServer::Activate(Peer& peer) {
  if (peer.active || peer.broken || (peer.jobs.empty() && peer.endpoint)) return;
  peer.active = true;
  active_.push_back(&peer);
}

// ---- answering

bool NetworkServer::Work() {
  bool any = false;
  for (size_t i = 0; i < active_.size();) {
    Peer& peer = *active_[i];
    // Also without anything to send: it is by its endpoint that the end of a rank is noticed.
    if (Reach(peer) && !peer.jobs.empty() && peer.sending < kMaxSending) {
      Answer(peer);
      any = true;
    }
    if (peer.broken || (peer.endpoint && peer.jobs.empty())) {
      peer.active = false;
      active_[i] = active_.back();
      active_.pop_back();
    } else {
      ++i;
    }
  }
  return any;
}

bool NetworkServer::Reach(Peer& peer) {
  if (peer.broken) return false;
  if (peer.endpoint) return true;
  if (peer.address.empty()) return false;  // it has been quicker than whoever gives us its address
  peer.endpoint = worker_.Connect(peer.address, OnBroken, &peer);
  if (!peer.endpoint) {
    peer.broken = broken_ = true;
    board_.Fail(peer.rank, Counters::kBroken, "its address cannot be reached from here");
  }
  return peer.endpoint;
}

void NetworkServer::Answer(Peer& peer) {
  Job& job = *peer.jobs.front();
  const wire::Reply reply{options_.key, job.id, 0, options_.rank, job.status, NewsOf(options_.rank, own_.counters())};
  const size_t left = job.status == wire::kRecords ? job.slots.size() - job.next : 0;
  const size_t count = std::min<size_t>(left, std::max<uint64_t>(1, kSegmentBytes / record_bytes_));
  const bool last = count == left;
  // The heads lie before all records, and are known when the last one is gathered.
  const uint64_t head_bytes = left && last ? job.slots.size() * sizeof(ReplyHead) : 0;
  const uint64_t first_record = job.slots.size() * sizeof(ReplyHead) + job.next * record_bytes_;
  Segment& segment = NewSegment(peer, head_bytes + count * record_bytes_);
  if (!Gather(job, count, segment.bytes.get() + head_bytes)) return Release(&segment);
  if (head_bytes) std::memcpy(segment.bytes.get(), job.heads.data(), head_bytes);
  wire::Reply part = reply;
  if (head_bytes == 0 || first_record == head_bytes) {
    part.offset = head_bytes || !left ? 0 : first_record;
    AddMessages(segment, part, head_bytes + count * record_bytes_);
  } else {
    AddMessages(segment, part, head_bytes);
    part.offset = first_record;
    AddMessages(segment, part, count * record_bytes_);
  }
  job.next += count;
  if (last) {
    jobs_.push_back(std::move(peer.jobs.front()));
    peer.jobs.erase(peer.jobs.begin());
  }
  Send(segment);
}

bool NetworkServer::Gather(Job& job, size_t count, std::byte* records) {
  job.heads.resize(job.next + count);
  todo_.resize(count);
  std::iota(todo_.begin(), todo_.end(), job.next);
  for (;;) {
    again_.clear();
    versions_.clear();
    pieces_.clear();
    size_t kept = 0;
    for (const size_t i : todo_) {
      const uint32_t version = own_.BeginRead(job.slots[i]);
      if (version % 2) {
        again_.push_back(i);
        continue;
      }
      versions_.push_back(version);
      todo_[kept++] = i;
      const auto* const record = reinterpret_cast<const std::byte*>(&own_.record(job.slots[i]));
      for (size_t field = 0; field < layout_.num_fields(); ++field) {
        AddPieces(pieces_, records + (i - job.next) * record_bytes_ + offsets_[field],
                  record + layout_.field_offset(field), layout_.field_bytes(field));
      }
    }
    todo_.resize(kept);
    CopyPieces(pieces_, Store::kCached);
    for (const size_t i : todo_) {
      const RecordHeader& header = own_.record(job.slots[i]);
      job.heads[i] = {header.label, header.task, own_.InverseInclusion(header.stratum)};
    }
    Shard::EndReads();
    for (size_t i = 0; i < todo_.size(); ++i) {
      if (!own_.Unchanged(job.slots[todo_[i]], versions_[i])) again_.push_back(todo_[i]);
    }
    if (again_.empty()) return true;
    if (stopping_.load(std::memory_order_relaxed)) return false;
    todo_.swap(again_);
    std::this_thread::sleep_for(kPause);
  }
}

// ---- sending

NetworkServer::Segment& NetworkServer::NewSegment(Peer& peer, uint64_t bytes) {
  if (segments_.empty()) segments_.push_back(std::make_unique<Segment>());
  Segment& segment = *segments_.back().release();
  segments_.pop_back();
  segment.server = this;
  segment.peer = &peer;
  segment.sending = 1;  // until Send is through with it
  segment.messages.clear();
  ++peer.sending;
  ++sending_;
  if (segment.capacity < bytes) {
    segment.bytes = std::make_unique_for_overwrite<std::byte[]>(bytes);
    segment.capacity = bytes;
  }
  return segment;
}

void NetworkServer::AddMessages(Segment& segment, const wire::Reply& reply, uint64_t bytes) {
  wire::Reply part = reply;
  do {
    const uint64_t some = std::min(bytes, wire::kMessageBytes);
    segment.messages.push_back({part, some, &segment});
    part.offset += some;
    bytes -= some;
  } while (bytes > 0);
}

void NetworkServer::Send(Segment& segment) {
  const std::byte* data = segment.bytes.get();
  for (Segment::Message& message : segment.messages) {
    if (segment.peer->broken) break;
    messages_sent_.fetch_add(1, std::memory_order_relaxed);
    bytes_sent_.fetch_add(sizeof(wire::Reply) + message.bytes, std::memory_order_relaxed);
    ucs_status_ptr_t const request = worker_.Send(segment.peer->endpoint, wire::kReply, Bytes(message.reply),
                                                  {data, message.bytes}, OnSent, &message);
    data += message.bytes;
    if (UCS_PTR_IS_PTR(request)) {
      ++segment.sending;
    } else if (UCS_PTR_IS_ERR(request)) {
      OnBroken(segment.peer, segment.peer->endpoint, UCS_PTR_STATUS(request));
    }
  }
  Release(&segment);
}

void NetworkServer::OnSent(void* request, ucs_status_t, void* arg) {
  Segment* const segment = static_cast<Segment::Message*>(arg)->segment;
  segment->server->library_.request_free(request);
  segment->server->Release(segment);
}

void NetworkServer::Release(Segment* segment) {
  if (--segment->sending > 0) return;
  --segment->peer->sending;
  --sending_;
  segments_.emplace_back(segment);
  if (segments_.size() > kKeptSegments) segments_.pop_back();
}

// ---- failures, and the end

void NetworkServer::OnBroken(void* arg, ucp_ep_h, ucs_status_t status) {
  Peer& peer = *static_cast<Peer*>(arg);
  NetworkServer& server = *peer.server;
  peer.broken = server.broken_ = true;
  server.board_.Doubt(peer.rank, "the connection is broken: " + server.library_.Text(status));
}

void NetworkServer::CloseBroken() {
  if (!std::exchange(broken_, false)) return;
  for (Peer& peer : peers_) {
    if (!peer.broken) continue;
    for (auto& job : peer.jobs) jobs_.push_back(std::move(job));
    peer.jobs.clear();
    if (peer.endpoint) worker_.Close(std::exchange(peer.endpoint, nullptr));
  }
}

void NetworkServer::End(const News& own) {
  stopping_.store(true, std::memory_order_relaxed);
  Wake();
  if (thread_.joinable()) thread_.join();
  CloseBroken();
  const wire::Status status = own.state == Counters::kBroken ? wire::kFailed : wire::kLeft;
  for (Peer& peer : peers_) {
    if (!peer.endpoint) continue;
    Segment& segment = NewSegment(peer, 0);
    AddMessages(segment, {options_.key, 0, 0, options_.rank, status, own}, 0);
    Send(segment);
  }
  if (memory_) {
    // Whoever reads the shard must have heard it before the shard goes: with hardware, to have sent it is not enough.
    worker_.Flush(kEndLimit);
  } else {
    worker_.ProgressWhile([&] { return sending_ > 0; }, kEndLimit);
  }
  for (Peer& peer : peers_) {
    if (peer.endpoint) worker_.Close(std::exchange(peer.endpoint, nullptr));
  }
  worker_.ProgressWhile([&] { return sending_ > 0 || worker_.closing(); }, kEndLimit);
  memory_.reset();
}

Network::Traffic NetworkServer::traffic() const {
  return {messages_sent_.load(std::memory_order_relaxed), bytes_sent_.load(std::memory_order_relaxed),
          bytes_received_.load(std::memory_order_relaxed)};
}

}  // namespace reprise

#endif
