#include "staging.h"

#include <gtest/gtest.h>

#include <cstring>
#include <stdexcept>

namespace reprise {
namespace {

const std::vector<uint64_t> kFields = {1, 3, 8, 4096, 12};
const std::vector<uint64_t> kRowBytes = {1, 3, 8, 4096, 12, 8, 8, 8, 4};  // with labels, tasks, ranks and weights

TEST(Staging, DrawRowsStartOnCacheLinesBehindFrontRowsWithoutAGap) {
  const Layout layout(kFields);
  for (const uint64_t front : {0, 1, 7, 64, 100}) {
    for (const uint64_t rows : {0, 1, 33}) {
      const Staging staging(layout, front, rows, 0);
      ASSERT_EQ(staging.front(), front);
      ASSERT_EQ(staging.columns().size(), kRowBytes.size());
      const std::byte* end = staging.memory()->data();
      for (size_t column = 0; column < kRowBytes.size(); ++column) {
        std::byte* const start = staging.columns()[column];
        EXPECT_GE(start, end) << "column " << column << " overlaps the one before";
        EXPECT_EQ(reinterpret_cast<uintptr_t>(start + front * kRowBytes[column]) % 64, 0u) << "column " << column;
        end = start + (front + rows) * kRowBytes[column];
      }
      EXPECT_LE(end, staging.memory()->data() + staging.memory()->size());
    }
  }
}

TEST(Staging, ColumnsComeInTheOrderOfFieldsLabelsTasksRanksWeights) {
  const Staging staging(Layout(kFields), 2, 3, 0);
  for (size_t field = 0; field < kFields.size(); ++field) EXPECT_EQ(staging.field(field), staging.columns()[field]);
  EXPECT_EQ(reinterpret_cast<std::byte*>(staging.labels()), staging.columns()[5]);
  EXPECT_EQ(reinterpret_cast<std::byte*>(staging.tasks()), staging.columns()[6]);
  EXPECT_EQ(reinterpret_cast<std::byte*>(staging.ranks()), staging.columns()[7]);
  EXPECT_EQ(reinterpret_cast<std::byte*>(staging.weights()), staging.columns()[8]);
}

TEST(Staging, FrontRowsAreBornWithWeightOneAndTheOwnRank) {
  const Staging staging(Layout(kFields), 9, 4, 3);
  for (uint64_t row = 0; row < 13; ++row) {
    EXPECT_EQ(staging.weights()[row], row < 9 ? 1.0f : 0.0f);
    EXPECT_EQ(staging.ranks()[row], row < 9 ? 3 : 0);
  }
}

TEST(Staging, TakesOverTheDrawsOfOneWithAnotherFront) {
  const Layout layout(kFields);
  const uint64_t rows = 20;
  const Staging old(layout, 5, rows, 1);
  for (size_t column = 0; column < kRowBytes.size(); ++column) {
    for (uint64_t i = 0; i < rows * kRowBytes[column]; ++i) {
      old.columns()[column][5 * kRowBytes[column] + i] = static_cast<std::byte>(1 + (i + column) % 250);
    }
  }
  for (const uint64_t front : {0, 3, 300}) {
    for (const uint64_t taken : {uint64_t{0}, uint64_t{7}, rows}) {
      Staging larger(layout, front, rows, 1);
      larger.CopyDraws(old, taken);
      for (size_t column = 0; column < kRowBytes.size(); ++column) {
        const uint64_t bytes = kRowBytes[column];
        EXPECT_EQ(
            std::memcmp(larger.columns()[column] + front * bytes, old.columns()[column] + 5 * bytes, taken * bytes), 0);
        for (uint64_t i = taken * bytes; i < rows * bytes; ++i) {
          ASSERT_EQ(larger.columns()[column][front * bytes + i], std::byte{0}) << "more rows than asked for";
        }
      }
      for (uint64_t row = 0; row < front; ++row) EXPECT_EQ(larger.weights()[row], 1.0f);
    }
  }
}

TEST(Staging, MoreRowsThanAnyMachineAddressesAreRefusedInsteadOfOverflowing) {
  const Layout layout(kFields);
  for (const uint64_t rows : {uint64_t{1} << 60, uint64_t{1} << 62, UINT64_MAX}) {
    EXPECT_THROW(Staging(layout, rows, 4, 0), std::runtime_error);
    EXPECT_THROW(Staging(layout, 4, rows, 0), std::runtime_error);
  }
}

TEST(Staging, MemoryLivesAsLongAsSomebodyHoldsIt) {
  std::shared_ptr<Slab> memory;
  int64_t* labels;
  {
    const Staging staging(Layout(kFields), 0, 4, 0);
    memory = staging.memory();
    labels = staging.labels();
    labels[2] = 42;
  }
  EXPECT_EQ(memory.use_count(), 1);
  EXPECT_EQ(labels[2], 42);
}

}  // namespace
}  // namespace reprise
