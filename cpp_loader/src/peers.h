// The other ranks, as one rank's engine knows them: how full they are, how far they are, how to read them, who is gone.
//
// Ranks on the same node are read through shared memory: their slabs are mapped when they are first needed, and copied
// from without anybody's help. Ranks on other nodes are asked (network.h). A rank that leaves in order is left out from
// then on; one whose process ends, or whose engine fails, is also reported, once. What a process that has ended had
// stored stays mapped: whoever re-forms the memory over the ranks that are left may want it (Left).
//
// Deterministic mode. Steps carry a stamp: the step's number, below that of the same step after contents were loaded. A
// rank that has inserted step t says so, and draws when all have; it inserts step t + 1 when all have drawn. So a draw
// sees every rank's inserts up to its own step, and nothing later.
//
// Else fill counts are as fresh as they come: those of the own node are read at every step, those of others come with
// every answer, or are read along with the records. While shares still fill, ranks that do not ask each other yet must
// hear of it too, and whoever reads records without asking tells their owner nothing. So at step t a rank passes on
// what has changed to the rank 2^(t mod log2 N) further on, so that after log2 N steps everybody knows (Hensgen, Finkel
// and Manber 1988, dissemination). Full shares change no more, and that ends.
//
// Threads: all for whoever runs a step (engine.h: under execution_), except Stop and TakeLost. Waiting sleeps.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "layout.h"
#include "network.h"
#include "plan.h"
#include "process.h"
#include "shard.h"
#include "slab.h"

namespace reprise {

// What a rank tells all others about itself, once, before the first step.
struct PeerAddress {
  std::string name;     // for messages: "rank 1 (host:4711)"
  std::string network;  // where it is reached (network.h); empty: not at all
  bool mapped = true;   // its slab can be mapped here, given the next four
  int64_t process = 0;
  int descriptor = -1;  // of its slab
  uint64_t bytes = 0;   // of its slab
  uint64_t token = 0;
  uint32_t share = 0;
};

class Peers {
 public:
  // own: this rank's shard. limit: how long a deterministic step waits for another rank. network: nullptr where all
  // ranks are on this node.
  Peers(uint32_t rank, const Layout& layout, const Shard& own, bool deterministic, std::chrono::nanoseconds limit,
        std::unique_ptr<Network> network);

  // All ranks' addresses, by rank. Once, before anything below.
  void Connect(std::vector<PeerAddress> addresses);

  // Why a remote rank does not answer; empty when it does. What was found is not reported as a loss.
  std::string WhySilent(uint32_t rank);

  // Before this rank's records change: in deterministic mode, when nobody reads what the last step left any more.
  void AwaitReaders();
  // This rank holds `fill` after its inserts of the step.
  void Inserted(uint64_t step, Fill fill);
  // Tell the planner how full all ranks are: in deterministic mode after their inserts of this step. A rank that cannot
  // be drawn from holds nothing.
  void Refresh(Planner& planner);
  // This rank has read what it wanted of this step.
  void Fetched();
  // Contents were loaded; fills: of all ranks at that time, and empty when a draw without a step follows. In place of
  // Inserted. Deterministic ranks must all load.
  void Loaded(uint64_t step, Fill fill, const std::vector<Fill>& fills);

  // Whether the rank is read through the network, and not through its shard.
  bool IsRemote(uint32_t rank) const { return peers_[rank] && !peers_[rank]->address.mapped; }
  // The rank's shard; its own too. nullptr: it is gone, and Refresh must be asked again.
  const Shard* Find(uint32_t rank);
  // What remote ranks are asked through, and what is to be said along.
  Network& network() const { return *network_; }
  News OwnNews() const;
  // As Find, for a rank that has kept a record half-written for long: it may have died there.
  bool Runs(uint32_t rank);
  // The shard that a rank of this node has left behind whose process has ended; nullptr: none, or it was never mapped
  // here. Readable until Release.
  const Shard* Left(uint32_t rank);
  // What a rank held when this one last knew, also when it is gone.
  Fill held(uint32_t rank) const {
    const auto& peer = peers_[rank];
    return !peer ? fill_ : peer->gone ? peer->held : peer->fill;
  }
  // Leave a rank out from now on, and report it.
  void GiveUp(uint32_t rank, const std::string& reason) { Drop(*peers_[rank], reason); }
  std::chrono::nanoseconds limit() const { return limit_; }

  // As of the last Refresh or Loaded: of each rank, and of all together.
  std::vector<Fill> fills() const;
  Fill total() const;
  bool deterministic() const { return deterministic_; }

  // Before this rank leaves: in deterministic mode give remote ranks some seconds to read what they still want. Those
  // on the node have it mapped.
  void Linger();
  // This rank leaves: others stop drawing from it. What it says first holds; a failure after Stop is none.
  void Leave(Counters::State state);
  // End every wait, in any thread, by an exception; for good.
  void Stop();
  // Let go of all other ranks.
  void Release();
  // A line for each remote rank spoken with: how it is reached. And what has gone over the network so far.
  std::string Describe() const;
  // Ranks lost since the last call, one line each. Any thread.
  bool any_lost() const { return any_lost_.load(std::memory_order_relaxed); }
  std::vector<std::string> TakeLost();

 private:
  struct Peer {
    uint32_t rank;
    PeerAddress address;
    Process process;
    Slab slab{};
    Shard shard{};  // of the slab; without one: not mapped yet
    const Counters* counters = nullptr;
    bool gone = false;
    Fill fill{};
    Fill held{};           // when it went
    uint64_t changed = 0;  // in what revision of our knowledge its fill last changed
    uint64_t told = 0;     // up to what revision this rank has been told
  };

  using Stamp = uint64_t (Counters::*)() const;
  using Sleep = void (Counters::*)(uint64_t, std::chrono::nanoseconds) const;

  void ThrowIfStopped() const;
  // Whether the rank can be read; maps it first, if it has to be.
  bool Reach(Peer& peer);
  // Take over the fill count of a rank that is there, or that there is nothing any more.
  void Update(uint32_t rank, bool there, Planner& planner);
  void TellAll();
  void PassOn();
  void Drop(Peer& peer, const std::string& reason);
  bool HasLeft(Peer& peer);
  // Drop a peer that has left or ended; whether it is there still.
  bool Check(Peer& peer);
  // Sleep until the peer has come to the stamp; false: it is gone.
  bool Await(Peer& peer, Stamp stamp, Sleep sleep, uint64_t value, const char* what);

  const uint32_t rank_;
  const Layout& layout_;
  const Shard& own_;
  const bool deterministic_;
  const std::chrono::nanoseconds limit_;
  std::unique_ptr<Network> network_;
  std::vector<std::unique_ptr<Peer>> peers_;  // by rank; nullptr for this one
  std::vector<uint32_t> near_;                // ranks to be read through memory
  bool any_remote_ = false;
  uint64_t revision_ = 1;        // of what is known of fill counts
  uint64_t own_changed_ = 0;     // in what revision this rank's own count last changed
  std::vector<News> passed_on_;  // scratch
  uint64_t generation_ = 0;      // how often contents were loaded
  uint64_t stamp_ = 0;           // of the last step inserted here
  Fill fill_;                    // of this rank

  std::atomic<bool> stopping_{false};
  std::atomic<bool> any_lost_{false};
  std::mutex lost_mutex_;
  std::vector<std::string> lost_;  // guarded by lost_mutex_
};

}  // namespace reprise
