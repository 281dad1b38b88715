// What a rank knows of ranks on other nodes: the state of their counters, and who has failed. Needs no UCX.
//
// A rank that leaves in order says so before it closes its connections, but what is under way to it at that moment can
// be the end of a connection before its goodbye is read. Goodbyes come twice, by both of a pair's connections. So one
// that breaks only counts as a loss when neither has come a moment later; until then the rank is in doubt.
//
// Threads: everything may be called from any thread.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "network.h"
#include "shard.h"

namespace reprise {

class NewsBoard {
 public:
  using Clock = std::chrono::steady_clock;

  NewsBoard(uint32_t rank, uint32_t world_size);

  // Store what is newer than what is known; nothing about this rank, or about ranks that there are not.
  void Learn(const News& news);
  // A rank cannot be asked any more. The first reason stays; one that has said that it leaves has "closed".
  void Fail(uint32_t rank, Counters::State state, const std::string& reason);
  // Likewise, but it may turn out that it has left. Somebody has to Judge.
  void Doubt(uint32_t rank, const std::string& reason);
  // Doubts that are as old as they may get become failures. Returns when the next one does.
  Clock::time_point Judge(Clock::time_point now);
  bool any_in_doubt() const { return num_in_doubt_.load(std::memory_order_acquire) > 0; }

  const Counters& counters(uint32_t rank) const { return ranks_[rank].counters; }
  // Those in doubt have.
  bool has_failed(uint32_t rank) const { return ranks_[rank].failed.load(std::memory_order_acquire); }
  std::string failed(uint32_t rank) const;
  std::vector<uint32_t> Take();

 private:
  struct Rank {
    Counters counters;  // written under mutex_
    std::atomic<bool> failed{false};
    // Guarded by mutex_:
    bool fresh = false;
    bool in_doubt = false;
    Clock::time_point judged;  // if it is
    std::string reason;
  };

  // All below: under mutex_.
  void MarkFresh(uint32_t rank);
  void Decide(uint32_t rank, Counters::State state, const std::string& reason);

  const uint32_t rank_;
  const uint32_t world_size_;
  std::unique_ptr<Rank[]> ranks_;
  mutable std::mutex mutex_;
  std::vector<uint32_t> fresh_;  // guarded by mutex_
  std::atomic<uint32_t> num_in_doubt_{0};
};

// A shard's counters at this moment.
News NewsOf(uint32_t rank, const Counters& counters);

}  // namespace reprise
