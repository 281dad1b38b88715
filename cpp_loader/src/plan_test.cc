#include "plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <random>
#include <set>
#include <utility>

#include "chi_square.h"
#include "known_answers.h"
#include "policy.h"

namespace reprise {
namespace {

using Sample = std::pair<uint32_t, uint32_t>;  // rank, slot

std::vector<Sample> Samples(const Plan& plan) {
  std::vector<Sample> samples;
  for (std::size_t row = 0; row < plan.ranks.size(); ++row) samples.emplace_back(plan.ranks[row], plan.slots[row]);
  return samples;
}

Planner PlannerOf(const std::vector<uint64_t>& fill, std::vector<uint32_t> draws) {
  Planner planner(std::move(draws), static_cast<uint32_t>(fill.size()));
  for (uint32_t rank = 0; rank < fill.size(); ++rank) planner.SetFill(rank, fill[rank]);
  return planner;
}

Plan MakePlan(const std::vector<uint64_t>& fill, std::vector<uint32_t> draws, uint64_t step = 1) {
  Plan plan;
  PlannerOf(fill, std::move(draws)).Make(step, RandomWords(1, 0), plan);
  EXPECT_EQ(plan.ranks.size(), plan.slots.size());
  return plan;
}

TEST(Planner, ALargeDrawNamesEverySlotOfEveryRankOnce) {
  for (const std::vector<uint64_t>& fill : std::vector<std::vector<uint64_t>>{
           {5}, {0, 4}, {4, 0}, {3, 0, 0, 2}, {0, 0, 7, 0}, {1, 1, 1}, {}, {0}, {0, 0}}) {
    std::vector<Sample> expected;
    for (uint32_t rank = 0; rank < fill.size(); ++rank) {
      for (uint32_t slot = 0; slot < fill[rank]; ++slot) expected.emplace_back(rank, slot);
    }
    const Plan plan = MakePlan(fill, {100});
    std::vector<Sample> samples = Samples(plan);
    std::sort(samples.begin(), samples.end());
    EXPECT_EQ(samples, expected);
    EXPECT_EQ(plan.sizes, std::vector<uint32_t>{static_cast<uint32_t>(expected.size())});
  }
}

TEST(Planner, EachDrawOfAStepIsWithoutRepeatsAndDrawsMayOverlap) {
  uint64_t overlaps = 0;
  for (uint64_t step = 0; step < 400; ++step) {
    const Plan plan = MakePlan({6, 0, 10}, {5, 0, 4}, step);
    ASSERT_EQ(plan.sizes, (std::vector<uint32_t>{5, 0, 4}));
    const std::vector<Sample> samples = Samples(plan);
    const std::set<Sample> first(samples.begin(), samples.begin() + 5), second(samples.begin() + 5, samples.end());
    ASSERT_EQ(first.size(), 5u);
    ASSERT_EQ(second.size(), 4u);
    for (const Sample& sample : second) {
      overlaps += first.count(sample);
      EXPECT_NE(sample.first, 1u) << "a rank that holds nothing";
    }
  }
  EXPECT_NEAR(static_cast<double>(overlaps) / 400, 5.0 * 4 / 16, 0.125);
}

TEST(Planner, NoDrawsGiveAnEmptyPlanAndReplaceTheOneBefore) {
  Plan plan = MakePlan({9}, {4});
  PlannerOf({9}, {}).Make(1, RandomWords(1, 0), plan);
  EXPECT_TRUE(plan.ranks.empty() && plan.slots.empty() && plan.sizes.empty());
}

TEST(Planner, EverySlotOfEveryRankIsEquallyLikely) {
  const std::vector<uint64_t> fill = {7, 0, 1, 12}, edges = {0, 7, 7, 8};
  std::vector<uint64_t> counts(20, 0);
  for (uint64_t step = 0; step < 20000; ++step) {
    for (const auto& [rank, slot] : Samples(MakePlan(fill, {4}, step))) {
      ASSERT_LT(slot, fill[rank]);
      ++counts[edges[rank] + slot];
    }
  }
  EXPECT_LT(InclusionStatistic(counts, 20000, 4), CriticalValue(19));
  // It would see one slot that is never drawn in favour of its neighbour.
  counts[1] += std::exchange(counts[0], 0);
  EXPECT_GT(InclusionStatistic(counts, 20000, 4), 10 * CriticalValue(19));
}

TEST(Planner, FillCountsUpToTheLargestShareAreHandled) {
  const uint64_t largest = 0xFFFFFFFF;
  const Plan plan = MakePlan({largest, 0, largest}, {2000});
  const std::vector<Sample> samples = Samples(plan);
  EXPECT_EQ(std::set<Sample>(samples.begin(), samples.end()).size(), 2000u);
  EXPECT_GT(*std::max_element(plan.slots.begin(), plan.slots.end()), uint32_t{1} << 31);
  EXPECT_NEAR(static_cast<double>(std::count(plan.ranks.begin(), plan.ranks.end(), 2u)), 1000, 150);
}

// Rank and slot of a number among all stored samples, counted out.
Sample SampleOf(uint64_t number, const std::vector<uint64_t>& fill) {
  uint32_t rank = 0;
  while (number >= fill[rank]) number -= fill[rank++];
  return {rank, static_cast<uint32_t>(number)};
}

TEST(Planner, AfterAnyChangesOfTheFillsItPlansAsANewOneWouldAndAsCountingDoes) {
  std::mt19937_64 random(11);
  Chooser chooser;
  std::vector<uint64_t> numbers;
  for (uint32_t num_ranks = 1; num_ranks <= 70; ++num_ranks) {
    const std::vector<uint32_t> draws = {7, 0, 3};
    Planner planner(draws, num_ranks);
    std::vector<uint64_t> fill(num_ranks, 0);
    for (uint64_t step = 1; step <= 40; ++step) {
      for (uint64_t changes = random() % 4; changes > 0; --changes) {
        const auto rank = static_cast<uint32_t>(random() % num_ranks);
        // Up, down, to nothing, to the largest share, and the same again.
        const uint64_t stored =
            std::vector<uint64_t>{random() % 9, fill[rank] / 2, 0, 0xFFFFFFFF, fill[rank]}[random() % 5];
        fill[rank] = stored;
        planner.SetFill(rank, stored);
      }
      const auto total = std::accumulate(fill.begin(), fill.end(), uint64_t{0});
      ASSERT_EQ(planner.total(), total);
      const RandomWords words(num_ranks, 0);
      Plan plan;
      planner.Make(step, words, plan);
      std::vector<Sample> expected;
      for (size_t draw = 0; draw < draws.size(); ++draw) {
        chooser.Choose(words, purpose::kDraw + draw, step, total, draws[draw], numbers);
        ASSERT_EQ(plan.sizes[draw], numbers.size());
        for (const uint64_t number : numbers) expected.push_back(SampleOf(number, fill));
      }
      ASSERT_EQ(Samples(plan), expected) << num_ranks << " ranks, step " << step;
      Plan of_new;
      PlannerOf(fill, draws).Make(step, words, of_new);
      ASSERT_EQ(Samples(plan), Samples(of_new)) << num_ranks << " ranks, step " << step;
    }
  }
}

TEST(Planner, EverySampleHasItsNumberWhateverRanksAreLeftOut) {
  for (uint32_t num_ranks = 1; num_ranks <= 70; ++num_ranks) {
    std::mt19937_64 random(num_ranks);
    Planner planner({1000}, num_ranks);
    std::vector<uint64_t> fill(num_ranks);
    for (int round = 0; round < 6; ++round) {
      for (uint32_t rank = 0; rank < num_ranks; ++rank) {
        fill[rank] = round == 5 ? 0 : random() % 2 * (random() % 5);
        planner.SetFill(rank, fill[rank]);
      }
      std::vector<Sample> expected;
      for (uint32_t rank = 0; rank < num_ranks; ++rank) {
        for (uint32_t slot = 0; slot < fill[rank]; ++slot) expected.emplace_back(rank, slot);
      }
      Plan plan;
      planner.Make(1, RandomWords(3, 0), plan);
      std::vector<Sample> samples = Samples(plan);
      std::sort(samples.begin(), samples.end());
      ASSERT_EQ(samples, expected) << num_ranks << " ranks, round " << round;
    }
  }
}

// What tests/contract/behaviour.py submits.
uint64_t BatchSize(uint64_t step, uint64_t rank) { return step == 6 ? 0 : (step + rank) % 5 + 2; }
int64_t Label(uint64_t step, uint64_t rank, uint64_t row) {
  return static_cast<int64_t>((step * 3 + rank * 5 + row * row) % (step / 3 + 2)) - 1;
}
int64_t Identity(uint64_t step, uint64_t rank, uint64_t row) {
  return static_cast<int64_t>(rank * 10'000'000 + step * 100 + row);
}

// Answers: per step, rank after rank, the number of writes, their rows in the batch, their slots; then per draw the
// number of its rows and which samples they are. Draws are made once every rank has inserted, but listed with the rank.
TEST(RecordedStreams, GiveTheSameSlotsAndTheSameDraws) {
  for (const known::KnownScenario& scenario : known::kScenarios) {
    SCOPED_TRACE(std::string(scenario.policy) + " on " + std::to_string(scenario.ranks) + " ranks");
    std::vector<std::unique_ptr<Policy>> policies;
    for (uint32_t rank = 0; rank < scenario.ranks; ++rank) {
      const bool one_more = rank < scenario.capacity % scenario.ranks;
      policies.push_back(MakePolicy(scenario.policy, scenario.capacity / scenario.ranks + one_more));
    }
    Planner planner(scenario.draws, scenario.ranks);
    Chooser chooser;
    std::vector<std::map<uint32_t, int64_t>> held(scenario.ranks);
    std::vector<Write> writes;
    std::vector<int64_t> answers;
    for (uint64_t step = 1; answers.size() < scenario.answers.size(); ++step) {
      std::vector<std::vector<int64_t>> written(scenario.ranks);
      for (uint32_t rank = 0; rank < scenario.ranks; ++rank) {
        const RandomWords words(scenario.seed, rank);
        const uint64_t size = BatchSize(step, rank);
        std::vector<uint64_t> rows(size);
        for (uint64_t row = 0; row < size; ++row) rows[row] = row;
        if (scenario.candidates < size) {
          chooser.Choose(words, purpose::kCandidates, step, size, scenario.candidates, rows);
          std::sort(rows.begin(), rows.end());
        }
        std::vector<int64_t> labels;
        for (const uint64_t row : rows) labels.push_back(Label(step, rank, row));
        policies[rank]->Insert(labels, size, step, words, writes);
        written[rank].push_back(static_cast<int64_t>(writes.size()));
        for (const Write& write : writes) written[rank].push_back(static_cast<int64_t>(rows[write.row]));
        for (const Write& write : writes) {
          written[rank].push_back(write.slot);
          held[rank][write.slot] = Identity(step, rank, rows[write.row]);
        }
        planner.SetFill(rank, policies[rank]->stored());
      }
      for (uint32_t rank = 0; rank < scenario.ranks; ++rank) {
        answers.insert(answers.end(), written[rank].begin(), written[rank].end());
        Plan plan;
        planner.Make(step, RandomWords(scenario.seed, rank), plan);
        std::size_t row = 0;
        for (const uint32_t size : plan.sizes) {
          answers.push_back(size);
          for (const std::size_t end = row + size; row < end; ++row) {
            answers.push_back(held[plan.ranks[row]].at(plan.slots[row]));
          }
        }
      }
      const auto wrong =
          std::mismatch(answers.begin(), answers.end(), scenario.answers.begin(), scenario.answers.end());
      ASSERT_EQ(wrong.first, answers.end()) << "step " << step;
    }
  }
}

}  // namespace
}  // namespace reprise
