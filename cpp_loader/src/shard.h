// One rank's share of the memory as its owner writes it and everybody else reads it: in this process, from another one
// on the node that has mapped the slab, or by a network card.
//
//   | counters | inverse inclusion of each stratum | record 0 | record 1 | ...      (layout.h: what a record is)
//
// One writer, any number of readers, no locks. A record is read by looking at its version before and after the copy
// (seqlock): whoever finds the same even number twice has one sample, whole. Counters and table are single words that
// are written in one go. The owner publishes in an order that a reader can rely on: a record that the fill count covers
// is complete, and its stratum has a value. How a reader goes about it that has no loads of its own to order, but reads
// through a network card, is said in network_reads.h.
//
// Threads: functions marked "owner" are for one thread at a time; all others for any thread, at any time, as long as
// the slab lives.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>

#include "layout.h"
#include "policy.h"
#include "slab.h"

namespace reprise {

// How many samples a rank stores, and how many seen ones these stand for.
struct Fill {
  uint64_t stored = 0;
  uint64_t mass = 0;
};

// How far a rank is. Written by one thread, read by any, in this process or others; flat and free of pointers.
class Counters {
 public:
  enum State : uint32_t { kOpen, kClosed, kBroken };

  // Tells this shard from whatever else a descriptor with the same number may be one day.
  void SetToken(uint64_t token) { token_.store(token, std::memory_order_release); }
  uint64_t token() const { return token_.load(std::memory_order_acquire); }

  // Both numbers belong together, also when they are just being written.
  void SetFill(Fill fill);
  Fill fill() const;
  // For who reads a copy of all this: what `version` stood for, if the copy was made while that version held.
  uint64_t fill_version() const { return fill_version_.load(std::memory_order_acquire); }
  Fill FillOf(uint64_t version) const;

  // Stamps (peers.h) of the last step whose batch is inserted and of the last one whose draws are fetched. Setting
  // wakes those who wait.
  void SetInserted(uint64_t stamp) { Set(inserted_, stamp); }
  void SetFetched(uint64_t stamp) { Set(fetched_, stamp); }
  uint64_t inserted() const { return inserted_.load(std::memory_order_acquire); }
  uint64_t fetched() const { return fetched_.load(std::memory_order_acquire); }
  // Sleep until the counter may have changed from `seen`, at most so long. Works on a read-only mapping.
  void AwaitInserted(uint64_t seen, std::chrono::nanoseconds limit) const { Await(inserted_, seen, limit); }
  void AwaitFetched(uint64_t seen, std::chrono::nanoseconds limit) const { Await(fetched_, seen, limit); }

  // kClosed: it has left in order. kBroken: its engine has failed. Wakes all who wait for it.
  void SetState(State state);
  State state() const { return static_cast<State>(state_.load(std::memory_order_acquire)); }

 private:
  static void Set(std::atomic<uint64_t>& counter, uint64_t value);
  static void Await(const std::atomic<uint64_t>& counter, uint64_t seen, std::chrono::nanoseconds limit);

  struct FillWords {
    std::atomic<uint64_t> stored{0};
    std::atomic<uint64_t> mass{0};
  };

  // The last bit says which of the two holds; the other one is written next. So a reader always has a whole one, also
  // when the writer dies in the middle.
  alignas(64) std::atomic<uint64_t> fill_version_{0};
  FillWords fills_[2];
  std::atomic<uint64_t> token_{0};
  std::atomic<uint32_t> state_{kOpen};
  alignas(64) std::atomic<uint64_t> inserted_{0};
  std::atomic<uint64_t> fetched_{0};
};

class Shard {
 public:
  // Bytes of a slab for `share` records. Throws std::runtime_error when there are more than any machine addresses.
  static uint64_t Bytes(const Layout& layout, uint32_t share);
  // Where the parts are, from its start; the counters are there.
  static uint64_t InverseInclusionAt(uint32_t stratum);
  static uint64_t RecordAt(const Layout& layout, uint32_t share, uint32_t slot);

  Shard() = default;
  // A view of the slab's bytes, which keep their contents. Owner's slabs start zeroed, which is a shard without
  // samples.
  Shard(const Slab& slab, const Layout& layout, uint32_t share);

  uint32_t share() const { return share_; }
  Counters& counters() const { return *reinterpret_cast<Counters*>(start_); }
  RecordHeader& record(uint32_t slot) const { return *reinterpret_cast<RecordHeader*>(records_ + slot * stride_); }
  uint64_t stride() const { return stride_; }

  // Owner. Before any byte of the records changes; between the two calls they may be written.
  void BeginWrite(std::span<const Write> writes) const;
  void EndWrite(std::span<const Write> writes) const;
  void SetStrata(std::span<const StratumValue> values) const;

  // Version to compare with after the copy; odd: it is being written, so do not begin.
  uint32_t BeginRead(uint32_t slot) const {
    return std::atomic_ref<uint32_t>(record(slot).version).load(std::memory_order_acquire);
  }
  // Once for any number of copies, then Unchanged() for each.
  static void EndReads() {
#if !defined(__SANITIZE_THREAD__)  // which knows no fences
    std::atomic_thread_fence(std::memory_order_acquire);
#endif
  }
  bool Unchanged(uint32_t slot, uint32_t version) const {
    return std::atomic_ref<uint32_t>(record(slot).version).load(std::memory_order_relaxed) == version;
  }
  // Of a record whose stratum was read between BeginRead and EndReads; out of range only while it is being written.
  double InverseInclusion(uint32_t stratum) const;

 private:
  std::byte* start_ = nullptr;
  std::byte* records_ = nullptr;
  uint64_t stride_ = 0;
  uint32_t share_ = 0;
};

}  // namespace reprise
