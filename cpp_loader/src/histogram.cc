#include "histogram.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace reprise {
namespace {

// Values below 2^bits have buckets of their own; above, a bucket is named by the exponent and the leading bits after
// it.
size_t BucketOf(uint64_t ns, unsigned bits) {
  const auto width = static_cast<unsigned>(std::bit_width(ns));
  if (width <= bits) return ns;
  const unsigned shift = width - 1 - bits;
  return ((shift + 1ull) << bits) + ((ns >> shift) - (1ull << bits));
}

double MiddleNs(size_t bucket, unsigned bits) {
  if (bucket < (1ull << bits)) return static_cast<double>(bucket);
  const size_t shift = (bucket >> bits) - 1;
  const double leading = static_cast<double>((bucket & ((1ull << bits) - 1)) + (1ull << bits));
  return std::ldexp(leading + 0.5, static_cast<int>(shift));
}

}  // namespace

void Histogram::Add(Clock::duration duration) {
  const auto ns = static_cast<uint64_t>(
      std::max<int64_t>(0, std::chrono::duration_cast<std::chrono::nanoseconds>(duration).count()));
  buckets_[BucketOf(ns, kSubBits)].fetch_add(1, std::memory_order_relaxed);
  total_ns_.fetch_add(ns, std::memory_order_relaxed);
}

Histogram::Stats Histogram::stats() const {
  uint64_t count = 0;
  for (const auto& bucket : buckets_) count += bucket.load(std::memory_order_relaxed);
  if (!count) return {};
  const double total_ms = static_cast<double>(total_ns_.load(std::memory_order_relaxed)) / 1e6;
  return {count, total_ms, total_ms / static_cast<double>(count), PercentileMs(0.50, count), PercentileMs(0.95, count)};
}

double Histogram::PercentileMs(double fraction, uint64_t count) const {
  auto rank = static_cast<uint64_t>(std::ceil(fraction * static_cast<double>(count)));
  for (size_t bucket = 0; bucket < kBuckets; ++bucket) {
    const uint64_t here = buckets_[bucket].load(std::memory_order_relaxed);
    if (here >= rank) return MiddleNs(bucket, kSubBits) / 1e6;
    rank -= here;
  }
  return 0;  // not reached: count is the sum of the buckets
}

}  // namespace reprise
