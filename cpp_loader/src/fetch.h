// Brings the planned samples to where they are delivered, from whichever rank they are on.
//
// Records are copied straight from the owner's memory into the rows of a staging slot, all in one job for the team. The
// own ones cannot change meanwhile; those of other ranks are looked at again after the copy and copied once more if
// they have been written to, so that no torn sample is ever delivered. Ranks on other nodes are asked first, one
// request each, and their answers come while the rest is copied. Whoever runs a step calls it (engine.h: under
// execution_).
#pragma once

#include <cstdint>
#include <vector>

#include "copy.h"
#include "layout.h"
#include "network.h"
#include "peers.h"
#include "plan.h"
#include "shard.h"
#include "slab.h"
#include "staging.h"

namespace reprise {

class Fetcher {
 public:
  // peers: nullptr where draws come from this rank alone.
  Fetcher(uint32_t rank, const Layout& layout, const Slab& slab, const Shard& own, Peers* peers, CopyTeam& team);

  // Fill the draw rows of `staging`, in the plan's order. total: of all ranks that the plan draws from. false: a rank
  // was lost on the way, the rows are worth nothing, and a plan without it is needed.
  bool Fetch(const Plan& plan, Fill total, const Staging& staging);

 private:
  // Ask for the rows remote_.
  void Ask(const Plan& plan, const Staging& staging);
  // Copy the rows todo_. false: a rank was lost.
  bool CopyAll(const Plan& plan, double scale, const Staging& staging);
  // One try at the rows todo_, of which those that have to be tried again remain. false: a rank was lost.
  bool Copy(const Plan& plan, double scale, const Staging& staging);

  const uint32_t rank_;
  const Layout& layout_;
  const Slab& slab_;
  const Shard& own_;
  Peers* const peers_;
  CopyTeam& team_;

  std::vector<uint32_t> todo_, again_;  // rows
  std::vector<uint32_t> remote_;        // rows, those of a rank together
  std::vector<ReplyHead> heads_;        // one per remote row
  std::vector<uint32_t> slots_;         // of one rank's request
  std::vector<Network::Target> targets_;
  std::vector<uint32_t> versions_;  // of the rows being copied
  std::vector<Piece> pieces_;
};

}  // namespace reprise
