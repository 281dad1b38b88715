#include "shard.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <bit>
#include <climits>
#include <stdexcept>
#include <string>

namespace reprise {
namespace {

constexpr uint64_t kPage = 4096;
constexpr uint64_t kMaxBytes = uint64_t{1} << 56;

uint64_t RoundUp(uint64_t bytes, uint64_t unit) { return (bytes + unit - 1) / unit * unit; }

uint64_t RecordsAt(uint32_t share) { return kPage + RoundUp(uint64_t{share} * sizeof(double), kPage); }

// Stores before it reach memory before those after it, for network cards too. To x86 these are readers like any other;
// Arm promises what C++ orders to processors alone.
void OrderForDevices() {
#if defined(__aarch64__)
  asm volatile("dmb oshst" ::: "memory");
#endif
}

static_assert(sizeof(Counters) <= kPage);
static_assert(std::atomic<uint64_t>::is_always_lock_free);

// The kernel waits on 32 bits: those that change with every step. What else changes meanwhile is seen at the time
// limit.
const uint32_t* FutexWord(const std::atomic<uint64_t>& counter) {
  constexpr int kLow = std::endian::native == std::endian::little ? 0 : 1;
  return reinterpret_cast<const uint32_t*>(&counter) + kLow;
}

void Wake(const std::atomic<uint64_t>& counter) {
  syscall(SYS_futex, FutexWord(counter), FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

}  // namespace

void Counters::SetFill(Fill fill) {
  const uint64_t version = fill_version_.load(std::memory_order_relaxed) + 1;
  FillWords& words = fills_[version % 2];
  OrderForDevices();
  words.stored.store(fill.stored, std::memory_order_release);
  words.mass.store(fill.mass, std::memory_order_release);
  OrderForDevices();
  fill_version_.store(version, std::memory_order_release);
}

Fill Counters::FillOf(uint64_t version) const {
  const FillWords& words = fills_[version % 2];
  return {words.stored.load(std::memory_order_acquire), words.mass.load(std::memory_order_acquire)};
}

Fill Counters::fill() const {
  for (;;) {
    const uint64_t version = fill_version_.load(std::memory_order_acquire);
    const Fill fill = FillOf(version);
    // These words are written again only after the version has changed.
    if (fill_version_.load(std::memory_order_relaxed) == version) return fill;
  }
}

void Counters::SetState(State state) {
  state_.store(state, std::memory_order_release);
  Wake(inserted_);
  Wake(fetched_);
}

void Counters::Set(std::atomic<uint64_t>& counter, uint64_t value) {
  counter.store(value, std::memory_order_release);
  // Always: waiters cannot say that they wait, as they may not write here. Without any this is a quarter of a
  // microsecond.
  Wake(counter);
}

void Counters::Await(const std::atomic<uint64_t>& counter, uint64_t seen, std::chrono::nanoseconds limit) {
  timespec time{};
  time.tv_sec = limit.count() / 1'000'000'000;
  time.tv_nsec = limit.count() % 1'000'000'000;
  syscall(SYS_futex, FutexWord(counter), FUTEX_WAIT, static_cast<uint32_t>(seen), &time, nullptr, 0);
}

uint64_t Shard::Bytes(const Layout& layout, uint32_t share) {
  uint64_t bytes;
  if (__builtin_mul_overflow(uint64_t{share}, layout.stride(), &bytes) || bytes > kMaxBytes) {
    throw std::runtime_error("memory of the rehearsal buffer: " + std::to_string(share) + " samples of " +
                             std::to_string(layout.stride()) + " bytes refused");
  }
  return RecordsAt(share) + bytes;
}

uint64_t Shard::InverseInclusionAt(uint32_t stratum) { return kPage + uint64_t{stratum} * sizeof(double); }

uint64_t Shard::RecordAt(const Layout& layout, uint32_t share, uint32_t slot) {
  return RecordsAt(share) + slot * layout.stride();
}

Shard::Shard(const Slab& slab, const Layout& layout, uint32_t share)
    : start_(slab.data()), records_(slab.data() + RecordsAt(share)), stride_(layout.stride()), share_(share) {}

void Shard::BeginWrite(std::span<const Write> writes) const {
  for (const Write& write : writes) {
    std::atomic_ref<uint32_t>(record(write.slot).version).fetch_add(1, std::memory_order_acq_rel);
  }
#if !defined(__SANITIZE_THREAD__)  // which knows no fences
  std::atomic_thread_fence(std::memory_order_release);
#endif
  OrderForDevices();
}

void Shard::EndWrite(std::span<const Write> writes) const {
  OrderForDevices();
  for (const Write& write : writes) {
    std::atomic_ref<uint32_t>(record(write.slot).version).fetch_add(1, std::memory_order_release);
  }
}

void Shard::SetStrata(std::span<const StratumValue> values) const {
  auto* const table = reinterpret_cast<uint64_t*>(start_ + kPage);
  for (const auto& [stratum, value] : values) {
    std::atomic_ref<uint64_t>(table[stratum]).store(std::bit_cast<uint64_t>(value), std::memory_order_release);
  }
}

double Shard::InverseInclusion(uint32_t stratum) const {
  if (stratum >= share_) return 0;
  auto* const table = reinterpret_cast<uint64_t*>(start_ + kPage);
  return std::bit_cast<double>(std::atomic_ref<uint64_t>(table[stratum]).load(std::memory_order_acquire));
}

}  // namespace reprise
