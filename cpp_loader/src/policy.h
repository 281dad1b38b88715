// What a policy is: it decides which slot of this rank's share a candidate goes to. Knows labels and slots only.
//
// No payload, no locks, no other ranks. The same decisions, word for word, as buffer/policies/ in Python; both follow
// docs/determinism.md. The engine owns one policy per rank and is its only caller. Adding a policy: x.h, x.cc,
// x_test.cc and a line in MakePolicy().
//
// Threads: none of the classes here locks. One thread at a time may call a policy; the const members may run at the
// same time as each other, but not while Insert() or Load() runs.
//
// Slots are 0 .. share - 1; those that hold a sample are at any time 0 .. stored() - 1.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "random_words.h"

namespace reprise {

// Candidate `row` (its index among the candidates of the batch) goes to `slot`.
struct Write {
  uint32_t row;
  uint32_t slot;

  friend bool operator==(const Write&, const Write&) = default;
};

// What the samples of one stratum (class_balanced: a class; else all of them) stand for: samples seen per sample
// stored.
struct StratumValue {
  uint32_t stratum;
  double inverse_inclusion;
};

// A policy's counters, with the same keys and values as `state_dict` of the policy's Python twin.
using PolicyState = std::map<std::string, std::variant<int64_t, std::vector<int64_t>>>;

class Policy {
 public:
  virtual ~Policy();

  // Decides on the candidates of one batch, in order. `labels`: one per candidate; `batch_size`: samples submitted, of
  // which the candidates are a uniform choice. Replaces the contents of `writes`: rows ascend, slots are distinct.
  // Throws std::invalid_argument for more candidates than samples, and nothing has changed then. Scratch memory is
  // reused: in the steady state nothing is allocated. After std::bad_alloc the policy may only be destroyed.
  virtual void Insert(std::span<const int64_t> labels, uint64_t batch_size, uint64_t step, const RandomWords& words,
                      std::vector<Write>& writes) = 0;

  // Samples seen per sample stored, for the stratum (rank or class) that the sample in `slot` belongs to. The inverse
  // of its probability to be stored, hence the name. slot < stored().
  virtual double InverseInclusion(uint32_t slot) const = 0;

  // The stratum of the sample in `slot`: a number below the share, the same until the slot is written again.
  virtual uint32_t Stratum(uint32_t slot) const = 0;

  // Replaces the contents of `values` by those of all strata whose value the last Insert() or Load() may have changed.
  virtual void ChangedStrata(std::vector<StratumValue>& values) const = 0;

  // Sum of InverseInclusion() over all stored slots: how many seen samples they stand for. O(1).
  virtual uint64_t Mass() const = 0;

  // Samples stored. O(1).
  virtual uint32_t stored() const = 0;

  // Everything that affects the next Insert().
  virtual PolicyState State() const = 0;

  // Puts back what State() gave, also that of the Python twin. Throws std::invalid_argument, naming key and numbers,
  // for a state that cannot be one of this policy with this share; nothing has changed then.
  virtual void Load(const PolicyState& state) = 0;
};

// A policy for `share` slots: "class_balanced", "reservoir" or "fifo". Throws std::invalid_argument for another name
// and for a share of 0.
std::unique_ptr<Policy> MakePolicy(const std::string& name, uint32_t share);

// Of several writes to one slot keeps the last, as if they had been done one after the other. For policies.
class LastWrites {
 public:
  // Removes the others from `writes`; the order stays. O(writes).
  void Keep(std::vector<Write>& writes);

 private:
  std::vector<uint32_t> table_;  // open addressing: 1 + slot, 0 where free
};

// The two values a policy's state is made of, for Load(): throw std::invalid_argument where there is none of the kind.
// StateCount also refuses a number outside [0, max].
uint64_t StateCount(const PolicyState& state, const std::string& key, uint64_t max);
const std::vector<int64_t>& StateList(const PolicyState& state, const std::string& key);

// Throws std::invalid_argument if there are more candidates than samples. For Insert().
void CheckCandidates(std::size_t num_candidates, uint64_t batch_size);

}  // namespace reprise
