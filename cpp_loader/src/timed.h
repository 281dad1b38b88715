// The durations of one part of the work: a histogram of all, and when the last ones began and ended.
//
// One thread adds at a time; anybody may read meanwhile.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "histogram.h"

namespace reprise {

class Timed {
 public:
  using Clock = Histogram::Clock;
  static constexpr size_t kKept = 1024;

  struct Interval {
    int64_t begin_ns, end_ns;  // of Clock, which is Python's perf_counter on Linux
  };

  void Add(Clock::time_point begin, Clock::time_point end);
  Histogram::Stats stats() const { return histogram_.stats(); }
  // Up to kKept, oldest first; one fewer than that is certain, as the oldest may be written over meanwhile.
  std::vector<Interval> recent() const;

 private:
  struct Entry {
    std::atomic<int64_t> begin_ns{0}, end_ns{0};
  };

  Histogram histogram_;
  std::array<Entry, kKept> entries_;
  std::atomic<uint64_t> added_{0};
};

}  // namespace reprise
