#include "plan.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace reprise {

Planner::Planner(std::vector<uint32_t> draws) : draws_(std::move(draws)) {}

void Planner::Make(std::span<const uint64_t> fill, uint64_t step, const RandomWords& words, Plan& plan) {
  edges_.resize(fill.size());
  std::inclusive_scan(fill.begin(), fill.end(), edges_.begin());
  const uint64_t total = edges_.empty() ? 0 : edges_.back();
  plan.ranks.clear();
  plan.slots.clear();
  plan.sizes.clear();
  for (std::size_t draw = 0; draw < draws_.size(); ++draw) {
    chooser_.Choose(words, purpose::kDraw + draw, step, total, draws_[draw], numbers_);
    plan.sizes.push_back(static_cast<uint32_t>(numbers_.size()));
    for (const uint64_t number : numbers_) {
      const auto rank = std::upper_bound(edges_.begin(), edges_.end(), number) - edges_.begin();
      const auto index = static_cast<std::size_t>(rank);
      plan.ranks.push_back(static_cast<uint32_t>(index));
      plan.slots.push_back(static_cast<uint32_t>(number - (edges_[index] - fill[index])));
    }
  }
}

}  // namespace reprise
