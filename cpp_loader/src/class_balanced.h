// Class-balanced: the classes seen on a rank share its slots as evenly as the samples seen allow; reservoirs inside.
//
// The idea is that of class-balancing reservoir sampling (Chrysakis and Moens 2020, "Online continual learning from
// imbalanced data"), done for whole batches: the sizes after a batch come from one water level over all classes. Within
// a class the stored samples are at any time a uniform choice of those seen (Vitter 1985, algorithm R). See policy.h
// for the contract; docs/determinism.md, "class_balanced", for the definition.
//
// Cost of an Insert(): O(candidates); when sizes shift, also a few passes over all classes and O(e log e) for e
// evictions. Never the share. Memory: 4 bytes per slot ever filled, about 5 more per sample stored (at most 6.4), and a
// few hundred per class ever seen; untouched slots cost address space only.
#pragma once

#include "policy.h"

namespace reprise {

class ClassBalanced final : public Policy {
 public:
  // share > 0
  explicit ClassBalanced(uint32_t share);

  void Insert(std::span<const int64_t> labels, uint64_t batch_size, uint64_t step, const RandomWords& words,
              std::vector<Write>& writes) override;
  double InverseInclusion(uint32_t slot) const override;
  uint32_t Stratum(uint32_t slot) const override { return classes_[class_of_slot_[slot]].stratum; }
  void ChangedStrata(std::vector<StratumValue>& values) const override;
  uint64_t Mass() const override { return mass_; }
  uint32_t stored() const override { return static_cast<uint32_t>(class_of_slot_.size()); }

  // Keys: "stored"; "labels", "seen", "sizes", one entry per class in order of first appearance; "members", the slots
  // of all classes, class after class, in member order.
  PolicyState State() const override;
  void Load(const PolicyState& state) override;

 private:
  struct Class {
    int64_t label = 0;
    uint64_t seen = 0;              // candidates offered so far
    std::vector<uint32_t> members;  // its slots; the position in this list is what random words choose
    uint32_t stratum = 0;           // its number among the classes that have members, which no class ever loses all of
    // Of the batch in hand, 0 in between: its candidates; those that want more room; those that got it and wait for
    // their slots.
    uint32_t offered = 0, demand = 0, growth = 0;
  };

  // Label to class number: open addressing, as a lookup per candidate is most of the cost of a step.
  class LabelIndex {
   public:
    // The number stored for `label`; if there is none, `next` is stored and returned.
    uint32_t FindOrAdd(int64_t label, uint32_t next);

   private:
    struct Place {
      int64_t label = 0;
      uint32_t number_plus_one = 0;  // 0 where free
    };
    // Where `label` is or would be.
    std::size_t PlaceOf(int64_t label) const;
    void Grow();

    std::vector<Place> places_ = std::vector<Place>(64);
    std::size_t used_ = 0;
  };

  void AddMember(uint32_t number, uint32_t slot);
  // Looks up the classes of a batch and opens the new ones. Whether a class that is stored whole wants more room.
  bool CountCandidates(std::span<const int64_t> labels, std::size_t filled);
  // Steps 2 to 4 of the definition: the sizes of all classes shift.
  void ShiftSizes(std::size_t filled, uint64_t step, const RandomWords& words);
  // The sizes that the classes are to have, into targets_.
  void FindTargets();
  // Removes the members at the positions, which are sorted on the way.
  void Evict(Class& shrinking, std::span<uint64_t> positions);
  // Step 5: algorithm R inside each class for the candidates that found no room.
  void Replace(std::size_t filled, uint64_t step, const RandomWords& words);

  uint32_t share_;
  uint64_t mass_ = 0;
  std::vector<Class> classes_;
  LabelIndex index_;
  uint32_t num_strata_ = 0;
  std::vector<uint32_t> changed_;        // classes whose value the last batch may have changed; some twice
  std::vector<uint32_t> class_of_slot_;  // as long as slots are filled; its capacity is the share from the start

  // Scratch of the batch in hand. Per candidate: its class, its number among the candidates of that class
  // (from 1), its slot.
  std::vector<uint32_t> class_of_row_, occurrence_, slot_of_row_;
  std::vector<uint32_t> offering_;  // classes that have candidates
  std::vector<uint64_t> words_;
  std::vector<uint64_t> targets_;  // per class
  // Per eviction, class after class: bound, group and position of the choice, and the slot that it frees.
  std::vector<uint64_t> bounds_, positions_;
  std::vector<uint32_t> groups_, freed_;
  Chooser chooser_;
  LastWrites last_writes_;
};

}  // namespace reprise
