// The engine's randomness: a counter-based generator and the choices made from its words.
//
// Exactly what docs/determinism.md ("Words") defines and buffer/policies/random_words.py implements: every
// implementation of the buffer gets the same words for the same (seed, rank, purpose, step, round) and makes the same
// choices from them. There is no state to carry from step to step. Called by the policies, the planner and the engine
// (choice of candidates); not a general-purpose generator.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace reprise {

// Each use of randomness within a step has a stream of its own.
namespace purpose {
inline constexpr uint64_t kCandidates = 0, kInsert = 1, kEvict = 2;
inline constexpr uint64_t kDraw = 16;  // draw d of a step uses kDraw + d
}  // namespace purpose

// 64-bit words of one rank: Philox 4x64 with 10 rounds (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2,
// 3"). Immutable after construction, so all members may be called from any number of threads at once. Never throws.
class RandomWords {
 public:
  RandomWords(uint64_t seed, uint32_t rank) : seed_(seed), rank_(rank) {}

  // Writes the first out.size() words of the stream.
  void Fill(uint64_t purpose, uint64_t step, uint64_t round, std::span<uint64_t> out) const;

 private:
  uint64_t seed_;
  uint32_t rank_;
};

// Four words for a counter and a key, each with its least significant word first. Fill() is built on it; here for the
// published known answers.
void PhiloxBlock(const uint64_t counter[4], const uint64_t key[2], uint64_t out[4]);

// An integer in [0, bound): the high half of the product (Lemire 2019, "Fast random integer generation in an
// interval"), biased by less than bound / 2^64. bound > 0.
inline uint64_t Below(uint64_t word, uint64_t bound) {
  __extension__ using Wide = unsigned __int128;
  return static_cast<uint64_t>((Wide{word} * bound) >> 64);
}

// Choices without repetition. Owns its scratch memory, which is reused: after the first calls of a size nothing is
// allocated. Not thread-safe; independent instances are independent. Throws nothing but std::bad_alloc.
class Chooser {
 public:
  // `choose`: replaces `out` with min(count, population) different integers of [0, population), in random order.
  // count < 2^32.
  void Choose(const RandomWords& words, uint64_t purpose, uint64_t step, uint64_t population, uint64_t count,
              std::vector<uint64_t>& out);

  // `distinct_below`: replaces `out` with one value per entry, out[v] in [0, bounds[v]); entries of the same group get
  // different values. `bounds` and `groups` have the same length, less than 2^32, and must not lie in `out`. A group
  // must not ask for more values than its bounds allow: the search would not end.
  void DistinctBelow(const RandomWords& words, uint64_t purpose, uint64_t step, std::span<const uint64_t> bounds,
                     std::span<const uint32_t> groups, std::vector<uint64_t>& out);

 private:
  struct Ordered {
    uint64_t word;
    uint64_t member;
  };

  template <typename BoundOf, typename GroupOf>
  void Distinct(const RandomWords& words, uint64_t purpose, uint64_t step, std::size_t count, BoundOf bound_of,
                GroupOf group_of, std::vector<uint64_t>& out);

  std::vector<uint64_t> words_;
  std::vector<Ordered> order_;
  std::vector<uint32_t> pending_;  // entries without a value yet
  std::vector<uint32_t> table_;    // open addressing: 1 + entry that holds a value, 0 where free
};

}  // namespace reprise
