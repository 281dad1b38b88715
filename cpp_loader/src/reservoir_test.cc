#include "reservoir.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <stdexcept>

#include "chi_square.h"

namespace reprise {
namespace {

// How often each of `total` samples is stored at the end; batches of the given sizes in turn. `lost`: a reservoir
// that forgets how much it has seen, as after a faulty restore.
std::vector<uint64_t> InclusionCounts(uint64_t total, uint32_t share, const std::vector<uint64_t>& batch_sizes,
                                      uint64_t candidates, uint64_t replicates, bool lost = false) {
  std::vector<uint64_t> counts(total, 0), held(share), rows, picked;
  std::vector<Write> writes;
  Chooser chooser;
  for (uint64_t seed = 0; seed < replicates; ++seed) {
    const RandomWords words(seed, 0);
    Reservoir reservoir(share);
    uint64_t first = 0;
    for (uint64_t step = 1; first < total; ++step) {
      const uint64_t size = std::min(batch_sizes[step % batch_sizes.size()], total - first);
      chooser.Choose(words, purpose::kCandidates, step, size, std::min(candidates, size), picked);
      std::sort(picked.begin(), picked.end());
      const std::vector<int64_t> labels(picked.size());
      reservoir.Insert(labels, size, step, words, writes);
      for (const Write& write : writes) held[write.slot] = first + picked[write.row];
      first += size;
      if (lost) reservoir.Load({{"stored", int64_t{reservoir.stored()}}, {"submitted", int64_t{reservoir.stored()}}});
    }
    EXPECT_EQ(reservoir.stored(), share);
    for (const uint64_t sample : held) ++counts[sample];
  }
  return counts;
}

struct Stream {
  std::vector<uint64_t> batch_sizes;
  uint64_t candidates;
  uint32_t share;
};

class ReservoirUniformity : public testing::TestWithParam<Stream> {};

TEST_P(ReservoirUniformity, EverySampleIsStoredEquallyOften) {
  const uint64_t total = 60, replicates = 8000;
  const Stream& stream = GetParam();
  const auto counts = InclusionCounts(total, stream.share, stream.batch_sizes, stream.candidates, replicates);
  EXPECT_LT(InclusionStatistic(counts, replicates, stream.share), CriticalValue(total - 1));
}

INSTANTIATE_TEST_SUITE_P(Streams, ReservoirUniformity,
                         testing::Values(Stream{{8}, 8, 10}, Stream{{1, 7, 3, 20, 2}, 99, 10}, Stream{{8}, 3, 10},
                                         Stream{{6}, 1, 10}, Stream{{60}, 60, 10}, Stream{{60}, 20, 10},
                                         Stream{{4}, 4, 1}));

TEST(Reservoir, TheStatisticRejectsACounterThatIsLost) {
  const auto counts = InclusionCounts(60, 10, {8}, 8, 8000, true);
  EXPECT_GT(InclusionStatistic(counts, 8000, 10), 2 * CriticalValue(59));
}

TEST(Reservoir, KeepsEverythingUntilItIsFull) {
  Reservoir reservoir(20);
  std::vector<Write> writes;
  for (uint64_t step = 1; step <= 5; ++step) {
    reservoir.Insert(std::vector<int64_t>(4), 4, step, RandomWords(2, 0), writes);
    ASSERT_EQ(writes.size(), 4u);
    for (uint32_t row = 0; row < 4; ++row)
      EXPECT_EQ(writes[row], (Write{row, static_cast<uint32_t>(step - 1) * 4 + row}));
  }
}

TEST(Reservoir, WeighsEverySampleBySubmittedOverStored) {
  Reservoir reservoir(10);
  std::vector<Write> writes;
  for (uint64_t step = 1; step <= 5; ++step) {
    reservoir.Insert(std::vector<int64_t>(4), 8, step, RandomWords(2, 0), writes);
  }
  EXPECT_EQ(reservoir.InverseInclusion(9), 4.0);
  EXPECT_EQ(reservoir.Mass(), 40u);
}

TEST(Reservoir, CountersBeyondThirtyTwoBitsAreHandled) {
  Reservoir reservoir(10);
  const int64_t submitted = int64_t{1} << 50;
  reservoir.Load({{"stored", int64_t{10}}, {"submitted", submitted}});
  std::vector<Write> writes;
  for (uint64_t step = 1; step <= 100; ++step) {
    reservoir.Insert(std::vector<int64_t>(64), 64, step, RandomWords(2, 0), writes);
    EXPECT_TRUE(writes.empty());
  }
  EXPECT_EQ(reservoir.State(), (PolicyState{{"stored", int64_t{10}}, {"submitted", submitted + 6400}}));
}

TEST(Reservoir, RefusesMoreStoredThanSubmitted) {
  Reservoir reservoir(10);
  EXPECT_THROW(reservoir.Load({{"stored", int64_t{5}}, {"submitted", int64_t{4}}}), std::invalid_argument);
  EXPECT_THROW(reservoir.Load({{"stored", int64_t{0}}, {"submitted", int64_t{-4}}}), std::invalid_argument);
}

}  // namespace
}  // namespace reprise
