#include "fifo.h"

#include <algorithm>
#include <stdexcept>

namespace reprise {

void Fifo::Insert(std::span<const int64_t> labels, uint64_t batch_size, uint64_t /*step*/, const RandomWords& /*words*/,
                  std::vector<Write>& writes) {
  CheckCandidates(labels.size(), batch_size);
  const std::size_t count = labels.size();
  writes.clear();
  // Of a batch larger than the share the ring keeps its last rows: they alone are written.
  const std::size_t first = count > share_ ? count - share_ : 0;
  uint32_t slot = static_cast<uint32_t>((head_ + first) % share_);
  for (std::size_t row = first; row < count; ++row) {
    writes.push_back({static_cast<uint32_t>(row), slot});
    slot = slot + 1 == share_ ? 0 : slot + 1;
  }
  head_ = slot;
  stored_ = static_cast<uint32_t>(std::min<uint64_t>(stored_ + count, share_));
}

double Fifo::InverseInclusion(uint32_t /*slot*/) const { return 1.0; }

uint32_t Fifo::Stratum(uint32_t /*slot*/) const { return 0; }

void Fifo::ChangedStrata(std::vector<StratumValue>& values) const { values.assign(1, {0, 1.0}); }

PolicyState Fifo::State() const {
  return {{"stored", static_cast<int64_t>(stored_)}, {"head", static_cast<int64_t>(head_)}};
}

void Fifo::Load(const PolicyState& state) {
  const uint64_t stored = StateCount(state, "stored", share_);
  // A resharded state may say "after the last slot" for the first.
  const uint64_t head = StateCount(state, "head", share_);
  if (stored < share_ && head != stored) {
    throw std::invalid_argument("policy state: 'head' is " + std::to_string(head) + " with " + std::to_string(stored) +
                                " of " + std::to_string(share_) + " slots filled");
  }
  stored_ = static_cast<uint32_t>(stored);
  head_ = static_cast<uint32_t>(head % share_);
}

}  // namespace reprise
