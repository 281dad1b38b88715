#include "fifo.h"

#include <gtest/gtest.h>

#include <random>
#include <stdexcept>

namespace reprise {
namespace {

TEST(Fifo, StoresExactlyTheNewest) {
  for (const uint32_t share : {1u, 7u, 30u}) {
    Fifo fifo(share);
    std::mt19937_64 random(share);
    std::vector<int64_t> held(share, -1);
    std::vector<Write> writes;
    int64_t offered = 0;
    for (uint64_t step = 1; step < 60; ++step) {
      const std::vector<int64_t> labels(random() % 40);
      fifo.Insert(labels, labels.size() + 3, step, RandomWords(0, 0), writes);
      for (const Write& write : writes) held[write.slot] = offered + write.row;
      offered += static_cast<int64_t>(labels.size());
      for (uint32_t slot = 0; slot < fifo.stored(); ++slot) {
        EXPECT_GE(held[slot], offered - static_cast<int64_t>(share));
        EXPECT_EQ(held[slot] % share, slot) << "the slots form a ring";
      }
      EXPECT_EQ(fifo.stored(), std::min<uint64_t>(share, static_cast<uint64_t>(offered)));
    }
  }
}

TEST(Fifo, OnlyTheRowsThatStayAreWritten) {
  Fifo fifo(3);
  std::vector<Write> writes;
  fifo.Insert(std::vector<int64_t>(2), 2, 1, RandomWords(0, 0), writes);
  fifo.Insert(std::vector<int64_t>(5), 5, 2, RandomWords(0, 0), writes);
  EXPECT_EQ(writes, (std::vector<Write>{{2, 1}, {3, 2}, {4, 0}}));
}

TEST(Fifo, WeighsEverySampleAlike) {
  Fifo fifo(7);
  std::vector<Write> writes;
  fifo.Insert(std::vector<int64_t>(20), 20, 1, RandomWords(0, 0), writes);
  EXPECT_EQ(fifo.InverseInclusion(6), 1.0);
  EXPECT_EQ(fifo.Mass(), 7u);
}

TEST(Fifo, ReadsAReshardedStateWhoseHeadLiesAfterTheLastSlot) {
  Fifo fifo(4);
  fifo.Load({{"stored", int64_t{4}}, {"head", int64_t{4}}});
  EXPECT_EQ(fifo.State(), (PolicyState{{"stored", int64_t{4}}, {"head", int64_t{0}}}));
  std::vector<Write> writes;
  fifo.Insert(std::vector<int64_t>(1), 1, 1, RandomWords(0, 0), writes);
  EXPECT_EQ(writes, (std::vector<Write>{{0, 0}}));
}

TEST(Fifo, RefusesAHeadThatDoesNotGoWithWhatIsStored) {
  Fifo fifo(4);
  EXPECT_THROW(fifo.Load({{"stored", int64_t{2}}, {"head", int64_t{3}}}), std::invalid_argument);
  EXPECT_THROW(fifo.Load({{"stored", int64_t{4}}, {"head", int64_t{5}}}), std::invalid_argument);
  EXPECT_THROW(fifo.Load({{"stored", int64_t{4}}, {"head", int64_t{-1}}}), std::invalid_argument);
  EXPECT_EQ(fifo.stored(), 0u);
}

}  // namespace
}  // namespace reprise
