#include "policy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <stdexcept>

namespace reprise {
namespace {

// A share as the engine uses it. Checks what every policy promises at each step.
class Shelf {
 public:
  Shelf(const std::string& policy, uint32_t share, uint64_t seed = 1)
      : policy_(MakePolicy(policy, share)), words_(seed, 0), share_(share) {}

  const std::vector<Write>& Offer(const std::vector<int64_t>& labels, uint64_t batch_size) {
    policy_->Insert(labels, batch_size, ++step_, words_, writes_);
    UpdateTable();
    for (std::size_t i = 0; i < writes_.size(); ++i) {
      EXPECT_LT(writes_[i].row, labels.size());
      EXPECT_LT(writes_[i].slot, policy_->stored());
      EXPECT_TRUE(i == 0 || writes_[i - 1].row < writes_[i].row) << "rows do not ascend";
      EXPECT_TRUE(in_batch_.insert(writes_[i].slot).second) << "slot " << writes_[i].slot << " twice in one batch";
      filled_.insert(writes_[i].slot);
    }
    in_batch_.clear();
    EXPECT_EQ(filled_.size(), policy_->stored()) << "a slot was counted as stored and never written";
    EXPECT_LE(policy_->stored(), share_);
    return writes_;
  }

  Policy& policy() { return *policy_; }
  // As after a restore: nothing is left but the state.
  void Reload(const std::string& name) {
    const PolicyState state = policy_->State();
    policy_ = MakePolicy(name, share_);
    table_.clear();
    stratum_of_slot_.clear();
    Load(state);
    for (uint32_t slot = 0; slot < policy_->stored(); ++slot) stratum_of_slot_[slot] = policy_->Stratum(slot);
  }
  void Load(const PolicyState& state) {
    policy_->Load(state);
    UpdateTable();
  }

  // What a record says about its sample is written with it, and the table holds what ChangedStrata() said last.
  void CheckStrata() {
    for (const Write& write : writes_) stratum_of_slot_[write.slot] = policy_->Stratum(write.slot);
    for (uint32_t slot = 0; slot < policy_->stored(); ++slot) {
      const auto stratum = stratum_of_slot_.find(slot);
      ASSERT_NE(stratum, stratum_of_slot_.end()) << "slot " << slot;
      ASSERT_EQ(policy_->Stratum(slot), stratum->second) << "slot " << slot << " changed without being written";
      const auto value = table_.find(stratum->second);
      ASSERT_NE(value, table_.end()) << "stratum " << stratum->second << " has no value";
      ASSERT_EQ(policy_->InverseInclusion(slot), value->second) << "slot " << slot << " of " << policy_->stored();
    }
  }

 private:
  void UpdateTable() {
    std::vector<StratumValue> values = {{0xFFFFFFFF, 0}};  // which is replaced
    policy_->ChangedStrata(values);
    for (const auto& [stratum, value] : values) {
      EXPECT_LT(stratum, share_);
      table_[stratum] = value;
    }
  }

