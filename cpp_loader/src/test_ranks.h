// For tests: engines that draw from each other, and peers that do what no engine does. Not part of the engine.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "engine.h"
#include "network.h"
#include "peers.h"
#include "shard.h"
#include "slab.h"
#include "test_samples.h"
#include "ucx.h"

namespace reprise {

// The numbers of samples (test_samples.h) say which rank they come from.
inline constexpr uint64_t kBatchesPerRank = 1'000'000;
inline uint64_t BatchOf(uint32_t rank, uint64_t step) { return rank * kBatchesPerRank + step; }
inline uint32_t RankOf(uint64_t number) { return static_cast<uint32_t>(number / Samples::kMaxRows / kBatchesPerRank); }

inline std::string NameOf(uint32_t rank) { return "rank " + std::to_string(rank) + " (test)"; }

// How ranks reach each other: as those of one node do, or as if each were on another one, by way of the loopback
// interface.
enum class Way { kMemory, kRequests, kGets };

inline std::string NameOf(Way way) {
  return way == Way::kMemory ? "Memory" : way == Way::kRequests ? "Requests" : "Gets";
}

inline std::string UcxForTests() {
  const char* const library = std::getenv("REPRISE_UCX_LIBRARY");
  return library ? library : UCX_LIBRARY;
}

// Why this way cannot be gone here; empty when it can.
inline std::string WhyNot(Way way) {
#if defined(__SANITIZE_THREAD__)
  setenv("UCX_MEM_EVENTS", "n", 0);  // or UCX calls the sanitizer from threads that it has forgotten already
  if (way == Way::kGets) return "reads while others write, on purpose";
#endif
  return way == Way::kMemory ? "" : WhyNoNetwork(UcxForTests());
}

// As above, for ranks that leave while others are just connecting to them. Some builds of 1.13 do not survive that
// (https://github.com/openucx/ucx/pull/8175).
inline std::string WhyNotLeave(Way way) {
  std::string reason = WhyNot(way);
#if defined(__SANITIZE_THREAD__)
  if (way != Way::kMemory) reason = "reads while others write, on purpose";
#endif
#if defined(REPRISE_HAVE_UCX)
  if (reason.empty() && way != Way::kMemory && UcxLibrary(UcxForTests()).version().starts_with("1.13.")) {
    reason = "not with this version of UCX";
  }
#endif
  return reason;
}

inline std::optional<NetworkOptions> NetworkFor(Way way) {
  if (way == Way::kMemory) return std::nullopt;
  NetworkOptions options;
  options.library = UcxForTests();
  options.devices = "lo";
  options.transports = "tcp,self";
  options.key = 0x6EC2E7;
  options.reads = way == Way::kGets ? Reads::kGet : Reads::kRequest;
  return options;
}

// Tells all ranks about each other.
inline void Connect(std::span<const EngineHandle> engines) {
  std::vector<PeerAddress> addresses;
  for (uint32_t rank = 0; rank < engines.size(); ++rank) {
    addresses.push_back(engines[rank]->address());
    addresses.back().name = NameOf(rank);
    addresses.back().mapped = addresses.back().network.empty();
  }
  for (const EngineHandle& engine : engines) engine->Connect(addresses);
}

// The samples in the draw rows, by number. They need a first field of 8 bytes or more.
inline std::vector<uint64_t> NumbersOf(const Staging& staging, const Delivery& delivery) {
  std::vector<uint64_t> numbers;
  for (uint64_t row = 0; row < Snapshot::Rows(delivery.sizes); ++row) {
    numbers.push_back(Samples::NumberOf(staging.field(0) + (staging.front() + row) * staging.row_bytes(0)));
  }
  return numbers;
}

// What is wrong with a delivery, whatever was to be drawn: nothing, if each row is one whole sample of the rank that it
// is said to be of, with a weight, and no sample comes twice in a draw.
inline std::string FlawOf(const Samples& samples, const Staging& staging, const Delivery& delivery) {
  std::vector<uint64_t> numbers = NumbersOf(staging, delivery);
  for (uint64_t i = 0; i < numbers.size(); ++i) {
    const uint64_t row = staging.front() + i;
    const auto flaw = [&](const std::string& what) {
      return "row " + std::to_string(i) + ", sample " + std::to_string(numbers[i]) + ": " + what;
    };
    for (size_t field = 0; field < samples.field_bytes().size(); ++field) {
      if (!samples.Is(numbers[i], field, staging.field(field) + row * samples.field_bytes()[field])) {
        return flaw("torn field " + std::to_string(field));
      }
    }
    if (staging.labels()[row] != Samples::Label(numbers[i])) return flaw("another sample's label");
    if (staging.tasks()[row] != Samples::Task(numbers[i])) return flaw("another sample's task");
    if (staging.ranks()[row] != RankOf(numbers[i])) return flaw("another rank's");
    if (!(staging.weights()[row] > 0) || std::isinf(staging.weights()[row])) return flaw("no weight");
  }
  auto first = numbers.begin();
  for (const uint32_t size : delivery.sizes) {
    std::sort(first, first + size);
    if (std::adjacent_find(first, first + size) != first + size) return "a sample comes twice in a draw";
    first += size;
  }
  return "";
}

// A rank without an engine: its memory is written by the test, which can therefore stop half-way.
class FakePeer {
 public:
  FakePeer(const Samples& samples, uint32_t rank, uint32_t share)
      : samples_(samples),
        layout_(samples.field_bytes()),
        rank_(rank),
        slab_(Slab::Shared(Shard::Bytes(layout_, share))),
        shard_(slab_, layout_, share) {
    counters().SetToken(kToken);
  }

