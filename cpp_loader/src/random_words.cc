#include "random_words.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace reprise {
namespace {

constexpr uint64_t kKeyTag = 0x52657072697365;  // "Reprise": keeps our streams apart from other users of the same seed
constexpr uint64_t kMultiplier0 = 0xD2E7470EE14C6C93, kMultiplier1 = 0xCA5A826395121157;
constexpr uint64_t kIncrement0 = 0x9E3779B97F4A7C15, kIncrement1 = 0xBB67AE8584CAA73B;
constexpr int kRounds = 10;
constexpr std::size_t kLanes = 4;

__extension__ using Wide = unsigned __int128;

}  // namespace

void PhiloxBlock(const uint64_t counter[4], const uint64_t key[2], uint64_t out[4]) {
  uint64_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
  uint64_t k0 = key[0], k1 = key[1];
  for (int round = 0; round < kRounds; ++round) {
    const Wide left = Wide{kMultiplier0} * c0, right = Wide{kMultiplier1} * c2;
    c0 = static_cast<uint64_t>(right >> 64) ^ c1 ^ k0;
    c1 = static_cast<uint64_t>(right);
    c2 = static_cast<uint64_t>(left >> 64) ^ c3 ^ k1;
    c3 = static_cast<uint64_t>(left);
    k0 += kIncrement0;
    k1 += kIncrement1;
  }
  out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

void RandomWords::Fill(uint64_t purpose, uint64_t step, uint64_t round, std::span<uint64_t> out) const {
  const uint64_t key[2] = {seed_, kKeyTag};
  uint64_t counter[4] = {1, step, round, purpose << 32 | rank_};
  std::size_t done = 0;
  for (; out.size() - done >= kLanes; done += kLanes, ++counter[0]) PhiloxBlock(counter, key, out.data() + done);
  if (done < out.size()) {
    uint64_t last[kLanes];
    PhiloxBlock(counter, key, last);
    std::copy_n(last, out.size() - done, out.data() + done);
  }
}

void Chooser::Choose(const RandomWords& words, uint64_t purpose, uint64_t step, uint64_t population, uint64_t count,
                     std::vector<uint64_t>& out) {
  if (population > 2 * count) {
    Distinct(
        words, purpose, step, count, [population](std::size_t) { return population; },
        [](std::size_t) { return uint32_t{0}; }, out);
    return;
  }
  // Above half of the population the order of one word per member needs fewer words than rejection does.
  words_.resize(population);
  words.Fill(purpose, step, 0, words_);
  order_.resize(population);
  for (uint64_t member = 0; member < population; ++member) order_[member] = {words_[member], member};
  std::sort(order_.begin(), order_.end(), [](const Ordered& a, const Ordered& b) {
    return a.word != b.word ? a.word < b.word : a.member < b.member;
  });
  out.resize(std::min(population, count));
  std::transform(order_.begin(), order_.begin() + static_cast<std::ptrdiff_t>(out.size()), out.begin(),
                 [](const Ordered& entry) { return entry.member; });
}

void Chooser::DistinctBelow(const RandomWords& words, uint64_t purpose, uint64_t step, std::span<const uint64_t> bounds,
                            std::span<const uint32_t> groups, std::vector<uint64_t>& out) {
  Distinct(
      words, purpose, step, bounds.size(), [bounds](std::size_t v) { return bounds[v]; },
      [groups](std::size_t v) { return groups[v]; }, out);
}

template <typename BoundOf, typename GroupOf>
void Chooser::Distinct(const RandomWords& words, uint64_t purpose, uint64_t step, std::size_t count, BoundOf bound_of,
                       GroupOf group_of, std::vector<uint64_t>& out) {
  out.resize(count);
  words_.resize(count);
  const std::size_t places = std::bit_ceil(std::max<std::size_t>(2 * count, 16));
  const int shift = 64 - std::countr_zero(places);
  table_.assign(places, 0);

  const auto take = [&](uint32_t v) {
    const uint64_t value = Below(words_[v], bound_of(v));
    const uint32_t group = group_of(v);
    uint64_t place = ((value ^ uint64_t{group} * kMultiplier0) * kIncrement0) >> shift;
    for (; table_[place] != 0; place = (place + 1) & (places - 1)) {
      const uint32_t holder = table_[place] - 1;
      if (out[holder] == value && group_of(holder) == group) return false;
    }
    table_[place] = v + 1;
    out[v] = value;
    return true;
  };

  words.Fill(purpose, step, 0, words_);
  pending_.clear();
  for (uint32_t v = 0; v < count; ++v) {
    if (!take(v)) pending_.push_back(v);
  }
  for (uint64_t round = 1; !pending_.empty(); ++round) {
    words.Fill(purpose, step, round, words_);
    std::size_t waiting = 0;
    for (const uint32_t v : pending_) {
      if (!take(v)) pending_[waiting++] = v;
    }
    pending_.resize(waiting);
  }
}

}  // namespace reprise
