// First in, first out: the newest candidates of the rank. The slots form a ring.
//
// See policy.h for the contract; docs/determinism.md, "fifo", for the definition.
#pragma once

#include "policy.h"

namespace reprise {

class Fifo final : public Policy {
 public:
  // share > 0
  explicit Fifo(uint32_t share) : share_(share) {}

  void Insert(std::span<const int64_t> labels, uint64_t batch_size, uint64_t step, const RandomWords& words,
              std::vector<Write>& writes) override;
  double InverseInclusion(uint32_t slot) const override;
  uint32_t Stratum(uint32_t slot) const override;
  void ChangedStrata(std::vector<StratumValue>& values) const override;
  uint64_t Mass() const override { return stored_; }
  uint32_t stored() const override { return stored_; }

  // Keys: "stored", "head".
  PolicyState State() const override;
  void Load(const PolicyState& state) override;

 private:
  uint32_t share_;
  uint32_t stored_ = 0;
  uint32_t head_ = 0;  // the slot that the next sample takes
};

}  // namespace reprise