  std::unique_ptr<Policy> policy_;
  RandomWords words_;
  uint32_t share_;
  uint64_t step_ = 0;
  std::vector<Write> writes_;
  std::set<uint32_t> in_batch_, filled_;
  std::map<uint32_t, double> table_;  // by stratum
  std::map<uint32_t, uint32_t> stratum_of_slot_;
};

std::vector<int64_t> RandomLabels(std::mt19937_64& random, std::size_t count, uint64_t num_classes) {
  std::vector<int64_t> labels(count);
  for (int64_t& label : labels) label = static_cast<int64_t>(random() % num_classes) - 2;
  return labels;
}

TEST(MakePolicy, RefusesWhatItCannotMake) {
  EXPECT_THROW(MakePolicy("random", 5), std::invalid_argument);
  EXPECT_THROW(MakePolicy("", 5), std::invalid_argument);
  EXPECT_THROW(MakePolicy("fifo", 0), std::invalid_argument);
}

TEST(LastWrites, OfSeveralWritesToASlotTheLastOneStays) {
  LastWrites last;
  std::vector<Write> writes = {{0, 4}, {1, 1}, {2, 4}, {3, 2}, {4, 1}, {5, 4}};
  last.Keep(writes);
  EXPECT_EQ(writes, (std::vector<Write>{{3, 2}, {4, 1}, {5, 4}}));
  last.Keep(writes);
  EXPECT_EQ(writes, (std::vector<Write>{{3, 2}, {4, 1}, {5, 4}}));
  writes.clear();
  last.Keep(writes);
  EXPECT_TRUE(writes.empty());
}

TEST(LastWrites, HandlesManySlotsAndTheLargest) {
  LastWrites last;
  std::vector<Write> writes;
  for (uint32_t row = 0; row < 3000; ++row) writes.push_back({row, 0xFFFFFFFE - row % 1000 * 4096});
  last.Keep(writes);
  ASSERT_EQ(writes.size(), 1000u);
  EXPECT_EQ(writes.front(), (Write{2000, 0xFFFFFFFE}));
  EXPECT_EQ(writes.back(), (Write{2999, 0xFFFFFFFE - 999 * 4096}));
}

class EveryPolicy : public testing::TestWithParam<const char*> {};

TEST_P(EveryPolicy, KeepsItsPromisesOverRandomStreams) {
  std::mt19937_64 random(3);
  for (const uint32_t share : {1u, 2u, 7u, 40u, 300u}) {
    Shelf shelf(GetParam(), share, share);
    for (int step = 0; step < 120; ++step) {
      const std::size_t count = random() % 50;
      shelf.Offer(RandomLabels(random, count, 1 + random() % 60), count + random() % 3 * count);
    }
    EXPECT_EQ(shelf.policy().stored(), share);
  }
}

TEST_P(EveryPolicy, NoCandidatesChangeNothing) {
  Shelf shelf(GetParam(), 5);
  EXPECT_TRUE(shelf.Offer({}, 0).empty());
  EXPECT_EQ(shelf.policy().stored(), 0u);
  EXPECT_EQ(shelf.policy().Mass(), 0u);
  shelf.Offer({1, 2, 1}, 3);
  const PolicyState before = shelf.policy().State();
  EXPECT_TRUE(shelf.Offer({}, 0).empty());
  EXPECT_EQ(shelf.policy().State(), before);
}

TEST_P(EveryPolicy, ABatchLargerThanTheShareFillsIt) {
  Shelf shelf(GetParam(), 6);
  const std::vector<int64_t> labels = {1, 1, 2, 2, 3, 3, 3, 3, 1, 2, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9};
  EXPECT_EQ(shelf.Offer(labels, labels.size()).size(), 6u);
  EXPECT_EQ(shelf.policy().stored(), 6u);
}

TEST_P(EveryPolicy, MoreCandidatesThanSamplesAreRefusedAndChangeNothing) {
  Shelf shelf(GetParam(), 4);
  shelf.Offer({1, 2, 3}, 3);
  const PolicyState before = shelf.policy().State();
  std::vector<Write> writes;
  const std::vector<int64_t> labels = {1, 2, 3};
  EXPECT_THROW(shelf.policy().Insert(labels, 2, 2, RandomWords(1, 0), writes), std::invalid_argument);
  EXPECT_EQ(shelf.policy().State(), before);
}

TEST_P(EveryPolicy, GoesOnFromItsStateAsIfNothingHadHappened) {
  std::mt19937_64 random(8);
  Shelf straight(GetParam(), 37), reloaded(GetParam(), 37);
  for (int step = 0; step < 200; ++step) {
    // Few classes, then many: sizes shift in mid-stream.
    const std::vector<int64_t> labels = RandomLabels(random, random() % 12, 1 + static_cast<uint64_t>(step) / 10);
    const uint64_t batch_size = labels.size() * 2;
    ASSERT_EQ(straight.Offer(labels, batch_size), reloaded.Offer(labels, batch_size)) << "step " << step;
    ASSERT_EQ(straight.policy().Mass(), reloaded.policy().Mass());
    for (uint32_t slot = 0; slot < straight.policy().stored(); ++slot) {
      ASSERT_EQ(straight.policy().InverseInclusion(slot), reloaded.policy().InverseInclusion(slot));
    }
    ASSERT_EQ(straight.policy().State(), reloaded.policy().State());
    reloaded.Reload(GetParam());
  }
}

TEST_P(EveryPolicy, AStateWithAnEntryMissingOrOfAnotherKindIsRefusedAndChangesNothing) {
  Shelf shelf(GetParam(), 9);
  shelf.Offer({4, 4, 5, 6, 7, 4, 4, 4, 4, 4, 4}, 11);
  const PolicyState whole = shelf.policy().State();
  for (const auto& [key, value] : whole) {
    PolicyState broken = whole;
    broken.erase(key);
    EXPECT_THROW(shelf.policy().Load(broken), std::invalid_argument) << key;
    if (std::holds_alternative<int64_t>(value)) {
      broken[key] = std::vector<int64_t>{std::get<int64_t>(value)};
    } else {
      broken[key] = int64_t{1};
    }
    EXPECT_THROW(shelf.policy().Load(broken), std::invalid_argument) << key;
    EXPECT_EQ(shelf.policy().State(), whole);
  }
  shelf.policy().Load(whole);
  EXPECT_EQ(shelf.policy().State(), whole);
}

TEST_P(EveryPolicy, AStateOfALargerShareIsRefused) {
  Shelf larger(GetParam(), 10);
  larger.Offer({4, 4, 5, 6, 7, 4, 4, 4, 4, 4}, 10);
  EXPECT_THROW(MakePolicy(GetParam(), 9)->Load(larger.policy().State()), std::invalid_argument);
  PolicyState negative = larger.policy().State();
  negative["stored"] = int64_t{-1};
  EXPECT_THROW(larger.policy().Load(negative), std::invalid_argument);
}

TEST_P(EveryPolicy, MassIsTheSumOfTheInverseInclusions) {
  std::mt19937_64 random(5);
  Shelf shelf(GetParam(), 25);
  for (int step = 0; step < 60; ++step) {
    const std::vector<int64_t> labels = RandomLabels(random, random() % 20, 1 + static_cast<uint64_t>(step));
    shelf.Offer(labels, labels.size());
    double sum = 0;
    for (uint32_t slot = 0; slot < shelf.policy().stored(); ++slot) sum += shelf.policy().InverseInclusion(slot);
    EXPECT_NEAR(sum, static_cast<double>(shelf.policy().Mass()), 1e-6 * sum);
  }
}

TEST_P(EveryPolicy, ATableOfChangedStrataAlwaysGivesTheInverseInclusions) {
  for (const uint32_t share : {1u, 2u, 7u, 40u, 300u}) {
    std::mt19937_64 random(share);
    Shelf shelf(GetParam(), share);
    for (int step = 0; step < 200; ++step) {
      // Few classes, then many more than slots, some of which are never stored; now and then no batch, or a large one.
      const std::size_t count = random() % 5 ? random() % 9 : random() % 3 * 30;
      const auto num_classes = 1 + static_cast<uint64_t>(step) * (random() % 2) / 2;
      shelf.Offer(RandomLabels(random, count, num_classes), count + random() % 3 * count);
      shelf.CheckStrata();
      if (random() % 8 == 0) shelf.Reload(GetParam());
      if (HasFatalFailure()) FAIL() << "share " << share << ", step " << step;
    }
  }
}

// Contents are also loaded into a policy that has strata of its own, and into whose table others look.
TEST_P(EveryPolicy, LoadingOverOtherContentsReplacesAllStrata) {
  std::mt19937_64 random(4);
  for (int repeat = 0; repeat < 50; ++repeat) {
    Shelf source(GetParam(), 30), target(GetParam(), 30);
    for (int step = 0; step < 12; ++step) {
      for (Shelf* shelf : {&source, &target}) {
        const std::vector<int64_t> labels = RandomLabels(random, random() % 10, 12);
        shelf->Offer(labels, labels.size());
      }
    }
    target.Load(source.policy().State());
    std::vector<StratumValue> values;
    target.policy().ChangedStrata(values);
    std::map<uint32_t, double> table;
    for (const auto& [stratum, value] : values) table[stratum] = value;
    for (uint32_t slot = 0; slot < target.policy().stored(); ++slot) {
      ASSERT_EQ(target.policy().InverseInclusion(slot), table.at(target.policy().Stratum(slot)));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Policies, EveryPolicy, testing::Values("class_balanced", "reservoir", "fifo"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace reprise
