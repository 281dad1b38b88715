#include "histogram.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <thread>
#include <vector>

namespace reprise {
namespace {

using std::chrono::nanoseconds;

// By nearest rank, as the histogram's.
double PercentileMs(std::vector<int64_t> ns, double fraction) {
  std::sort(ns.begin(), ns.end());
  const auto rank = static_cast<size_t>(std::ceil(fraction * static_cast<double>(ns.size())));
  return static_cast<double>(ns[rank - 1]) / 1e6;
}

TEST(Histogram, WithoutEntriesEverythingIsZero) {
  const Histogram::Stats stats = Histogram().stats();
  EXPECT_EQ(stats.count, 0u);
  EXPECT_EQ(stats.total_ms, 0);
  EXPECT_EQ(stats.mean_ms, 0);
  EXPECT_EQ(stats.p50_ms, 0);
  EXPECT_EQ(stats.p95_ms, 0);
}

TEST(Histogram, PercentilesLieWithin4PerCentOverAllMagnitudes) {
  std::mt19937_64 random(1);
  for (double magnitude = 1; magnitude < 1e15; magnitude *= 7.3) {
    Histogram histogram;
    std::vector<int64_t> all;
    double total = 0;
    for (int i = 0; i < 501; ++i) {
      const double spread = std::exp2(static_cast<double>(random() % 4096) / 1024);
      all.push_back(static_cast<int64_t>(magnitude * spread));
      total += static_cast<double>(all.back()) / 1e6;
      histogram.Add(nanoseconds(all.back()));
    }
    const Histogram::Stats stats = histogram.stats();
    EXPECT_EQ(stats.count, all.size());
    EXPECT_NEAR(stats.total_ms, total, 1e-9 * total);
    EXPECT_NEAR(stats.mean_ms, total / 501, 1e-9 * total);
    for (const auto& [value, fraction] : {std::pair{stats.p50_ms, 0.5}, std::pair{stats.p95_ms, 0.95}}) {
      const double expected = PercentileMs(all, fraction);
      EXPECT_NEAR(value, expected, 0.04 * expected) << "at " << magnitude << " ns, " << fraction;
    }
  }
}

TEST(Histogram, PercentilesGoByNearestRank) {
  Histogram histogram;
  for (int i = 0; i < 19; ++i) histogram.Add(nanoseconds(1000));
  histogram.Add(nanoseconds(1'000'000));
  EXPECT_NEAR(histogram.stats().p95_ms, 0.001, 0.0001) << "19 of 20 are at most this";
  histogram.Add(nanoseconds(1'000'000));
  EXPECT_NEAR(histogram.stats().p95_ms, 1, 0.04);
}

TEST(Histogram, TheLongestAndANegativeDurationHaveTheirPlace) {
  Histogram histogram;
  histogram.Add(nanoseconds(INT64_MAX));
  const double longest = static_cast<double>(INT64_MAX) / 1e6;
  EXPECT_NEAR(histogram.stats().p50_ms, longest, 0.04 * longest);
  histogram.Add(nanoseconds(-5));
  EXPECT_EQ(histogram.stats().p50_ms, 0);
  EXPECT_NEAR(histogram.stats().total_ms, longest, 1e-9 * longest);
}

TEST(Histogram, ReadersSeeEntriesThatWereAddedAndCountsThatOnlyGrow) {
  constexpr uint64_t kEntries = 20000;
  Histogram histogram;
  std::vector<std::thread> readers;
  for (int reader = 0; reader < 2; ++reader) {
    readers.emplace_back([&] {
      for (uint64_t count = 0; count < kEntries;) {
        const Histogram::Stats stats = histogram.stats();
        ASSERT_GE(stats.count, count);
        count = stats.count;
        if (!count) continue;
        EXPECT_TRUE(std::abs(stats.p50_ms - 0.001) < 4e-5 || std::abs(stats.p50_ms - 1) < 0.04) << stats.p50_ms;
        EXPECT_TRUE(std::abs(stats.p95_ms - 0.001) < 4e-5 || std::abs(stats.p95_ms - 1) < 0.04) << stats.p95_ms;
      }
    });
  }
  for (uint64_t i = 0; i < kEntries; ++i) histogram.Add(nanoseconds(i % 3 ? 1000 : 1'000'000));
  for (std::thread& reader : readers) reader.join();
  EXPECT_EQ(histogram.stats().count, kEntries);
}

}  // namespace
}  // namespace reprise
