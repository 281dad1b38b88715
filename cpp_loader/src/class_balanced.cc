#include "class_balanced.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <stdexcept>
#include <utility>

namespace reprise {
namespace {

constexpr uint32_t kNoSlot = std::numeric_limits<uint32_t>::max();  // a share is at most this, its last slot one less
constexpr uint32_t kNoClass = std::numeric_limits<uint32_t>::max();
constexpr std::size_t kSmallList = 64;  // lists of members up to this capacity are not worth shrinking

// The lists of all classes together should stay close to the number of slots, which rules out doubling.
std::size_t RoomFor(std::size_t size) { return size + size / 4 + 4; }

}  // namespace

ClassBalanced::ClassBalanced(uint32_t share) : share_(share) { class_of_slot_.reserve(share); }

void ClassBalanced::Insert(std::span<const int64_t> labels, uint64_t batch_size, uint64_t step,
                           const RandomWords& words, std::vector<Write>& writes) {
  CheckCandidates(labels.size(), batch_size);
  writes.clear();
  const std::size_t count = labels.size();
  const std::size_t filled = std::min<std::size_t>(share_ - stored(), count);
  changed_.clear();
  const bool wants_room = CountCandidates(labels, filled);

  slot_of_row_.assign(count, kNoSlot);
  for (std::size_t row = 0; row < filled; ++row) {
    slot_of_row_[row] = stored();
    AddMember(class_of_row_[row], stored());
    class_of_slot_.push_back(class_of_row_[row]);
  }
  if (wants_room) ShiftSizes(filled, step, words);
  if (filled < count) Replace(filled, step, words);

  for (const uint32_t number : offering_) {
    Class& offering = classes_[number];
    offering.seen += std::exchange(offering.offered, 0);
    offering.demand = 0;
    if (!offering.members.empty()) mass_ += offering.seen;
  }
  changed_.insert(changed_.end(), offering_.begin(), offering_.end());
  bool replaced = false;
  for (std::size_t row = 0; row < count; ++row) {
    if (slot_of_row_[row] == kNoSlot) continue;
    writes.push_back({static_cast<uint32_t>(row), slot_of_row_[row]});
    replaced |= row >= filled;
  }
  if (replaced) last_writes_.Keep(writes);
}

void ClassBalanced::AddMember(uint32_t number, uint32_t slot) {
  Class& growing = classes_[number];
  if (growing.members.empty()) growing.stratum = num_strata_++;
  if (growing.members.size() == growing.members.capacity()) growing.members.reserve(RoomFor(growing.members.size()));
  growing.members.push_back(slot);
}

bool ClassBalanced::CountCandidates(std::span<const int64_t> labels, std::size_t filled) {
  offering_.clear();
  class_of_row_.resize(labels.size());
  occurrence_.resize(labels.size());
  bool wants_room = false;
  for (std::size_t row = 0; row < labels.size(); ++row) {
    const auto next = static_cast<uint32_t>(classes_.size());
    const uint32_t number = index_.FindOrAdd(labels[row], next);
    if (number == next) classes_.emplace_back().label = labels[row];
    Class& offering = classes_[number];
    if (offering.offered == 0) {
      offering_.push_back(number);
      // Taken out of the sum until it is known what becomes of the class.
      if (!offering.members.empty()) mass_ -= offering.seen;
    }
    class_of_row_[row] = number;
    occurrence_[row] = ++offering.offered;
    if (row >= filled && offering.seen == offering.members.size()) {
      ++offering.demand;
      wants_room = true;
    }
  }
  return wants_room;
}

void ClassBalanced::ShiftSizes(std::size_t filled, uint64_t step, const RandomWords& words) {
  FindTargets();
  bounds_.clear();
  groups_.clear();
  for (std::size_t number = 0; number < classes_.size(); ++number) {
    const uint64_t size = classes_[number].members.size(), target = targets_[number];
    if (target >= size) {
      classes_[number].growth = static_cast<uint32_t>(target - size);
    } else {
      bounds_.insert(bounds_.end(), size - target, size);
      groups_.insert(groups_.end(), size - target, static_cast<uint32_t>(number));
    }
  }
  chooser_.DistinctBelow(words, purpose::kEvict, step, bounds_, groups_, positions_);

  freed_.resize(positions_.size());
  for (std::size_t i = 0; i < freed_.size(); ++i) freed_[i] = classes_[groups_[i]].members[positions_[i]];
  for (std::size_t first = 0; first < groups_.size();) {
    Class& shrinking = classes_[groups_[first]];
    const std::size_t evictions = shrinking.members.size() - targets_[groups_[first]];
    Evict(shrinking, std::span(positions_).subspan(first, evictions));
    changed_.push_back(groups_[first]);
    first += evictions;
  }

  std::size_t next = 0;
  for (std::size_t row = filled; row < class_of_row_.size() && next < freed_.size(); ++row) {
    const uint32_t number = class_of_row_[row];
    if (classes_[number].growth == 0) continue;
    --classes_[number].growth;
    const uint32_t slot = freed_[next++];
    AddMember(number, slot);
    class_of_slot_[slot] = number;
    slot_of_row_[row] = slot;
  }
}

void ClassBalanced::FindTargets() {
  // The water level: the largest whole number at which all of min(ceiling, level) fit into the share. Approached from
  // below: each turn hands what the classes under the level leave over to those above it. There always is one above,
  // as the ceilings add up to more than the share.
  uint64_t level = 0, spare = share_, num_above = classes_.size();
  do {
    level += spare / num_above;
    spare = share_;
    num_above = 0;
    for (const Class& one : classes_) {
      const uint64_t ceiling = one.members.size() + one.demand;
      num_above += ceiling > level;
      spare -= std::min(ceiling, level);
    }
  } while (spare >= num_above);

  // What whole numbers leave over goes first to classes that need not evict for it. At level 0 these are all classes
  // that have a slot, so a class never loses its last one, and Mass() changes by new candidates alone.
  targets_.resize(classes_.size());
  for (std::size_t number = 0; number < classes_.size(); ++number) {
    const uint64_t size = classes_[number].members.size();
    targets_[number] = std::min(size + classes_[number].demand, level);
    if (size > level && spare > 0) {
      ++targets_[number];
      --spare;
    }
  }
  for (std::size_t number = 0; spare > 0; ++number) {
    const uint64_t size = classes_[number].members.size();
    if (size > level || size + classes_[number].demand <= level) continue;
    ++targets_[number];
    --spare;
  }
}

void ClassBalanced::Evict(Class& shrinking, std::span<uint64_t> positions) {
  std::sort(positions.begin(), positions.end());
  std::vector<uint32_t>& members = shrinking.members;
  const std::size_t size = members.size() - positions.size();
  auto hole = positions.begin();
  auto cut = std::lower_bound(positions.begin(), positions.end(), size);
  for (std::size_t position = size; position < members.size(); ++position) {
    if (cut != positions.end() && *cut == position) {
      ++cut;
    } else {
      members[*hole++] = members[position];
    }
  }
  members.resize(size);
  // Gives memory back to the classes that grow instead. Far enough from the size at which AddMember() asks for more
  // that a class that goes up and down does not move its list each time.
  if (members.capacity() > kSmallList && size < members.capacity() * 5 / 8) {
    std::vector<uint32_t> smaller;
    smaller.reserve(RoomFor(size));
    smaller.assign(members.begin(), members.end());
    members = std::move(smaller);
  }
}

void ClassBalanced::Replace(std::size_t filled, uint64_t step, const RandomWords& words) {
  words_.resize(class_of_row_.size());
  words.Fill(purpose::kInsert, step, 0, words_);
  for (std::size_t row = filled; row < words_.size(); ++row) {
    if (slot_of_row_[row] != kNoSlot) continue;
    const Class& offering = classes_[class_of_row_[row]];
    const uint64_t position = Below(words_[row], offering.seen + occurrence_[row]);
    if (position < offering.members.size()) slot_of_row_[row] = offering.members[position];
  }
}

double ClassBalanced::InverseInclusion(uint32_t slot) const {
  const Class& stratum = classes_[class_of_slot_[slot]];
  return static_cast<double>(stratum.seen) / static_cast<double>(stratum.members.size());
}

void ClassBalanced::ChangedStrata(std::vector<StratumValue>& values) const {
  values.clear();
  for (const uint32_t number : changed_) {
    const Class& one = classes_[number];
    if (!one.members.empty()) values.push_back({one.stratum, InverseInclusion(one.members.front())});
  }
}

PolicyState ClassBalanced::State() const {
  std::vector<int64_t> labels, seen, sizes, members;
  members.reserve(stored());
  for (const Class& one : classes_) {
    labels.push_back(one.label);
    seen.push_back(static_cast<int64_t>(one.seen));
    sizes.push_back(static_cast<int64_t>(one.members.size()));
    members.insert(members.end(), one.members.begin(), one.members.end());
  }
  return {{"stored", static_cast<int64_t>(stored())},
          {"labels", std::move(labels)},
          {"seen", std::move(seen)},
          {"sizes", std::move(sizes)},
          {"members", std::move(members)}};
}

void ClassBalanced::Load(const PolicyState& state) {
  const uint64_t stored = StateCount(state, "stored", share_);
  const std::vector<int64_t>& labels = StateList(state, "labels");
  const std::vector<int64_t>& seen = StateList(state, "seen");
  const std::vector<int64_t>& sizes = StateList(state, "sizes");
  const std::vector<int64_t>& members = StateList(state, "members");
  if (seen.size() != labels.size() || sizes.size() != labels.size() || members.size() != stored) {
    throw std::invalid_argument("policy state: 'labels', 'seen' and 'sizes' have " + std::to_string(labels.size()) +
                                ", " + std::to_string(seen.size()) + " and " + std::to_string(sizes.size()) +
                                " entries, 'members' has " + std::to_string(members.size()) + " with 'stored' " +
                                std::to_string(stored));
  }
  // Built aside, so that a state that is refused leaves everything as it was.
  ClassBalanced loaded(share_);
  loaded.class_of_slot_.assign(stored, kNoClass);
  auto member = members.begin();
  for (std::size_t number = 0; number < labels.size(); ++number) {
    if (loaded.index_.FindOrAdd(labels[number], static_cast<uint32_t>(number)) != number) {
      throw std::invalid_argument("policy state: label " + std::to_string(labels[number]) + " occurs twice");
    }
    if (sizes[number] < 0 || sizes[number] > members.end() - member || seen[number] < sizes[number]) {
      throw std::invalid_argument("policy state: label " + std::to_string(labels[number]) + " has 'sizes' " +
                                  std::to_string(sizes[number]) + " and 'seen' " + std::to_string(seen[number]) +
                                  " with " + std::to_string(members.end() - member) + " 'members' left");
    }
    Class& one = loaded.classes_.emplace_back();
    one.label = labels[number];
    one.seen = static_cast<uint64_t>(seen[number]);
    one.members.reserve(static_cast<std::size_t>(sizes[number]));
    for (const auto end = member + sizes[number]; member != end; ++member) {
      const auto slot = static_cast<uint64_t>(*member);
      if (slot >= stored || loaded.class_of_slot_[slot] != kNoClass) {
        throw std::invalid_argument("policy state: slot " + std::to_string(*member) + " in 'members' is " +
                                    (slot >= stored ? "not a stored one" : "named twice"));
      }
      one.members.push_back(static_cast<uint32_t>(slot));
      loaded.class_of_slot_[slot] = static_cast<uint32_t>(number);
    }
    if (one.members.empty()) continue;
    one.stratum = loaded.num_strata_++;
    loaded.mass_ += one.seen;
    loaded.changed_.push_back(static_cast<uint32_t>(number));
  }
  if (member != members.end()) {
    throw std::invalid_argument("policy state: 'sizes' add up to " + std::to_string(member - members.begin()) +
                                ", 'stored' is " + std::to_string(stored));
  }
  *this = std::move(loaded);
}

uint32_t ClassBalanced::LabelIndex::FindOrAdd(int64_t label, uint32_t next) {
  std::size_t place = PlaceOf(label);
  if (places_[place].number_plus_one != 0) return places_[place].number_plus_one - 1;
  if (++used_ > places_.size() / 2) {
    Grow();
    place = PlaceOf(label);
  }
  places_[place] = {label, next + 1};
  return next;
}

std::size_t ClassBalanced::LabelIndex::PlaceOf(int64_t label) const {
  const std::size_t mask = places_.size() - 1;
  std::size_t place = (static_cast<uint64_t>(label) * 0x9E3779B97F4A7C15) >> (64 - std::countr_zero(places_.size()));
  while (places_[place].number_plus_one != 0 && places_[place].label != label) place = (place + 1) & mask;
  return place;
}

void ClassBalanced::LabelIndex::Grow() {
  std::vector<Place> before(places_.size() * 2);
  before.swap(places_);
  for (const Place& moved : before) {
    if (moved.number_plus_one != 0) places_[PlaceOf(moved.label)] = moved;
  }
}

}  // namespace reprise
