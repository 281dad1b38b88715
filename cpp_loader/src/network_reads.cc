#include "network_reads.h"

#if defined(REPRISE_HAVE_UCX)

#include <algorithm>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <utility>

namespace reprise {
namespace {

// A record is being written for about as long as the copy of a batch takes.
constexpr auto kPause = std::chrono::microseconds(20);
// For reads to come to their end when their connection is closed.
constexpr auto kEndLimit = std::chrono::milliseconds(250);

struct WindowHead {
  uint64_t check;
  uint64_t base;
  uint64_t token;
  uint32_t share;
  uint32_t key_bytes;
};

// Fowler, Noll and Vo, FNV-1a.
uint64_t CheckOf(std::string_view bytes) {
  uint64_t check = 0xCBF29CE484222325;
  for (const char byte : bytes) check = (check ^ static_cast<unsigned char>(byte)) * 0x100000001B3;
  return check;
}

}  // namespace

std::string Window::Pack() const {
  if (key.empty()) return "";
  WindowHead head{0, base, token, share, static_cast<uint32_t>(key.size())};
  std::string packed(reinterpret_cast<const char*>(&head), sizeof(head));
  packed += key;
  head.check = CheckOf(std::string_view(packed).substr(sizeof(head.check)));
  std::memcpy(packed.data(), &head.check, sizeof(head.check));
  return packed;
}

Window Window::Unpack(std::string_view packed) {
  if (packed.empty()) return {};
  WindowHead head{};
  if (packed.size() > sizeof(head)) std::memcpy(&head, packed.data(), sizeof(head));
  if (packed.size() <= sizeof(head) || head.key_bytes != packed.size() - sizeof(head) ||
      head.check != CheckOf(packed.substr(sizeof(head.check)))) {
    throw std::invalid_argument("no key to memory: " + std::to_string(packed.size()) + " bytes");
  }
  return {head.base, head.token, head.share, std::string(packed.substr(sizeof(head)))};
}

NetworkReads::NetworkReads(UcxWorker& worker, const NetworkOptions& options, const Layout& layout, NewsBoard& board,
                           Broken broken)
    : worker_(worker),
      options_(options),
      layout_(layout),
      board_(board),
      broken_(std::move(broken)),
      remotes_(options.world_size) {
  for (size_t field = 0; field < layout.num_fields(); ++field) {
    offsets_.push_back(record_bytes_);
    record_bytes_ += layout.field_bytes(field);
  }
}

NetworkReads::~NetworkReads() = default;

// ---- which ranks are read

void NetworkReads::Connect(uint32_t rank, Window window) { remotes_[rank].window = std::move(window); }

void NetworkReads::Open(uint32_t rank, ucp_ep_h endpoint) {
  if (!worker_.reads()) return;
  Remote& remote = remotes_[rank];
  if (options_.reads != Reads::kGet && !ReadsNatively(worker_.Transports(endpoint))) return;
  if (remote.window.key.empty()) {
    remote.note = ", by request: it offers no memory";
    return;
  }
  const UcxLibrary& library = worker_.library();
  const ucs_status_t status = library.ep_rkey_unpack(endpoint, remote.window.key.data(), &remote.key);
  if (status != UCS_OK) {
    remote.note = ", by request: its key was refused: " + library.Text(status);
    return;
  }
  remote.endpoint = endpoint;
  remote.note = ", its memory is read";
}

void NetworkReads::Close(uint32_t rank) {
  Remote& remote = remotes_[rank];
  if (!std::exchange(remote.endpoint, nullptr)) return;
  // UCX wants a key to go when nothing uses it any more, and before its endpoint. Where reads are under way, which only
  // closing the endpoint ends, the former comes first: a key is the worker's.
  if (remote.under_way == 0) DestroyKey(remote);
  const auto end = Clock::now() + kEndLimit;
  for (const auto& read : reads_) {
    if (read->rank == rank) read->deadline = end;
  }
}

void NetworkReads::DestroyKey(Remote& remote) {
  if (remote.key) worker_.library().rkey_destroy(std::exchange(remote.key, nullptr));
}

std::string NetworkReads::Describe(uint32_t rank) const { return remotes_[rank].note; }

// ---- reading

void NetworkReads::Begin(uint32_t rank, std::span<const uint32_t> slots, std::span<const Network::Target> targets,
                         Clock::time_point deadline) {
  const uint32_t share = remotes_[rank].window.share;
  if (std::any_of(slots.begin(), slots.end(), [&](uint32_t slot) { return slot >= share; })) {
    lost_ = true;
    return;
  }
  if (reads_before_.empty()) reads_before_.push_back(std::make_unique<Read>());
  reads_.push_back(std::move(reads_before_.back()));
  reads_before_.pop_back();
  Read& read = *reads_.back();
  read.reads = this;
  read.rank = rank;
  read.slots.assign(slots.begin(), slots.end());
  read.targets.assign(targets.begin(), targets.end());
  read.ends.clear();
  uint64_t bytes = 0;
  for (const Network::Target& target : targets) read.ends.push_back(bytes += target.bytes);
  read.records.resize(slots.size());
  read.todo.resize(slots.size());
  std::iota(read.todo.begin(), read.todo.end(), 0);
  read.phase = Phase::kBegin;
  read.over = false;
  read.deadline = deadline;
  read.not_before = Clock::time_point::min();
  Step(read);
}

void NetworkReads::Get(Read& read, void* target, uint64_t offset, uint64_t bytes) {
  Remote& remote = remotes_[read.rank];
  if (!remote.endpoint || is_over(read)) return;
  num_reads_.fetch_add(1, std::memory_order_relaxed);
  num_bytes_.fetch_add(bytes, std::memory_order_relaxed);
  ucs_status_ptr_t const request =
      worker_.Get(remote.endpoint, remote.key, target, remote.window.base + offset, bytes, OnRead, &read);
  if (UCS_PTR_IS_PTR(request)) {
    ++read.under_way;
    ++remote.under_way;
  } else if (UCS_PTR_IS_ERR(request)) {
    Doubt(read, "reading failed: " + worker_.library().Text(UCS_PTR_STATUS(request)));
  }
}

void NetworkReads::OnRead(void* request, ucs_status_t status, void* arg) {
  Read& read = *static_cast<Read*>(arg);
  NetworkReads& reads = *read.reads;
  Remote& remote = reads.remotes_[read.rank];
  reads.worker_.library().request_free(request);
  --read.under_way;
  if (--remote.under_way == 0 && !remote.endpoint) reads.DestroyKey(remote);
  if (status != UCS_OK) reads.Doubt(read, "reading failed: " + reads.worker_.library().Text(status));
}

bool NetworkReads::Go() {
  bool any = false;
  for (size_t i = 0; i < reads_.size();) {
    Read& read = *reads_[i];
    any |= Step(read);
    lost_ |= is_over(read);
    if (read.phase != Phase::kComplete) {
      ++i;
      continue;
    }
    reads_before_.push_back(std::move(reads_[i]));
    reads_[i] = std::move(reads_.back());
    reads_.pop_back();
  }
  return any;
}

bool NetworkReads::Step(Read& read) {
  if (read.under_way || is_over(read)) return false;
  switch (read.phase) {
    case Phase::kBegin:
      if (Clock::now() < read.not_before) return false;
      StartVersions(read);
      return true;
    case Phase::kVersions:
      StartContents(read);
      return true;
    case Phase::kContents:
      StartVersionsAgain(read);
      return true;
    case Phase::kVersionsAgain:
      Conclude(read);
      return true;
    case Phase::kComplete:
      break;
  }
  return false;
}

uint64_t NetworkReads::RecordAt(const Read& read, uint32_t i) const {
  return Shard::RecordAt(layout_, remotes_[read.rank].window.share, read.slots[i]);
}

void NetworkReads::StartVersions(Read& read) {
  read.phase = Phase::kVersions;
  GetCounters(read, 0);
  for (const uint32_t i : read.todo) Get(read, &read.records[i].before, RecordAt(read, i), sizeof(Version));
}

void NetworkReads::StartContents(Read& read) {
  read.phase = Phase::kContents;
  read.again.clear();
  GetCounters(read, 1);
  const uint32_t share = remotes_[read.rank].window.share;
  const uint64_t heads_bytes = read.slots.size() * sizeof(ReplyHead);
  size_t kept = 0;
  for (const uint32_t i : read.todo) {
    Record& record = read.records[i];
    // A stratum that cannot be is one that is just being written.
    if (record.before.version % 2 || record.before.stratum >= share) {
      read.again.push_back(i);
      continue;
    }
    read.todo[kept++] = i;
    const uint64_t at = RecordAt(read, i);
    Get(read, &record.header, at, sizeof(RecordHeader));
    Get(read, &record.inverse_inclusion, Shard::InverseInclusionAt(record.before.stratum), sizeof(double));
    for (size_t field = 0; field < offsets_.size(); ++field) {
      uint64_t from = at + layout_.field_offset(field);
      ForTargets(read, heads_bytes + i * record_bytes_ + offsets_[field], layout_.field_bytes(field),
                 [&](std::byte* target, uint64_t bytes) {
                   Get(read, target, from, bytes);
                   from += bytes;
                 });
    }
  }
  read.todo.resize(kept);
}

void NetworkReads::StartVersionsAgain(Read& read) {
  read.phase = Phase::kVersionsAgain;
  GetCounters(read, 2);
  for (const uint32_t i : read.todo) Get(read, &read.records[i].after, RecordAt(read, i), sizeof(Version));
}

void NetworkReads::Conclude(Read& read) {
  const Counters &before = read.counters[0].get(), &during = read.counters[1].get(), &after = read.counters[2].get();
  const uint64_t token = remotes_[read.rank].window.token;
  if (before.token() != token || after.token() != token) return Doubt(read, "its memory does not hold its samples");
  if (before.state() != Counters::kOpen) return Left(read, before.state());
  if (after.state() != Counters::kOpen) return Left(read, after.state());
  // Each word is right for some moment of this; both are for the same one where the version has held.
  const Fill fill = during.FillOf(before.fill_version());
  const bool held = before.fill_version() == after.fill_version();
  // The stamps are older than the fill, as in NewsOf.
  if (held) board_.Learn({read.rank, Counters::kOpen, fill, before.inserted(), before.fetched()});
  if (std::any_of(read.slots.begin(), read.slots.end(), [&](uint32_t slot) { return slot >= fill.stored; })) {
    // Whoever makes another plan has to know how much there is, so that is to be read first.
    if (held) {
      read.over = true;
      return;
    }
    read.again.insert(read.again.end(), read.todo.begin(), read.todo.end());
  } else {
    for (const uint32_t i : read.todo) {
      const Record& record = read.records[i];
      const bool whole =
          record.after.version == record.before.version && record.header.stratum == record.before.stratum;
      if (!whole) read.again.push_back(i);
    }
  }
  if (read.again.empty()) return Deliver(read);
  read.todo.swap(read.again);
  read.phase = Phase::kBegin;
  read.not_before = Clock::now() + kPause;
}

void NetworkReads::Deliver(Read& read) {
  for (size_t i = 0; i < read.records.size(); ++i) {
    const Record& record = read.records[i];
    const ReplyHead head{record.header.label, record.header.task, record.inverse_inclusion};
    const auto* from = reinterpret_cast<const std::byte*>(&head);
    ForTargets(read, i * sizeof(head), sizeof(head), [&](std::byte* target, uint64_t bytes) {
      std::memcpy(target, from, bytes);
      from += bytes;
    });
  }
  read.phase = Phase::kComplete;
}

template <typename Part>
void NetworkReads::ForTargets(const Read& read, uint64_t offset, uint64_t bytes, Part part) const {
  size_t i = std::upper_bound(read.ends.begin(), read.ends.end(), offset) - read.ends.begin();
  for (; bytes > 0; ++i) {
    const Network::Target& target = read.targets[i];
    const uint64_t some = std::min(bytes, read.ends[i] - offset);
    part(target.begin + (target.bytes - (read.ends[i] - offset)), some);
    offset += some;
    bytes -= some;
  }
}

// ---- failures, and the end

void NetworkReads::Doubt(const Read& read, const std::string& reason) {
  // Reads that end because they are ended here mean nothing.
  if (!remotes_[read.rank].endpoint || is_over(read)) return;
  board_.Doubt(read.rank, reason);
  broken_(read.rank);
}

void NetworkReads::Left(const Read& read, Counters::State state) {
  board_.Fail(read.rank, state, state == Counters::kClosed ? "closed" : "its rehearsal buffer has failed");
  broken_(read.rank);
}

bool NetworkReads::is_reading(uint32_t rank) const {
  return std::any_of(reads_.begin(), reads_.end(), [&](const auto& read) { return read->rank == rank; });
}

NetworkReads::Clock::time_point NetworkReads::next() const {
  auto next = Clock::time_point::max();
  for (const auto& read : reads_) {
    if (!read->under_way && is_over(*read)) continue;
    next = std::min(next, read->deadline);
    if (!read->under_way && read->phase == Phase::kBegin) next = std::min(next, read->not_before);
  }
  return next;
}

bool NetworkReads::under_way() const {
  return std::any_of(reads_.begin(), reads_.end(), [](const auto& read) { return read->under_way > 0; });
}

void NetworkReads::Hurry(Clock::time_point end) {
  for (const auto& read : reads_) {
    read->over = true;
    read->deadline = std::min(read->deadline, end);
  }
}

std::vector<uint32_t> NetworkReads::TakeLate(Clock::time_point now) {
  std::vector<uint32_t> late;
  std::erase_if(reads_, [&](std::unique_ptr<Read>& read) {
    if (now < read->deadline || (!read->under_way && is_over(*read))) return false;
    if (!read->under_way || remotes_[read->rank].endpoint) {
      late.push_back(read->rank);
      return false;
    }
    given_up_.push_back(std::move(read));
    return true;
  });
  return late;
}

void NetworkReads::Clear() {
  for (auto& read : reads_) reads_before_.push_back(std::move(read));
  reads_.clear();
  lost_ = false;
}

}  // namespace reprise

#endif
