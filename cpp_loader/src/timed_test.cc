#include "timed.h"

#include <gtest/gtest.h>

#include <thread>

namespace reprise {
namespace {

using std::chrono::nanoseconds;

Timed::Clock::time_point At(int64_t ns) { return Timed::Clock::time_point(nanoseconds(ns)); }

TEST(Timed, KeepsWhatWasAddedInOrder) {
  Timed timed;
  EXPECT_TRUE(timed.recent().empty());
  timed.Add(At(10), At(15));
  timed.Add(At(20), At(27));
  const auto recent = timed.recent();
  ASSERT_EQ(recent.size(), 2u);
  EXPECT_EQ(recent[0].begin_ns, 10);
  EXPECT_EQ(recent[0].end_ns, 15);
  EXPECT_EQ(recent[1].begin_ns, 20);
  EXPECT_EQ(recent[1].end_ns, 27);
  EXPECT_EQ(timed.stats().count, 2u);
  EXPECT_NEAR(timed.stats().total_ms, 12e-6, 1e-12);
}

TEST(Timed, KeepsTheLastOnesOnly) {
  Timed timed;
  constexpr int64_t kAdded = 3 * Timed::kKept + 7;
  for (int64_t i = 0; i < kAdded; ++i) timed.Add(At(i), At(i + 1));
  const auto recent = timed.recent();
  ASSERT_GE(recent.size(), Timed::kKept - 1);
  EXPECT_EQ(recent.back().begin_ns, kAdded - 1);
  for (size_t i = 1; i < recent.size(); ++i) EXPECT_EQ(recent[i].begin_ns, recent[i - 1].begin_ns + 1);
  EXPECT_EQ(timed.stats().count, static_cast<uint64_t>(kAdded));
}

TEST(Timed, ReadersSeeWholeIntervalsThatFollowEachOther) {
  constexpr int64_t kAdded = 200'000;
  Timed timed;
  std::thread reader([&] {
    for (int64_t last = 0; last < kAdded - 1;) {
      const auto recent = timed.recent();
      for (size_t i = 0; i < recent.size(); ++i) {
        ASSERT_EQ(recent[i].end_ns, 3 * recent[i].begin_ns);
        if (i) {
          ASSERT_EQ(recent[i].begin_ns, recent[i - 1].begin_ns + 1);
        }
      }
      if (!recent.empty()) last = recent.back().begin_ns;
    }
  });
  for (int64_t i = 0; i < kAdded; ++i) timed.Add(At(i), At(3 * i));
  reader.join();
}

}  // namespace
}  // namespace reprise