  Counters& counters() const { return shard_.counters(); }
  PeerAddress address() const {
    PeerAddress address;
    address.name = NameOf(rank_);
    address.process = getpid();
    address.descriptor = slab_.descriptor();
    address.bytes = slab_.size();
    address.token = kToken;
    address.share = shard_.share();
    return address;
  }

  void Begin(uint32_t slot) const { shard_.BeginWrite(std::vector<Write>{{0, slot}}); }
  void End(uint32_t slot) const { shard_.EndWrite(std::vector<Write>{{0, slot}}); }
  // Between the two.
  void Fill(uint32_t slot, uint64_t number) const {
    RecordHeader& header = shard_.record(slot);
    header.stratum = 0;
    header.label = Samples::Label(number);
    header.task = Samples::Task(number);
    for (size_t field = 0; field < layout_.num_fields(); ++field) {
      samples_.Write(number, field, reinterpret_cast<std::byte*>(&header) + layout_.field_offset(field));
    }
  }
  // Samples in slots 0, 1, ..., as a batch of its rank.
  void Store(uint64_t batch, uint32_t count) const {
    for (uint32_t slot = 0; slot < count; ++slot) {
      Begin(slot);
      Fill(slot, BatchOf(rank_, batch) * Samples::kMaxRows + slot);
      End(slot);
    }
    shard_.SetStrata(std::vector<StratumValue>{{0, 1.0}});
    counters().SetFill({count, count});
  }

 private:
  static constexpr uint64_t kToken = 0x1234567;

  const Samples& samples_;
  const Layout layout_;
  uint32_t rank_;
  Slab slab_;
  Shard shard_;
};

// An address on its way between processes.
struct FlatAddress {
  int64_t process;
  int descriptor;
  uint64_t bytes, token;
  uint32_t share;

  static FlatAddress Of(const PeerAddress& address) {
    return {address.process, address.descriptor, address.bytes, address.token, address.share};
  }
  PeerAddress Unfold(uint32_t rank) const {
    PeerAddress address;
    address.name = NameOf(rank);
    address.process = process;
    address.descriptor = descriptor;
    address.bytes = bytes;
    address.token = token;
    address.share = share;
    return address;
  }
};

}  // namespace reprise
