#include "reservoir.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

namespace reprise {

void Reservoir::Insert(std::span<const int64_t> labels, uint64_t batch_size, uint64_t step, const RandomWords& words,
                       std::vector<Write>& writes) {
  CheckCandidates(labels.size(), batch_size);
  const std::size_t count = labels.size();
  writes.clear();
  words_.resize(count);
  words.Fill(purpose::kInsert, step, 0, words_);
  const uint64_t limit = batch_size * share_;
  // Candidate j stands for the samples up to (j + 1) * b / m of this batch; times m to stay with integers.
  uint64_t bound = submitted_ * count;
  bool replaced = false;
  for (std::size_t row = 0; row < count; ++row) {
    bound += batch_size;
    const uint64_t position = Below(words_[row], bound);
    if (position >= limit) continue;
    uint32_t slot = stored_;
    if (stored_ < share_) {
      ++stored_;
    } else {
      slot = static_cast<uint32_t>(position / batch_size);
      replaced = true;
    }
    writes.push_back({static_cast<uint32_t>(row), slot});
  }
  submitted_ += batch_size;
  if (replaced) last_writes_.Keep(writes);
}

double Reservoir::InverseInclusion(uint32_t /*slot*/) const {
  return static_cast<double>(submitted_) / static_cast<double>(std::max<uint32_t>(stored_, 1));
}

uint32_t Reservoir::Stratum(uint32_t /*slot*/) const { return 0; }

void Reservoir::ChangedStrata(std::vector<StratumValue>& values) const { values.assign(1, {0, InverseInclusion(0)}); }

PolicyState Reservoir::State() const {
  return {{"stored", static_cast<int64_t>(stored_)}, {"submitted", static_cast<int64_t>(submitted_)}};
}

void Reservoir::Load(const PolicyState& state) {
  const uint64_t stored = StateCount(state, "stored", share_);
  const uint64_t submitted = StateCount(state, "submitted", std::numeric_limits<int64_t>::max());
  if (submitted < stored) {
    throw std::invalid_argument("policy state: 'submitted' is " + std::to_string(submitted) + " with 'stored' " +
                                std::to_string(stored));
  }
  stored_ = static_cast<uint32_t>(stored);
  submitted_ = submitted;
}

}  // namespace reprise
