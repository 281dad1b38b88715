#include "layout.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <stdexcept>

namespace reprise {
namespace {

uint64_t Payload(const std::vector<uint64_t>& fields) {
  uint64_t bytes = 0;
  for (const uint64_t field : fields) bytes += field;
  return bytes;
}

double Overhead(const std::vector<uint64_t>& fields) {
  const auto payload = static_cast<double>(Payload(fields));
  return (static_cast<double>(Layout(fields).stride()) - payload) / payload;
}

TEST(Layout, FieldsFollowTheHeaderAndEachOtherWithoutOverlap) {
  std::mt19937_64 random(1);
  for (int repeat = 0; repeat < 2000; ++repeat) {
    std::vector<uint64_t> fields(random() % 6);
    for (uint64_t& bytes : fields) bytes = 1 + random() % (uint64_t{1} << random() % 18);
    const Layout layout(fields);
    ASSERT_EQ(layout.num_fields(), fields.size());
    uint64_t end = sizeof(RecordHeader);
    for (size_t field = 0; field < fields.size(); ++field) {
      EXPECT_EQ(layout.field_bytes(field), fields[field]);
      EXPECT_GE(layout.field_offset(field), end);
      EXPECT_EQ(layout.field_offset(field) % 8, 0u);
      end = layout.field_offset(field) + fields[field];
    }
    EXPECT_GE(layout.stride(), end);
    EXPECT_EQ(layout.stride() % alignof(RecordHeader), 0u);
  }
}

TEST(Layout, LargeRecordsAndTheirFieldsStartOnCacheLines) {
  const Layout layout(std::vector<uint64_t>{12288, 400});
  EXPECT_EQ(layout.field_offset(0), 64u);
  EXPECT_EQ(layout.field_offset(1), 12352u);
  EXPECT_EQ(layout.stride(), 12800u);
  EXPECT_EQ(Layout(std::vector<uint64_t>{4096}).stride(), 4160u);
  EXPECT_EQ(Layout(std::vector<uint64_t>{602112}).stride() % 64, 0u);
}

TEST(Layout, ShortFieldsOfALargeRecordShareALine) {
  const Layout layout(std::vector<uint64_t>{8, 4, 12288});
  EXPECT_EQ(layout.field_offset(0), 24u);
  EXPECT_EQ(layout.field_offset(1), 32u);
  EXPECT_EQ(layout.field_offset(2), 64u);
}

TEST(Layout, SmallRecordsArePackedToWords) {
  EXPECT_EQ(Layout(std::vector<uint64_t>{1}).stride(), 32u);
  EXPECT_EQ(Layout(std::vector<uint64_t>{8}).stride(), 32u);
  EXPECT_EQ(Layout(std::vector<uint64_t>{9, 8}).stride(), 48u);
  EXPECT_EQ(Layout(std::vector<uint64_t>{784}).stride(), 808u);
}

TEST(Layout, CostsAtMost3PerCentFrom2KibOn) {
  for (uint64_t bytes = 2048; bytes < 20000; ++bytes) ASSERT_LE(Overhead({bytes}), 0.03) << bytes << " bytes";
  std::mt19937_64 random(2);
  for (int repeat = 0; repeat < 20000; ++repeat) {
    std::vector<uint64_t> fields(2 + random() % 3);
    for (uint64_t& bytes : fields) bytes = 1 + random() % 6000;
    fields.push_back(2048);
    ASSERT_LE(Overhead(fields), 0.03) << Payload(fields) << " bytes in " << fields.size() << " fields";
  }
}

TEST(Layout, AFieldWithoutBytesIsRefusedByItsNumber) {
  try {
    const Layout layout(std::vector<uint64_t>{4, 0, 4});
    FAIL() << "a field without bytes was accepted";
  } catch (const std::invalid_argument& error) {
    EXPECT_NE(std::string(error.what()).find("field 1 has 0 bytes"), std::string::npos) << error.what();
  }
}

TEST(Layout, MoreThanAnyMachineAddressesIsRefusedInsteadOfOverflowing) {
  EXPECT_THROW(Layout(std::vector<uint64_t>{UINT64_MAX}), std::invalid_argument);
  EXPECT_THROW(Layout(std::vector<uint64_t>{uint64_t{1} << 63, uint64_t{1} << 63}), std::invalid_argument);
  EXPECT_THROW(Layout(std::vector<uint64_t>{16, UINT64_MAX - 8}), std::invalid_argument);
}

}  // namespace
}  // namespace reprise
