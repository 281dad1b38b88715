#include "staging.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

namespace reprise {
namespace {

constexpr uint64_t kCacheLine = 64;
// More than any machine addresses, and small enough for sums not to overflow.
constexpr uint64_t kMaxColumn = uint64_t{1} << 48;

uint64_t RoundUp(uint64_t bytes, uint64_t unit) { return (bytes + unit - 1) / unit * unit; }

}  // namespace

Staging::Staging(const Layout& layout, uint64_t front, uint64_t rows, int64_t rank)
    : num_fields_(layout.num_fields()), front_(front) {
  for (size_t field = 0; field < num_fields_; ++field) row_bytes_.push_back(layout.field_bytes(field));
  row_bytes_.insert(row_bytes_.end(), {sizeof(int64_t), sizeof(int64_t), sizeof(int64_t), sizeof(float)});

  std::vector<uint64_t> offsets;
  uint64_t end = 0;
  for (const uint64_t bytes : row_bytes_) {
    if (front > kMaxColumn / bytes || rows > kMaxColumn / bytes) {
      throw std::runtime_error("rows of new samples and draws: " + std::to_string(front) + " + " +
                               std::to_string(rows) + " rows of " + std::to_string(bytes) + " bytes refused");
    }
    // Draw rows start on a cache line, the first front row where it must.
    const uint64_t before = front * bytes;
    offsets.push_back(end + RoundUp(before, kCacheLine) - before);
    end = RoundUp(offsets.back() + before + rows * bytes, kCacheLine);
  }
  memory_ = std::make_shared<Slab>(Slab::Anonymous(end));
  for (const uint64_t offset : offsets) columns_.push_back(memory_->data() + offset);
  std::fill_n(weights(), front, 1.0f);
  std::fill_n(ranks(), front, rank);
}

void Staging::CopyDraws(const Staging& other, uint64_t rows) {
  for (size_t column = 0; column < columns_.size(); ++column) {
    const uint64_t bytes = row_bytes_[column];
    std::memcpy(columns_[column] + front_ * bytes, other.columns_[column] + other.front_ * bytes, rows * bytes);
  }
}

}  // namespace reprise
