#include "timed.h"

#include <algorithm>

namespace reprise {
namespace {

int64_t Nanoseconds(Timed::Clock::time_point time) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(time.time_since_epoch()).count();
}

}  // namespace

void Timed::Add(Clock::time_point begin, Clock::time_point end) {
  histogram_.Add(end - begin);
  const uint64_t index = added_.load(std::memory_order_relaxed);
  Entry& entry = entries_[index % kKept];
  // Released: who reads one of these reads a count afterwards that says so.
  entry.begin_ns.store(Nanoseconds(begin), std::memory_order_release);
  entry.end_ns.store(Nanoseconds(end), std::memory_order_release);
  added_.store(index + 1, std::memory_order_release);
}

std::vector<Timed::Interval> Timed::recent() const {
  const uint64_t end = added_.load(std::memory_order_acquire);
  const uint64_t begin = end - std::min<uint64_t>(end, kKept);
  std::vector<Interval> result;
  result.reserve(end - begin);
  for (uint64_t index = begin; index < end; ++index) {
    const Entry& entry = entries_[index % kKept];
    result.push_back({entry.begin_ns.load(std::memory_order_acquire), entry.end_ns.load(std::memory_order_acquire)});
  }
  // Entry `now` may be half written, over the one that is kKept older.
  const uint64_t now = added_.load(std::memory_order_acquire);
  const uint64_t whole = now < kKept ? 0 : now + 1 - kKept;
  if (whole > begin) {
    result.erase(result.begin(), result.begin() + static_cast<ptrdiff_t>(std::min(whole, end) - begin));
  }
  return result;
}

}  // namespace reprise
