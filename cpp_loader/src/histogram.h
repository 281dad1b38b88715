// A histogram of durations whose memory does not grow: 16 buckets per power of two, so percentiles are within 3 %.
//
// One thread adds at a time; anybody may read meanwhile and then gets a count that is at most a few additions old.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>

namespace reprise {

class Histogram {
 public:
  using Clock = std::chrono::steady_clock;

  struct Stats {
    uint64_t count;
    double total_ms, mean_ms, p50_ms, p95_ms;  // percentiles by nearest rank; 0 without entries
  };

  void Add(Clock::duration duration);
  Stats stats() const;

 private:
  static constexpr unsigned kSubBits = 4;
  static constexpr size_t kBuckets = (64 - kSubBits + 1) << kSubBits;

  double PercentileMs(double fraction, uint64_t count) const;

  std::array<std::atomic<uint64_t>, kBuckets> buckets_{};
  std::atomic<uint64_t> total_ns_{0};
};

}  // namespace reprise
