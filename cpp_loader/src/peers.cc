#include "peers.h"

#include <unistd.h>

#include <algorithm>
#include <bit>
#include <limits>
#include <stdexcept>
#include <utility>

namespace reprise {
namespace {

using Clock = std::chrono::steady_clock;

// How long a wait sleeps before it looks whether the rank it waits for still runs.
constexpr auto kLookEvery = std::chrono::milliseconds(50);
// A process whose memory is gone may not count as ended yet.
constexpr auto kDying = std::chrono::milliseconds(500);
constexpr unsigned kStepBits = 40;
constexpr uint64_t kStepMask = (uint64_t{1} << kStepBits) - 1;
// For remote ranks to finish the step that this rank has finished before it leaves.
constexpr auto kLinger = std::chrono::seconds(20);

}  // namespace

Peers::Peers(uint32_t rank, const Layout& layout, const Shard& own, bool deterministic, std::chrono::nanoseconds limit,
             std::unique_ptr<Network> network)
    : rank_(rank),
      layout_(layout),
      own_(own),
      deterministic_(deterministic),
      limit_(limit),
      network_(std::move(network)) {}

void Peers::Connect(std::vector<PeerAddress> addresses) {
  for (uint32_t rank = 0; rank < addresses.size(); ++rank) {
    if (rank == rank_) {
      peers_.push_back(nullptr);
      continue;
    }
    const bool mapped = addresses[rank].mapped;
    if (network_ && !addresses[rank].network.empty()) network_->Connect(rank, addresses[rank].network);
    // The number of a process on another node means nothing here.
    Process process(mapped ? addresses[rank].process : getpid());
    peers_.push_back(std::make_unique<Peer>(Peer{rank, std::move(addresses[rank]), std::move(process)}));
    if (mapped) {
      near_.push_back(rank);
    } else {
      any_remote_ = true;
      peers_.back()->counters = &network_->counters(rank);
    }
  }
}

std::string Peers::WhySilent(uint32_t rank) {
  network_->Request(rank, {}, {}, OwnNews());
  return network_->Finish() ? "" : network_->failed(rank);
}

void Peers::AwaitReaders() {
  if (!deterministic_) return;
  for (const auto& peer : peers_) {
    if (peer && Reach(*peer)) Await(*peer, &Counters::fetched, &Counters::AwaitFetched, stamp_, "drawn for");
  }
}

void Peers::Inserted(uint64_t step, Fill fill) {
  stamp_ = generation_ << kStepBits | step;
  if (fill.stored != fill_.stored) own_changed_ = ++revision_;
  fill_ = fill;
  own_.counters().SetFill(fill);
  own_.counters().SetInserted(stamp_);
  if (any_remote_ && deterministic_) TellAll();
}

void Peers::Refresh(Planner& planner) {
  ThrowIfStopped();
  planner.SetFill(rank_, fill_.stored);
  if (deterministic_) {
    for (uint32_t rank = 0; rank < peers_.size(); ++rank) {
      if (!peers_[rank]) continue;
      Peer& peer = *peers_[rank];
      const bool there = Reach(peer) && Await(peer, &Counters::inserted, &Counters::AwaitInserted, stamp_, "submitted");
      Update(rank, there, planner);
    }
    return;
  }
  for (const uint32_t rank : near_) {
    Peer& peer = *peers_[rank];
    Update(rank, Reach(peer) && Check(peer), planner);
  }
  if (!any_remote_) return;
  for (const uint32_t rank : network_->TakeNews()) {
    if (IsRemote(rank)) Update(rank, Check(*peers_[rank]), planner);
  }
  PassOn();
}

void Peers::Update(uint32_t rank, bool there, Planner& planner) {
  Peer& peer = *peers_[rank];
  const Fill before = peer.fill;
  peer.fill = there ? peer.counters->fill() : Fill();
  // What another process says is no reason to read beyond its memory.
  peer.fill.stored = std::min<uint64_t>(peer.fill.stored, peer.address.share);
  if (peer.fill.stored != before.stored) peer.changed = ++revision_;
  planner.SetFill(rank, peer.fill.stored);
}

News Peers::OwnNews() const {
  const Counters& counters = own_.counters();
  return {rank_, counters.state(), fill_, counters.inserted(), counters.fetched()};
}

void Peers::TellAll() {
  const News news = OwnNews();
  for (uint32_t rank = 0; rank < peers_.size(); ++rank) {
    if (IsRemote(rank) && !peers_[rank]->gone) network_->Tell(rank, {&news, 1});
  }
}

void Peers::PassOn() {
  const auto num_ranks = static_cast<uint32_t>(peers_.size());
  const uint64_t step = stamp_ & kStepMask;
  const uint32_t partner = (rank_ + (1u << step % std::bit_width(num_ranks - 1))) % num_ranks;
  Peer& told = *peers_[partner];
  if (told.told >= revision_) return;
  passed_on_.clear();
  if (own_changed_ > told.told) passed_on_.push_back(OwnNews());
  for (uint32_t rank = 0; rank < num_ranks; ++rank) {
    const Peer* const peer = peers_[rank].get();
    if (!peer || rank == partner || peer->gone || peer->changed <= told.told) continue;
    passed_on_.push_back({rank, Counters::kOpen, peer->fill, peer->counters->inserted(), peer->counters->fetched()});
  }
  told.told = revision_;
  if (!passed_on_.empty()) network_->Tell(partner, passed_on_);
}

void Peers::Fetched() {
  own_.counters().SetFetched(stamp_);
  if (any_remote_ && deterministic_) TellAll();
}

void Peers::Loaded(uint64_t step, Fill fill, const std::vector<Fill>& fills) {
  ++generation_;
  Inserted(step, fill);
  own_.counters().SetFetched(fills.empty() ? stamp_ - 1 : stamp_);
  if (any_remote_) TellAll();
  for (uint32_t rank = 0; rank < std::min(fills.size(), peers_.size()); ++rank) {
    if (peers_[rank] && !peers_[rank]->gone) peers_[rank]->fill = fills[rank];
  }
}

const Shard* Peers::Find(uint32_t rank) {
  if (rank == rank_) return &own_;
  Peer& peer = *peers_[rank];
  return peer.gone ? nullptr : &peer.shard;
}

bool Peers::Runs(uint32_t rank) {
  ThrowIfStopped();
  return rank == rank_ || Check(*peers_[rank]);
}

const Shard* Peers::Left(uint32_t rank) {
  if (rank == rank_) return nullptr;
  Peer& peer = *peers_[rank];
  if (Reach(peer)) Check(peer);
  return peer.gone && peer.slab.data() ? &peer.shard : nullptr;
}

std::vector<Fill> Peers::fills() const {
  std::vector<Fill> fills;
  for (const auto& peer : peers_) fills.push_back(peer ? peer->fill : fill_);
  return fills;
}

Fill Peers::total() const {
  Fill sum;
  for (const auto& peer : peers_) {
    const Fill fill = peer ? peer->fill : fill_;
    sum.stored += fill.stored;
    sum.mass += fill.mass;
  }
  return sum;
}

std::vector<std::string> Peers::TakeLost() {
  const std::lock_guard lock(lost_mutex_);
  any_lost_.store(false, std::memory_order_relaxed);
  return std::exchange(lost_, {});
}

void Peers::Linger() {
  if (!any_remote_ || !deterministic_) return;
  // Nor does anybody have to wait for what it reads, above all not another one that lingers.
  own_.counters().SetFetched(std::numeric_limits<uint64_t>::max());
  TellAll();
  const auto end = Clock::now() + kLinger;
  for (const auto& peer : peers_) {
    if (!peer || peer->address.mapped || peer->gone) continue;
    for (uint64_t seen; (seen = peer->counters->fetched()) < stamp_ && Check(*peer) && Clock::now() < end;) {
      peer->counters->AwaitFetched(seen, kLookEvery);
      network_->Look();
    }
  }
}

void Peers::Leave(Counters::State state) {
  if (own_.counters().state() != Counters::kOpen) return;
  // A step that was ended by Stop has not failed, and others may still draw from what it left: Close comes back to it.
  if (state == Counters::kBroken && stopping_.load(std::memory_order_relaxed)) return;
  own_.counters().SetState(state);
  if (any_remote_) TellAll();
}

void Peers::Stop() {
  stopping_.store(true, std::memory_order_relaxed);
  if (network_) network_->Stop();
}

void Peers::Release() {
  peers_.clear();
  network_.reset();
}

std::string Peers::Describe() const {
  if (!network_) return "";
  const Network::Traffic traffic = network_->traffic();
  return network_->describe() + "\nsent " + std::to_string(traffic.messages_sent) + " messages, " +
         std::to_string(traffic.bytes_sent) + " bytes; received " + std::to_string(traffic.bytes_received) + " bytes";
}

void Peers::ThrowIfStopped() const {
  if (stopping_.load(std::memory_order_relaxed)) throw std::runtime_error("the rehearsal buffer is closed");
}

bool Peers::Reach(Peer& peer) {
  if (peer.gone) return false;
  if (!peer.address.mapped || peer.slab.data()) return true;
  try {
    peer.slab = Slab::OfProcess(peer.address.process, peer.address.descriptor, peer.address.bytes);
    peer.slab.HideFromChildren();
    peer.shard = Shard(peer.slab, layout_, peer.address.share);
    peer.counters = &peer.shard.counters();
    if (peer.shard.counters().token() == peer.address.token) return true;
    Drop(peer, "");  // it has closed its buffer, and the descriptor is another file's now
  } catch (const std::runtime_error& error) {
    // A process that runs has closed its buffer: mapping was tried when this buffer was made (reach.py).
    Drop(peer, peer.process.Ended(kDying) ? "its process has ended" : "");
  }
  return false;
}

void Peers::Drop(Peer& peer, const std::string& reason) {
  peer.gone = true;
  peer.held = peer.fill;
  peer.fill = Fill();
  const bool leaves_samples = peer.slab.data() && !reason.empty() && peer.process.Ended();
  if (!leaves_samples) {
    if (peer.address.mapped) peer.counters = nullptr;  // they lie in the slab
    peer.shard = Shard();
    peer.slab = Slab();
  }
  if (reason.empty()) return;
  const std::lock_guard lock(lost_mutex_);
  lost_.push_back(peer.address.name + " is lost: " + reason);
  any_lost_.store(true, std::memory_order_relaxed);
}

bool Peers::HasLeft(Peer& peer) {
  return peer.gone || peer.counters->state() != Counters::kOpen || (peer.address.mapped && peer.process.Ended());
}

bool Peers::Check(Peer& peer) {
  if (peer.gone) return false;
  if (!peer.address.mapped) {
    const Counters::State state = peer.counters->state();
    if (state == Counters::kOpen) return true;
    const std::string reason = network_->failed(peer.rank);  // empty: it says so itself
    if (state == Counters::kClosed) {
      Drop(peer, "");
    } else {
      Drop(peer, reason.empty() ? "its rehearsal buffer has failed" : reason);
    }
    return false;
  }
  const Counters::State state = peer.counters->state();
  if (state == Counters::kClosed) {
    Drop(peer, "");
  } else if (state == Counters::kBroken) {
    Drop(peer, "its rehearsal buffer has failed");
  } else if (peer.process.Ended()) {
    // It may have closed its buffer just before.
    Drop(peer, peer.counters->state() == Counters::kClosed ? "" : "its process has ended");
  }
  return !peer.gone;
}

bool Peers::Await(Peer& peer, Stamp stamp, Sleep sleep, uint64_t value, const char* what) {
  const Counters& counters = *peer.counters;
  const auto end = Clock::now() + limit_;
  for (;;) {
    // Remote ranks linger until everybody has read them: one that has left cannot be asked any more, wherever it was.
    if (!peer.address.mapped && !Check(peer)) return false;
    const uint64_t seen = (counters.*stamp)();
    if (seen >= value) return true;
    if (HasLeft(peer)) {
      // What it did before it left counts, whenever it is looked at: draws must not depend on that.
      if ((counters.*stamp)() >= value) return true;
      Check(peer);
      return false;
    }
    ThrowIfStopped();
    if (Clock::now() >= end) {
      const uint64_t step = value & kStepMask;
      throw std::runtime_error(
          peer.address.name + " has not " + what + " step " + std::to_string(step) + " within " +
          std::to_string(std::chrono::duration_cast<std::chrono::seconds>(limit_).count()) +
          " s; in deterministic mode every rank must submit equally often (--timeout or REPRISE_TIMEOUT)");
    }
    (counters.*sleep)(seen, kLookEvery);
    if (!peer.address.mapped) network_->Look();
  }
}

}  // namespace reprise
