// What is drawn: r different samples of all ranks, each equally likely. Knows fill counts, never payloads or policies.
//
// The stored samples of all ranks are numbered rank after rank, slot after slot; a draw is a choice of such numbers.
// All it needs is how many samples each rank holds, so its cost depends on the sizes of the draws, not on the capacity.
// The same plans as buffer/plan.py; docs/determinism.md, "Plan", is the definition. The engine is the only caller.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "random_words.h"

namespace reprise {

// Where the rows of all draws of one step lie, draw after draw: row i in slots[i] on ranks[i]; sizes[d] rows belong to
// draw d.
struct Plan {
  std::vector<uint32_t> ranks;
  std::vector<uint32_t> slots;
  std::vector<uint32_t> sizes;
};

// Knows how many samples each rank holds, and plans. Owns scratch memory that is reused. Not thread-safe. Throws
// nothing but std::bad_alloc.
class Planner {
 public:
  // draws: rows asked for by each draw of a step; may be empty, and so may a draw. All ranks hold nothing at first.
  Planner(std::vector<uint32_t> draws, uint32_t num_ranks);

  // A rank holds so many samples, less than 2^32: 0 for a rank to leave out. O(log ranks).
  void SetFill(uint32_t rank, uint64_t stored);
  // Samples on all ranks.
  uint64_t total() const { return total_; }

  // Replaces the contents of `plan`, in O(rows drawn * log ranks). A draw that asks for more than there is gets
  // everything once, in random order. Draws are independent of each other. `words` are those of the drawing rank.
  void Make(uint64_t step, const RandomWords& words, Plan& plan);

 private:
  std::vector<uint32_t> draws_;
  std::vector<uint64_t> fill_;
  // Sums of fill_ as a binary indexed tree (Fenwick 1994): entry i, from 1, holds the sum of the last (i & -i) ranks
  // up to and including rank i - 1. As long as a power of two, so that looking up needs no bounds.
  std::vector<uint64_t> sums_;
  uint64_t total_ = 0;
  std::vector<uint64_t> numbers_;
  Chooser chooser_;
};

}  // namespace reprise
