#include "layout.h"

#include <stdexcept>
#include <string>

namespace reprise {
namespace {

constexpr uint64_t kCacheLine = 64;
constexpr uint64_t kWord = 8;
// From here on a record is worth lines of its own, where they cost little.
constexpr uint64_t kLargeRecord = 4096;
constexpr uint64_t kMaxOverheadPercent = 3;
// More than any machine addresses, and small enough for sums not to overflow.
constexpr uint64_t kMaxRecord = uint64_t{1} << 48;

uint64_t RoundUp(uint64_t bytes, uint64_t unit) { return (bytes + unit - 1) / unit * unit; }

}  // namespace

Layout::Layout(std::span<const uint64_t> bytes_per_field) : bytes_(bytes_per_field.begin(), bytes_per_field.end()) {
  uint64_t payload = 0;
  for (size_t field = 0; field < bytes_.size(); ++field) {
    if (bytes_[field] == 0 || bytes_[field] > kMaxRecord - payload) {
      throw std::invalid_argument("field " + std::to_string(field) + " has " + std::to_string(bytes_[field]) +
                                  " bytes per sample; a sample has at least 1 per field and at most " +
                                  std::to_string(kMaxRecord) + " in all");
    }
    payload += bytes_[field];
  }
  if (payload >= kLargeRecord) {
    Place(kCacheLine);
    if (stride_ - payload <= payload * kMaxOverheadPercent / 100) return;
  }
  Place(kWord);
}

void Layout::Place(uint64_t unit) {
  offsets_.clear();
  uint64_t offset = sizeof(RecordHeader);
  for (const uint64_t bytes : bytes_) {
    // A field shorter than a line needs no line of its own.
    offset = RoundUp(offset, bytes >= unit ? unit : kWord);
    offsets_.push_back(offset);
    offset += bytes;
  }
  stride_ = RoundUp(offset, unit);
}

}  // namespace reprise
