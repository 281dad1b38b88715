// What a rank knows of ranks on other nodes: the state of their counters, and who has failed. Needs no UCX.
// Threads: everything may be called from any thread.
#pragma once

#include <atomic>
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
  NewsBoard(uint32_t rank, uint32_t world_size);

  // Store what is newer than what is known; nothing about this rank, or about ranks that there are not.
  void Learn(const News& news);
  // A rank cannot be asked any more. The first reason stays; one that has said that it leaves has "closed".
  void Fail(uint32_t rank, Counters::State state, const std::string& reason);

  const Counters& counters(uint32_t rank) const { return ranks_[rank].counters; }
  bool has_failed(uint32_t rank) const { return ranks_[rank].failed.load(std::memory_order_acquire); }
  std::string failed(uint32_t rank) const;
  std::vector<uint32_t> Take();

 private:
  struct Rank {
    Counters counters;  // written under mutex_
    std::atomic<bool> failed{false};
    bool fresh = false;  // guarded by mutex_
    std::string reason;  // guarded by mutex_
  };

  void MarkFresh(uint32_t rank);

  const uint32_t rank_;
  const uint32_t world_size_;
  std::unique_ptr<Rank[]> ranks_;
  mutable std::mutex mutex_;
  std::vector<uint32_t> fresh_;  // guarded by mutex_
};

// A shard's counters at this moment.
News NewsOf(uint32_t rank, const Counters& counters);

}  // namespace reprise
