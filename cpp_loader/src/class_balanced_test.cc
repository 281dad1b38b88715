#include "class_balanced.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <tuple>

#include "chi_square.h"

namespace reprise {
namespace {

using List = std::vector<int64_t>;

// A share whose slots remember which sample (its number in the stream) they hold.
struct Shelf {
  explicit Shelf(uint32_t share, uint64_t seed = 1) : policy(share), words(seed, 0), held(share, -1) {}

  void Offer(const List& labels) {
    policy.Insert(labels, labels.size(), ++step, words, writes);
    for (const Write& write : writes) held[write.slot] = static_cast<int64_t>(stream.size()) + write.row;
    stream.insert(stream.end(), labels.begin(), labels.end());
  }

  // Stored samples of each class that was ever seen.
  std::map<int64_t, uint64_t> Sizes() const {
    std::map<int64_t, uint64_t> sizes;
    for (const int64_t label : stream) sizes[label] = 0;
    for (uint32_t slot = 0; slot < policy.stored(); ++slot) ++sizes[stream[static_cast<std::size_t>(held[slot])]];
    return sizes;
  }

  ClassBalanced policy;
  RandomWords words;
  List held, stream;
  uint64_t step = 0;
  std::vector<Write> writes;
};

const List& ListOf(const PolicyState& state, const std::string& key) { return std::get<List>(state.at(key)); }

// The lists of members in a state, one per class.
std::vector<List> Lists(const PolicyState& state) {
  std::vector<List> lists;
  auto member = ListOf(state, "members").begin();
  for (const int64_t size : ListOf(state, "sizes")) {
    lists.emplace_back(member, member + size);
    member += size;
  }
  return lists;
}

PolicyState MakeState(int64_t stored, List labels, List seen, List sizes, List members) {
  return {{"stored", stored}, {"labels", labels}, {"seen", seen}, {"sizes", sizes}, {"members", members}};
}

// Slots go one by one to a smallest class that still has samples: the sizes in ascending order.
std::vector<uint64_t> EvenSizes(const List& stream, uint64_t share) {
  std::map<int64_t, uint64_t> left, sizes;
  for (const int64_t label : stream) ++left[label], sizes[label] = 0;
  for (uint64_t slot = 0; slot < std::min<uint64_t>(share, stream.size()); ++slot) {
    auto smallest = sizes.end();
    for (auto it = sizes.begin(); it != sizes.end(); ++it) {
      if (left[it->first] > 0 && (smallest == sizes.end() || it->second < smallest->second)) smallest = it;
    }
    ++smallest->second;
    --left[smallest->first];
  }
  std::vector<uint64_t> ascending;
  for (const auto& [label, size] : sizes) ascending.push_back(size);
  std::sort(ascending.begin(), ascending.end());
  return ascending;
}

TEST(ClassBalanced, SizesAreAtAllTimesAsEvenAsTheSamplesSeenAllow) {
  for (uint64_t seed = 0; seed < 30; ++seed) {
    std::mt19937_64 random(seed);
    Shelf shelf(static_cast<uint32_t>(1 + random() % 60), seed);
    const uint64_t num_classes = 1 + random() % 20;
    for (uint64_t step = 0; step < 40; ++step) {
      List labels(random() % 24);
      for (int64_t& label : labels) {
        // Classes open late, and the later ones are rarer.
        const uint64_t open = std::min(num_classes, 1 + step / 2);
        label = static_cast<int64_t>(std::min(random() % open, random() % open)) * 1'000'000'007 - 5;
      }
      shelf.Offer(labels);
      std::vector<uint64_t> sizes;
      for (const auto& [label, size] : shelf.Sizes()) sizes.push_back(size);
      std::sort(sizes.begin(), sizes.end());
      ASSERT_EQ(sizes, EvenSizes(shelf.stream, shelf.held.size())) << "seed " << seed << " step " << step;
    }
  }
}

TEST(ClassBalanced, ItsCountersMatchWhatLiesInTheSlots) {
  std::mt19937_64 random(4);
  Shelf shelf(40);
  for (int step = 0; step < 60; ++step) {
    List labels(12);
    for (int64_t& label : labels) label = static_cast<int64_t>(random() % (1 + static_cast<uint64_t>(step)) / 3);
    shelf.Offer(labels);
    const PolicyState state = shelf.policy.State();
    const std::vector<List> lists = Lists(state);
    const auto sizes = shelf.Sizes();
    uint64_t mass = 0;
    ASSERT_EQ(lists.size(), sizes.size());
    for (std::size_t number = 0; number < lists.size(); ++number) {
      const int64_t label = ListOf(state, "labels")[number];
      const auto seen = std::count(shelf.stream.begin(), shelf.stream.end(), label);
      EXPECT_EQ(ListOf(state, "seen")[number], seen);
      EXPECT_EQ(lists[number].size(), sizes.at(label));
      for (const int64_t slot : lists[number]) {
        EXPECT_EQ(shelf.stream[static_cast<std::size_t>(shelf.held[static_cast<std::size_t>(slot)])], label);
        EXPECT_EQ(shelf.policy.InverseInclusion(static_cast<uint32_t>(slot)),
                  static_cast<double>(seen) / static_cast<double>(lists[number].size()));
      }
      if (!lists[number].empty()) mass += static_cast<uint64_t>(seen);
    }
    EXPECT_EQ(shelf.policy.Mass(), mass);
    EXPECT_EQ(std::get<int64_t>(state.at("stored")), 40 < step * 12 + 12 ? 40 : step * 12 + 12);
  }
}

TEST(ClassBalanced, ClassesAreNumberedByFirstAppearance) {
  Shelf shelf(3);
  shelf.Offer({7, -3, 7, INT64_MIN, INT64_MAX, 7});
  shelf.Offer({0, -3});
  EXPECT_EQ(ListOf(shelf.policy.State(), "labels"), (List{7, -3, INT64_MIN, INT64_MAX, 0}));
}

TEST(ClassBalanced, MakesRoomForANewClassFromTheLargest) {
  Shelf shelf(30);
  List labels(30, 2);
  std::fill_n(labels.begin(), 5, 1);
  shelf.Offer(labels);
  shelf.Offer(List(4, -9));
  EXPECT_EQ(shelf.Sizes(), (std::map<int64_t, uint64_t>{{1, 5}, {2, 21}, {-9, 4}}));
}

TEST(ClassBalanced, SlotsThatCannotBeSharedEvenlyStayWhereTheyAre) {
  Shelf shelf(5);
  shelf.Offer({1, 2, 2, 2, 2});
  shelf.Offer({1, 1, 1});
  EXPECT_EQ(shelf.Sizes(), (std::map<int64_t, uint64_t>{{1, 2}, {2, 3}}));
}

TEST(ClassBalanced, AClassThatIsNoLongerStoredWholeGetsNoRoomEvenIfItIsSmall) {
  // More room for the later samples of such a class would favour them over those that were evicted.
  ClassBalanced policy(6);
  policy.Load(MakeState(6, {1, 2}, {2, 10}, {1, 5}, {0, 1, 2, 3, 4, 5}));
  std::vector<Write> writes;
  policy.Insert(List(9, 1), 9, 1, RandomWords(1, 0), writes);
  EXPECT_EQ(ListOf(policy.State(), "sizes"), (List{1, 5}));
  for (const Write& write : writes) EXPECT_EQ(write.slot, 0u);
}

TEST(ClassBalanced, AClassNeverLosesItsLastSlot) {
  Shelf shelf(5);
  shelf.Offer({1, 1, 1, 2, 3});
  // All of these would like room. Three classes have one slot left each, the two freed ones go to the first new ones.
  shelf.Offer({4, 5, 6, 7, 8, 9, 10, 11});
  EXPECT_EQ(shelf.Sizes(),
            (std::map<int64_t, uint64_t>{
                {1, 1}, {2, 1}, {3, 1}, {4, 1}, {5, 1}, {6, 0}, {7, 0}, {8, 0}, {9, 0}, {10, 0}, {11, 0}}));
  EXPECT_EQ(shelf.policy.Mass(), 7u);
  shelf.Offer({11, 12, 1, 2});
  EXPECT_EQ(shelf.Sizes().at(12), 0u);
  EXPECT_EQ(shelf.policy.Mass(), 9u);
}

TEST(ClassBalanced, TheLastMembersMoveIntoThePlacesOfTheEvicted) {
  uint64_t num_holes = 0;
  for (uint64_t seed = 0; seed < 40; ++seed) {
    std::mt19937_64 random(seed);
    const uint32_t share = 60;
    // Two classes that have seen more than they hold, so that what they are offered now gives no growth.
    List slots(share);
    std::iota(slots.begin(), slots.end(), 0);
    std::shuffle(slots.begin(), slots.end(), random);
    const int64_t first_size = 20 + static_cast<int64_t>(random() % 21);
    Shelf shelf(share, seed);
    shelf.policy.Load(MakeState(share, {8, 9}, {100, 100}, {first_size, share - first_size}, slots));
    const std::vector<List> before = Lists(shelf.policy.State());

    const std::size_t num_new = 1 + random() % 20;
    shelf.policy.Insert(List(num_new, -1), num_new, 3, shelf.words, shelf.writes);
    const std::vector<List> after = Lists(shelf.policy.State());

    std::vector<uint64_t> bounds, positions;
    std::vector<uint32_t> groups;
    for (uint32_t number = 0; number < 2; ++number) {
      const std::size_t evictions = before[number].size() - after[number].size();
      bounds.insert(bounds.end(), evictions, before[number].size());
      groups.insert(groups.end(), evictions, number);
    }
    ASSERT_EQ(bounds.size(), num_new);
    Chooser().DistinctBelow(shelf.words, purpose::kEvict, 3, bounds, groups, positions);
    List freed;
    for (std::size_t i = 0; i < num_new; ++i) freed.push_back(before[groups[i]][positions[i]]);
    EXPECT_EQ(after[2], freed) << "growing appends the freed slots in the order of the entries";
    for (std::size_t row = 0; row < num_new; ++row) {
      EXPECT_EQ(shelf.writes[row], (Write{static_cast<uint32_t>(row), static_cast<uint32_t>(freed[row])}));
    }
    for (uint32_t number = 0; number < 2; ++number) {
      List expected = before[number], holes, movers;
      const auto gone = [&](std::size_t position) {
        return std::count(freed.begin(), freed.end(), before[number][position]) > 0;
      };
      for (std::size_t position = 0; position < expected.size(); ++position) {
        if (position < after[number].size() && gone(position)) holes.push_back(static_cast<int64_t>(position));
        if (position >= after[number].size() && !gone(position)) movers.push_back(expected[position]);
      }
      ASSERT_EQ(holes.size(), movers.size());
      for (std::size_t i = 0; i < holes.size(); ++i) expected[static_cast<std::size_t>(holes[i])] = movers[i];
      expected.resize(after[number].size());
      EXPECT_EQ(after[number], expected) << "seed " << seed;
      num_holes += holes.size() > 1 ? holes.size() : 0;
    }
  }
  EXPECT_GT(num_holes, 40u) << "cases in which the order of holes and movers matters";
}

TEST(ClassBalanced, ReplacingASampleLeavesTheListsAsTheyAre) {
  Shelf shelf(12);
  for (int i = 0; i < 12; ++i) shelf.Offer({i % 2});
  const auto before = Lists(shelf.policy.State());
  std::size_t replaced = 0;
  for (int i = 0; i < 30; ++i) {
    shelf.Offer({i % 2, i % 2});
    replaced += shelf.writes.size();
  }
  EXPECT_GT(replaced, 5u);
  EXPECT_EQ(Lists(shelf.policy.State()), before);
}

// Which batches a class-incremental or a mixed stream comes in.
class ClassBalancedUniformity : public testing::TestWithParam<std::tuple<bool, std::size_t>> {};

TEST_P(ClassBalancedUniformity, InsideEachClassEverySampleIsStoredEquallyOften) {
  const auto [mixed, batch_size] = GetParam();
  const std::size_t num_classes = 4, per_class = 30, replicates = 4000;
  List stream(num_classes * per_class);
  for (std::size_t i = 0; i < stream.size(); ++i) stream[i] = static_cast<int64_t>(i / per_class) - 1;
  std::mt19937_64 random(6);
  if (mixed) std::shuffle(stream.begin(), stream.end(), random);
  std::vector<std::vector<uint64_t>> counts(num_classes, std::vector<uint64_t>(per_class, 0));
  // The number of each sample within its class.
  List occurrence;
  for (std::size_t i = 0; i < stream.size(); ++i)
    occurrence.push_back(std::count(stream.begin(), stream.begin() + static_cast<int64_t>(i), stream[i]));
  for (uint64_t seed = 0; seed < replicates; ++seed) {
    Shelf shelf(4 * num_classes, seed);
    for (std::size_t first = 0; first < stream.size(); first += batch_size) {
      const std::size_t end = std::min(first + batch_size, stream.size());
      shelf.Offer(List(stream.begin() + static_cast<int64_t>(first), stream.begin() + static_cast<int64_t>(end)));
    }
    for (const int64_t held : shelf.held) {
      const auto sample = static_cast<std::size_t>(held);
      ++counts[static_cast<std::size_t>(stream[sample] + 1)][static_cast<std::size_t>(occurrence[sample])];
    }
  }
  for (const std::vector<uint64_t>& of_class : counts) {
    EXPECT_LT(InclusionStatistic(of_class, replicates, 4), CriticalValue(per_class - 1));
  }
  // It would see that the first samples of a class stay a tenth more often than the last.
  for (std::size_t i = 0; i < per_class / 2; ++i) {
    const uint64_t moved = counts[0][i] / 20;
    counts[0][i] += moved;
    counts[0][per_class - 1 - i] -= moved;
  }
  EXPECT_GT(InclusionStatistic(counts[0], replicates, 4), CriticalValue(per_class - 1));
}

INSTANTIATE_TEST_SUITE_P(Streams, ClassBalancedUniformity,
                         testing::Combine(testing::Bool(), testing::Values(3, 10, 40)), [](const auto& info) {
                           return (std::get<0>(info.param) ? "Mixed" : "Incremental") +
                                  std::to_string(std::get<1>(info.param));
                         });

TEST(ClassBalanced, ThousandsOfClassesAreToldApart) {
  std::mt19937_64 random(2);
  Shelf shelf(500);
  List names(3000);
  // Multiples of a large power of two: their low bits say nothing.
  for (std::size_t i = 0; i < names.size(); ++i)
    names[i] = static_cast<int64_t>(i << 50) + static_cast<int64_t>(i >> 10);
  for (int step = 0; step < 200; ++step) {
    List labels(40);
    for (int64_t& label : labels) label = names[random() % names.size()];
    shelf.Offer(labels);
  }
  const PolicyState state = shelf.policy.State();
  for (std::size_t number = 0; number < ListOf(state, "labels").size(); ++number) {
    const int64_t label = ListOf(state, "labels")[number];
    ASSERT_EQ(ListOf(state, "seen")[number], std::count(shelf.stream.begin(), shelf.stream.end(), label));
  }
  shelf.policy.Load(state);
  EXPECT_EQ(shelf.policy.State(), state);
}

TEST(ClassBalanced, AListThatShrinksAndGrowsAgainKeepsItsMembers) {
  Shelf shelf(4000);
  shelf.Offer(List(4000, 0));
  for (int64_t label = 1; label <= 40; ++label) {
    for (int i = 0; i < 8; ++i) shelf.Offer(List(500, label));
    std::vector<bool> listed(4000, false);
    for (const List& list : Lists(shelf.policy.State())) {
      for (const int64_t slot : list) listed[static_cast<std::size_t>(slot)] = true;
    }
    ASSERT_EQ(std::count(listed.begin(), listed.end(), true), 4000);
  }
  for (const auto& [label, size] : shelf.Sizes()) EXPECT_NEAR(static_cast<double>(size), 4000.0 / 41, 1) << label;
}

TEST(ClassBalanced, AStateThatCannotBeIsRefusedAndChangesNothing) {
  ClassBalanced policy(6);
  const PolicyState good = MakeState(5, {3, -1, 8}, {10, 2, 4}, {2, 2, 1}, {4, 0, 1, 3, 2});
  policy.Load(good);
  EXPECT_EQ(policy.State(), good);
  EXPECT_EQ(policy.Mass(), 16u);
  EXPECT_EQ(policy.InverseInclusion(4), 5.0);
  const std::map<std::string, PolicyState> refused = {
      {"slot beyond the stored", MakeState(5, {3, -1, 8}, {10, 2, 4}, {2, 2, 1}, {4, 0, 1, 3, 5})},
      {"negative slot", MakeState(5, {3, -1, 8}, {10, 2, 4}, {2, 2, 1}, {4, 0, 1, 3, -1})},
      {"slot twice", MakeState(5, {3, -1, 8}, {10, 2, 4}, {2, 2, 1}, {4, 0, 1, 3, 4})},
      {"sizes below stored", MakeState(5, {3, -1, 8}, {10, 2, 4}, {2, 1, 1}, {4, 0, 1, 3, 2})},
      {"sizes above stored", MakeState(5, {3, -1, 8}, {10, 2, 4}, {2, 2, 2}, {4, 0, 1, 3, 2})},
      {"negative size", MakeState(5, {3, -1, 8}, {10, 2, 4}, {-1, 5, 1}, {4, 0, 1, 3, 2})},
      {"too few members", MakeState(5, {3, -1, 8}, {10, 2, 4}, {2, 2, 1}, {4, 0, 1, 3})},
      {"too many members", MakeState(4, {3, -1, 8}, {10, 2, 4}, {2, 2, 1}, {4, 0, 1, 3, 2})},
      {"label twice", MakeState(5, {3, -1, 3}, {10, 2, 4}, {2, 2, 1}, {4, 0, 1, 3, 2})},
      {"fewer seen than stored", MakeState(5, {3, -1, 8}, {10, 1, 4}, {2, 2, 1}, {4, 0, 1, 3, 2})},
      {"seen of another length", MakeState(5, {3, -1, 8}, {10, 2}, {2, 2, 1}, {4, 0, 1, 3, 2})},
      {"sizes of another length", MakeState(5, {3, -1, 8}, {10, 2, 4}, {2, 3}, {4, 0, 1, 3, 2})},
      {"more stored than slots", MakeState(7, {3}, {10}, {7}, {0, 1, 2, 3, 4, 5, 6})},
  };
  for (const auto& [what, state] : refused) {
    EXPECT_THROW(policy.Load(state), std::invalid_argument) << what;
    EXPECT_EQ(policy.State(), good) << what;
    EXPECT_EQ(policy.Mass(), 16u) << what;
  }
  policy.Load(MakeState(0, {}, {}, {}, {}));
  EXPECT_EQ(policy.stored(), 0u);
}

TEST(ClassBalanced, AStratumIsAClassThatHasASlotAndHoldsItsRatio) {
  Shelf shelf(4);
  shelf.Offer({5, 5, 5, 9});
  EXPECT_EQ(shelf.policy.Stratum(0), shelf.policy.Stratum(2));
  EXPECT_NE(shelf.policy.Stratum(0), shelf.policy.Stratum(3));
  std::vector<StratumValue> values;
  shelf.policy.ChangedStrata(values);
  EXPECT_EQ(values.size(), 2u);
  // More classes than slots: those that find none have no stratum, and the others keep theirs.
  std::map<int64_t, uint32_t> stratum_of_class;
  for (int64_t label = 20; label < 60; ++label) {
    shelf.Offer({label, label});
    for (uint32_t slot = 0; slot < 4; ++slot) {
      const int64_t of_slot = shelf.stream[static_cast<std::size_t>(shelf.held[slot])];
      const auto [known, is_new] = stratum_of_class.emplace(of_slot, shelf.policy.Stratum(slot));
      ASSERT_EQ(known->second, shelf.policy.Stratum(slot)) << "class " << of_slot;
      ASSERT_LT(known->second, 4u);
    }
  }
  std::set<uint32_t> strata;
  for (const auto& [label, stratum] : stratum_of_class) strata.insert(stratum);
  EXPECT_EQ(strata.size(), stratum_of_class.size()) << "two classes share a stratum";
}

TEST(ClassBalanced, AClassThatLosesSlotsToOthersHasAnotherValue) {
  Shelf shelf(12);
  shelf.Offer(List(12, 1));
  std::vector<StratumValue> values;
  shelf.policy.ChangedStrata(values);
  ASSERT_EQ(values.size(), 1u);
  EXPECT_EQ(values[0].inverse_inclusion, 1.0);
  const uint32_t of_first = values[0].stratum;
  shelf.Offer({2, 2, 2, 2});
  ASSERT_EQ(shelf.Sizes().at(1), 8u);
  shelf.policy.ChangedStrata(values);
  std::map<uint32_t, double> table;
  for (const auto& [stratum, value] : values) table[stratum] = value;
  ASSERT_EQ(table.size(), 2u);
  EXPECT_EQ(table.at(of_first), 12.0 / 8);
  table.erase(of_first);
  EXPECT_EQ(table.begin()->second, 1.0);
}

// A state that was put together from several ranks' knows classes of which nothing is stored here.
TEST(ClassBalanced, ClassesThatGetTheirFirstSlotAfterALoadGetStrataOfTheirOwn) {
  ClassBalanced policy(3);
  policy.Load(MakeState(1, {3, 4, 5, 6, 7}, {10, 7, 5, 2, 9}, {0, 0, 1, 0, 0}, {0}));
  EXPECT_LT(policy.Stratum(0), 3u);
  std::vector<Write> writes;
  policy.Insert(List{3, 7}, 2, 1, RandomWords(1, 0), writes);
  std::set<uint32_t> strata;
  for (uint32_t slot = 0; slot < 3; ++slot) strata.insert(policy.Stratum(slot));
  EXPECT_EQ(strata, (std::set<uint32_t>{0, 1, 2}));
}

TEST(ClassBalanced, AClassOfWhichNothingIsStoredIsNotPartOfTheMass) {
  ClassBalanced policy(2);
  policy.Load(MakeState(1, {3, 4}, {10, 7}, {1, 0}, {0}));
  EXPECT_EQ(policy.Mass(), 10u);
  std::vector<Write> writes;
  policy.Insert(List{4}, 1, 1, RandomWords(1, 0), writes);
  EXPECT_EQ(policy.Mass(), 18u);
  EXPECT_EQ(policy.InverseInclusion(1), 8.0);
}

}  // namespace
}  // namespace reprise
