// Reservoir: after n samples submitted on a rank each of them is stored with probability share / n.
//
// Algorithm R (Vitter 1985, "Random sampling with a reservoir"), extended to batches of which only m of b samples are
// candidates: such a candidate stands for b / m samples and is accepted with b / m times the probability. See policy.h
// for the contract; docs/determinism.md, "reservoir", for the definition.
#pragma once

#include "policy.h"

namespace reprise {

class Reservoir final : public Policy {
 public:
  // share > 0
  explicit Reservoir(uint32_t share) : share_(share) {}

  // Exact as long as (samples submitted on this rank) * (candidates of a batch) < 2^64.
  void Insert(std::span<const int64_t> labels, uint64_t batch_size, uint64_t step, const RandomWords& words,
              std::vector<Write>& writes) override;
  double InverseInclusion(uint32_t slot) const override;
  uint32_t Stratum(uint32_t slot) const override;
  void ChangedStrata(std::vector<StratumValue>& values) const override;
  uint64_t Mass() const override { return submitted_; }
  uint32_t stored() const override { return stored_; }

  // Keys: "stored", "submitted".
  PolicyState State() const override;
  void Load(const PolicyState& state) override;

 private:
  uint32_t share_;
  uint32_t stored_ = 0;
  uint64_t submitted_ = 0;  // this rank's samples, candidates or not
  std::vector<uint64_t> words_;
  LastWrites last_writes_;
};

}  // namespace reprise
