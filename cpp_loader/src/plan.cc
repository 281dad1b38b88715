#include "plan.h"

#include <bit>
#include <utility>

namespace reprise {

Planner::Planner(std::vector<uint32_t> draws, uint32_t num_ranks)
    : draws_(std::move(draws)), fill_(num_ranks, 0), sums_(std::bit_ceil(std::size_t{num_ranks} + 1), 0) {}

void Planner::SetFill(uint32_t rank, uint64_t stored) {
  const uint64_t change = stored - std::exchange(fill_[rank], stored);  // modulo 2^64 where it is negative
  if (change == 0) return;
  total_ += change;
  for (std::size_t at = std::size_t{rank} + 1; at < sums_.size(); at += at & (~at + 1)) sums_[at] += change;
}

void Planner::Make(uint64_t step, const RandomWords& words, Plan& plan) {
  plan.ranks.clear();
  plan.slots.clear();
  plan.sizes.clear();
  for (std::size_t draw = 0; draw < draws_.size(); ++draw) {
    chooser_.Choose(words, purpose::kDraw + draw, step, total_, draws_[draw], numbers_);
    plan.sizes.push_back(static_cast<uint32_t>(numbers_.size()));
    for (uint64_t number : numbers_) {
      // Down the tree: the last rank whose predecessors hold no more than `number` samples together.
      std::size_t rank = 0;
      for (std::size_t span = sums_.size() / 2; span > 0; span /= 2) {
        if (sums_[rank + span] <= number) {
          rank += span;
          number -= sums_[rank];
        }
      }
      plan.ranks.push_back(static_cast<uint32_t>(rank));
      plan.slots.push_back(static_cast<uint32_t>(number));
    }
  }
}

}  // namespace reprise
