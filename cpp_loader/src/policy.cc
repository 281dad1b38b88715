#include "policy.h"

#include <algorithm>
#include <bit>
#include <stdexcept>

#include "class_balanced.h"
#include "fifo.h"
#include "reservoir.h"

namespace reprise {
namespace {

const std::variant<int64_t, std::vector<int64_t>>& Entry(const PolicyState& state, const std::string& key) {
  const auto found = state.find(key);
  if (found == state.end()) throw std::invalid_argument("policy state: '" + key + "' is missing");
  return found->second;
}

}  // namespace

Policy::~Policy() = default;

std::unique_ptr<Policy> MakePolicy(const std::string& name, uint32_t share) {
  if (share == 0) throw std::invalid_argument("policy: a share of 0 slots cannot store anything");
  if (name == "class_balanced") return std::make_unique<ClassBalanced>(share);
  if (name == "reservoir") return std::make_unique<Reservoir>(share);
  if (name == "fifo") return std::make_unique<Fifo>(share);
  throw std::invalid_argument("policy '" + name + "' is unknown: class_balanced, reservoir or fifo");
}

void LastWrites::Keep(std::vector<Write>& writes) {
  const std::size_t places = std::bit_ceil(std::max<std::size_t>(2 * writes.size(), 16));
  const int shift = 64 - std::countr_zero(places);
  table_.assign(places, 0);
  auto kept = writes.end();
  for (auto write = writes.end(); write != writes.begin();) {
    --write;
    uint64_t place = (write->slot * 0x9E3779B97F4A7C15) >> shift;
    while (table_[place] != 0 && table_[place] != write->slot + 1) place = (place + 1) & (places - 1);
    if (table_[place] != 0) continue;
    table_[place] = write->slot + 1;
    *--kept = *write;
  }
  writes.erase(writes.begin(), kept);
}

uint64_t StateCount(const PolicyState& state, const std::string& key, uint64_t max) {
  const int64_t* value = std::get_if<int64_t>(&Entry(state, key));
  if (value == nullptr) throw std::invalid_argument("policy state: '" + key + "' is not a number");
  if (*value < 0 || static_cast<uint64_t>(*value) > max) {
    throw std::invalid_argument("policy state: '" + key + "' is " + std::to_string(*value) + ", outside 0 to " +
                                std::to_string(max));
  }
  return static_cast<uint64_t>(*value);
}

const std::vector<int64_t>& StateList(const PolicyState& state, const std::string& key) {
  const auto* values = std::get_if<std::vector<int64_t>>(&Entry(state, key));
  if (values == nullptr) throw std::invalid_argument("policy state: '" + key + "' is not a list");
  return *values;
}

void CheckCandidates(std::size_t num_candidates, uint64_t batch_size) {
  if (num_candidates > batch_size) {
    throw std::invalid_argument("policy: " + std::to_string(num_candidates) + " candidates of a batch of " +
                                std::to_string(batch_size) + " samples");
  }
}

}  // namespace reprise
