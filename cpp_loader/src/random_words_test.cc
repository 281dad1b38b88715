#include "random_words.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>

#include "chi_square.h"
#include "known_answers.h"

namespace reprise {
namespace {

std::vector<uint64_t> Choose(Chooser& chooser, uint64_t seed, uint64_t step, uint64_t population, uint64_t count) {
  std::vector<uint64_t> out;
  chooser.Choose(RandomWords(seed, 0), purpose::kDraw, step, population, count, out);
  return out;
}

TEST(PhiloxBlock, GivesThePublishedAnswers) {
  for (const known::KnownBlock& block : known::kBlocks) {
    uint64_t words[4];
    PhiloxBlock(block.counter, block.key, words);
    EXPECT_TRUE(std::equal(words, words + 4, block.words)) << std::hex << words[0];
  }
}

TEST(RandomWords, GivesTheRecordedStreams) {
  for (const known::KnownStream& stream : known::kStreams) {
    std::vector<uint64_t> words(stream.words.size());
    RandomWords(stream.seed, stream.rank).Fill(stream.purpose, stream.step, stream.round, words);
    EXPECT_EQ(words, stream.words) << "seed " << stream.seed << " rank " << stream.rank;
  }
}

TEST(RandomWords, AShorterStreamIsTheBeginningOfALongerOne) {
  const RandomWords words(5, 1);
  std::vector<uint64_t> whole(21);
  words.Fill(1, 9, 0, whole);
  EXPECT_EQ(std::set(whole.begin(), whole.end()).size(), whole.size());
  for (std::size_t length = 0; length < whole.size(); ++length) {
    std::vector<uint64_t> part(length + 1, 77);
    words.Fill(1, 9, 0, std::span(part).first(length));
    EXPECT_TRUE(std::equal(part.begin(), part.end() - 1, whole.begin()));
    EXPECT_EQ(part.back(), 77u) << "wrote past the end of a span of " << length;
  }
}

TEST(Below, IsTheHighHalfOfTheProduct) {
  EXPECT_EQ(Below(0, 10), 0u);
  EXPECT_EQ(Below(UINT64_MAX, 10), 9u);
  EXPECT_EQ(Below(uint64_t{1} << 63, 10), 5u);
  EXPECT_EQ(Below((uint64_t{1} << 63) - 1, 10), 4u);
  EXPECT_EQ(Below(UINT64_MAX, 1), 0u);
  EXPECT_EQ(Below(UINT64_MAX, UINT64_MAX), UINT64_MAX - 1);
  EXPECT_EQ(Below(0x123456789ABCDEF0, 0xFEDCBA9876543210), 0x121FA00AD77D7422u);
}

TEST(Chooser, MakesTheRecordedChoices) {
  Chooser chooser;
  const RandomWords words(known::kChoiceSeed, known::kChoiceRank);
  std::vector<uint64_t> out = {1, 2, 3};
  for (const known::KnownChoice& choice : known::kChoices) {
    chooser.Choose(words, purpose::kDraw, choice.step, choice.population, choice.count, out);
    EXPECT_EQ(out, choice.values) << choice.count << " of " << choice.population;
  }
  chooser.DistinctBelow(words, purpose::kEvict, 1, known::kEvictionBounds, known::kEvictionGroups, out);
  EXPECT_EQ(out, known::kEvictionValues);
}

TEST(Chooser, DistinctBelowRepeatsNothingWithinAGroupAndUsesUpSmallOnes) {
  Chooser chooser;
  std::vector<uint64_t> bounds, values;
  std::vector<uint32_t> groups;
  // Of 31 - g values group g gives 4 * g + 1: all of them in the last one.
  for (uint32_t group = 0; group < 7; ++group) {
    bounds.insert(bounds.end(), 4 * group + 1, 31 - group);
    groups.insert(groups.end(), 4 * group + 1, group);
  }
  bounds.insert(bounds.end(), 300, 300);
  groups.insert(groups.end(), 300, 0xFFFFFFFF);
  for (uint64_t step = 0; step < 50; ++step) {
    chooser.DistinctBelow(RandomWords(3, 0), purpose::kEvict, step, bounds, groups, values);
    ASSERT_EQ(values.size(), bounds.size());
    std::set<std::pair<uint32_t, uint64_t>> distinct;
    for (std::size_t i = 0; i < values.size(); ++i) {
      ASSERT_LT(values[i], bounds[i]);
      distinct.insert({groups[i], values[i]});
    }
    ASSERT_EQ(distinct.size(), values.size());
  }
}

TEST(Chooser, WhatItDidBeforeDoesNotMatter) {
  Chooser used;
  for (uint64_t step = 1; step < 40; ++step) {
    Chooser fresh;
    const uint64_t population = step * step * 7 % 501, count = step * 5 % 60;
    EXPECT_EQ(Choose(used, 1, step, population, count), Choose(fresh, 1, step, population, count));
  }
}

// Population and count: by rejection, by order, and on both sides of the border between them.
class ChooserUniformity : public testing::TestWithParam<std::pair<uint64_t, uint64_t>> {};

TEST_P(ChooserUniformity, EveryMemberIsChosenEquallyOftenAndEquallyOftenFirst) {
  const auto [population, count] = GetParam();
  const uint64_t replicates = 20000;
  Chooser chooser;
  std::vector<uint64_t> counts(population, 0), firsts(population, 0);
  for (uint64_t step = 0; step < replicates; ++step) {
    const std::vector<uint64_t> chosen = Choose(chooser, 17, step, population, count);
    ASSERT_EQ(std::set(chosen.begin(), chosen.end()).size(), count);
    ++firsts[chosen.front()];
    for (const uint64_t member : chosen) ++counts.at(member);
  }
  const double critical = CriticalValue(population - 1);
  EXPECT_LT(InclusionStatistic(counts, replicates, static_cast<double>(count)), critical);
  EXPECT_LT(InclusionStatistic(firsts, replicates, 1), critical);
  // The statistic is sharp enough to see one member in fifty of another's choices.
  const uint64_t moved = counts[0] / 25;
  counts[0] -= moved;
  counts[1] += moved;
  counts[2] -= moved;
  counts[3] += moved;
  EXPECT_GT(InclusionStatistic(counts, replicates, static_cast<double>(count)), critical);
}

INSTANTIATE_TEST_SUITE_P(Sizes, ChooserUniformity,
                         testing::Values(std::pair(20, 4), std::pair(20, 9), std::pair(20, 10), std::pair(20, 15)));

}  // namespace
}  // namespace reprise
