// One rank's rehearsal engine: takes batches, stores what the policy says, prepares the draws of the next step.
//
//   caller                         engine thread (or the caller, when it has nothing else to do)
//   Submit(batch) ── queue ──►     insert: policy, copy into the slab     (versions odd while a record is written)
//   ... compute ...                plan:   which samples, uniformly
//   Wait()  ◄──────────────────    fetch:  gather them into a staging slot
//
// Threads. Everything but Close, done and timings is for one caller at a time. The engine thread sleeps while the queue
// is empty: in naps while steps keep coming, so that Submit need not wake it, else until it is woken. A caller that has
// to wait does not sleep at once: it takes over the next step if nobody has begun it, or copies along. Whoever runs a
// step holds `execution_`, which guards slab, policy, scratch and staging contents; `mutex_` guards queue, flags and
// `failure_`. Lock order: execution_ before mutex_. Nothing here knows Python.
//
// Ownership. A batch's memory stays the caller's and must not change until done() has reached its step. Staging slots:
// three, one with the caller (the draw it got last), up to two with draws asked for and not yet delivered. Slots change
// hands in Submit and Wait only, on the caller's thread, hence without a lock.
//
// CUDA. With a device, samples and host staging are pinned and each slot has a twin there, made by the caller. Rows of
// batches on the device are copied straight into the slab, draws from host staging to the twin, all on a stream of our
// own: it waits for the point of the caller's stream where Submit was called, and Wait makes the caller's stream wait
// for the copy. The engine thread sleeps until a copy is done; the caller's never does.
//
// Errors. What goes wrong while a step is run is kept and thrown by every later call but Close; the engine is then of
// no further use. The memory of samples and draws is reserved in the constructor.
//
// A forked child has no engine thread and no samples: there every call but Close and destroying throws.
#pragma once

#include <sys/types.h>

#include <array>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "copy.h"
#include "cuda.h"
#include "fetch.h"
#include "layout.h"
#include "peers.h"
#include "plan.h"
#include "policy.h"
#include "random_words.h"
#include "shard.h"
#include "slab.h"
#include "staging.h"
#include "timed.h"

namespace reprise {

struct EngineOptions {
  std::vector<uint64_t> field_bytes;  // bytes of each field of one sample
  uint32_t share = 0;                 // slots of this rank
  std::string policy;
  std::vector<uint32_t> draws;  // samples per draw of a step
  uint32_t candidates = 0;      // at most so many rows of a batch are offered to the policy; 0: all
  uint64_t seed = 0;
  uint32_t rank = 0;
  uint32_t world_size = 1;
  unsigned threads = 1;  // threads that copy, the engine's own included
  std::string storage;   // folder or name of a file that holds the samples; empty: memory
  int cuda_device = -1;  // where draws are delivered and batches may lie; -1: host memory only
  std::string cuda_library = "libcuda.so.1";
  bool exchanges = false;      // draw from all ranks: Connect comes before the first step
  bool deterministic = false;  // draws see every rank's inserts up to their own step, and nothing later
  double limit_s = 300;        // how long a deterministic step waits for another rank, and a request for its answer
  // Where ranks on other nodes are to be read; rank, world size and limit are filled in.
  std::optional<NetworkOptions> network = std::nullopt;
};

// A batch as it is handed over: rows back to back in each field.
struct Batch {
  std::vector<const std::byte*> fields;
  const int64_t* labels = nullptr;
  const int64_t* tasks = nullptr;  // one per row; nullptr: all rows have `task`
  int64_t task = -1;
  uint64_t rows = 0;
  // With a CUDA device: which of the above lie there, and the stream whose work so far makes them ready.
  std::vector<bool> fields_on_device;  // empty: none
  bool labels_on_device = false;
  bool tasks_on_device = false;
  Cuda::Stream stream = nullptr;
};

// What Wait hands out: the staging slot, and how many of its draw rows belong to each draw.
struct Delivery {
  uint32_t slot;
  std::vector<uint32_t> sizes;
};

class Engine {
 public:
  static constexpr uint32_t kSlots = 3;
  // Steps that may wait in the queue: each keeps its caller's memory alive.
  static constexpr uint64_t kMaxQueued = 4;

  // Throws std::invalid_argument for options that make no sense, std::runtime_error when memory or disk are refused.
  explicit Engine(EngineOptions options);
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;
  ~Engine();

  // With options.exchanges, before anything else: what to tell the others (all but the name), and what they have told.
  PeerAddress address() const;
  void Connect(std::vector<PeerAddress> addresses) { peers_->Connect(std::move(addresses)); }
  // After Connect: why a rank that is reached through the network does not answer; empty when it does.
  std::string WhySilent(uint32_t rank);
  // Lines about ranks that were lost since the last call. Any thread.
  bool any_lost() const { return peers_ && peers_->any_lost(); }
  std::vector<std::string> TakeLost() { return peers_->TakeLost(); }
  // How remote ranks are reached, and what has gone over the network, for the log. Not together with
  // Close.
  std::string DescribePeers() const;

  // Queue a step: insert the batch, then prepare draws. Returns its number, from 1. Of several draws not yet waited for
  // the latest two are kept. Blocks only when the engine is kMaxQueued steps behind.
  uint64_t Submit(Batch batch);
  // Whether Submit would block.
  bool behind() const { return sequence_ >= kMaxQueued && !Finished(sequence_ + 1 - kMaxQueued); }
  // Queue draws from the present contents, without a step: after contents were loaded that no draw goes with.
  void SubmitDraw(Cuda::Stream stream = nullptr);
  // The draws asked for one step ago; 0 rows at the first call. They stay valid until the next Wait returns. Throws
  // std::runtime_error when no draw was asked for, or when Close was called meanwhile. stream: with a device, what is
  // to wait for the copies there.
  Delivery Wait(Cuda::Stream stream = nullptr);
  // Whether Wait would return at once.
  bool ready() const;
  // Return once everything queued is done.
  void Drain();
  // Number of the last step that is complete: batches up to it may be overwritten. Any thread.
  uint64_t done() const { return done_.load(std::memory_order_acquire); }

  // The staging slot that the next Wait will deliver, whose front rows the caller may therefore fill now.
  uint32_t next_slot() const;
  const Staging& staging(uint32_t slot) const { return *staging_[slot]; }
  // Make room for `rows` front rows in every slot. Drains; draws keep their contents, but all staging memory is new.
  void ReserveFront(uint64_t rows);

  // With a device: where the draw rows of a slot's columns lie there, from now on (fields, labels, tasks, ranks,
  // weights). stream: the one they were allocated on. Drains; the slot's pending draw, if it has one, is copied there.
  void SetDeviceRows(uint32_t slot, std::vector<Cuda::Address> columns, Cuda::Stream stream);
  // Why the samples are not pinned although there is a device; empty when they are.
  const std::string& not_pinned() const { return not_pinned_; }

  // All of these drain first.
  uint32_t stored();
  uint64_t submitted();  // rows of all batches, offered or not
  uint64_t step();
  uint64_t mass();
  // Of every rank, in deterministic mode as of the last step; of those that draws do not reach, nothing.
  std::vector<Fill> fills();
  PolicyState policy_state();
  // (label, task) of all stored samples, slot by slot.
  std::vector<int64_t> labels();
  // How often each slot that holds a sample has been written: two equal numbers, the same sample.
  std::vector<int64_t> versions();
  // Copy column `column` (fields, then labels, then tasks) of the samples in `slots`, one after the other. Throws
  // std::invalid_argument for a slot without a sample.
  void ReadColumn(size_t column, std::span<const int64_t> slots, std::byte* target);

  // What the other ranks hold, as far as this one knows; of those on this node whose processes have ended also the
  // slots with a whole sample, its number of writes and inverse inclusion.
  struct Estate {
    uint32_t rank;
    Fill held;
    std::vector<int64_t> slots, versions;
    std::vector<double> inverse_inclusion;
  };
  std::vector<Estate> Estates();
  // As ReadColumn, from such a rank. Throws std::invalid_argument when it has left nothing, or not these slots.
  void ReadEstate(uint32_t rank, size_t column, std::span<const int64_t> slots, std::byte* target);

  // Replace all contents: counters, then stored() rows per column (fields, labels, tasks). started: whether the first
  // Wait has been. No draw is pending afterwards. fills: of all ranks at that time, empty if SubmitDraw comes next.
  // Throws std::invalid_argument for an impossible state and then changes nothing.
  void Load(const PolicyState& policy, uint64_t step, uint64_t submitted, bool started, const std::vector<Fill>& fills,
            const std::vector<const std::byte*>& columns);
  // A pending draw from elsewhere: returns the slot whose draw rows the caller fills with it. After Load, oldest first.
  uint32_t AdoptDraw(std::vector<uint32_t> sizes);
  // Pending draws, oldest first, drained.
  std::vector<Delivery> pending();
  bool started() const { return started_; }

  // "queue": from Submit to the start, "insert", "plan", "fetch", "wait": blocked in Wait. Any thread.
  std::vector<std::pair<std::string, const Timed*>> timings() const;

  // Stop, drop what is queued, release the samples; wakes a blocked Wait. Idempotent, any thread, never throws.
  void Close() noexcept;

  // Thrown from the next step on the engine thread, as if the step had failed: for tests of that path only.
  void FailNextStep(std::exception_ptr error);

 private:
  struct Step {
    Batch batch;
    bool inserts;
    uint64_t number;
    uint64_t sequence;  // of this queue entry
    uint32_t slot;
    Timed::Clock::time_point queued;
  };
  struct Pending {
    uint64_t sequence;
    uint32_t slot;
  };

  void Enqueue(Batch batch, bool inserts);
  void Loop();
  // Let the engine thread rest until there may be something to do. lock: on mutex_.
  void Rest(std::unique_lock<std::mutex>& lock);
  bool Finished(uint64_t sequence) const { return finished_.load(std::memory_order_acquire) >= sequence; }
  // Block until the queue entry is finished, working rather than sleeping where possible. Throws failure_.
  void Await(uint64_t sequence);
  void ThrowIfBroken();
  // Drained; until the lock is released nothing is run, and Close does not take the samples away.
  std::unique_lock<std::mutex> HoldContents();
  // Help with copies of a step that runs elsewhere, until done() or there has been nothing to copy for a while.
  template <typename Done>
  bool CopyAlong(Done done);

  void CopyColumn(const Shard& shard, uint64_t stored, size_t column, std::span<const int64_t> slots,
                  std::byte* target) const;

  // Under execution_.
  void RunNext();
  void Insert(const Step& step);
  void Deliver(const Step& step);
  void Refresh();
  void CopyToDevice(uint32_t slot);

  const EngineOptions options_;
  const Layout layout_;
  const RandomWords words_;
  const pid_t process_;

  // Before all memory that it pins. Events: one per queue entry, one per slot, one for what comes to the host.
  std::unique_ptr<Cuda> cuda_;
  std::string not_pinned_;
  uint64_t draw_rows_ = 0;
  static constexpr unsigned kHostCopy = kMaxQueued + 1 + kSlots;
  static unsigned SubmitEvent(uint64_t sequence) { return static_cast<unsigned>(sequence % (kMaxQueued + 1)); }
  static unsigned ReadyEvent(uint32_t slot) { return kMaxQueued + 1 + slot; }

  // With the caller.
  std::array<std::unique_ptr<Staging>, kSlots> staging_;  // contents: see above
  std::array<std::vector<uint32_t>, kSlots> sizes_;       // draw sizes; written with the contents
  std::vector<uint32_t> free_{2, 1};  // the last one goes first: two slots take turns, one stays cold
  uint32_t held_ = 0;
  std::deque<Pending> pending_;
  bool started_ = false;
  uint64_t steps_submitted_ = 0;
  uint64_t sequence_ = 0;

  // Guarded by execution_.
  std::mutex execution_;
  Slab slab_;
  Shard shard_;
  std::array<std::vector<Cuda::Address>, kSlots> device_rows_;
  std::vector<int64_t> host_labels_, host_tasks_;  // of a batch whose labels or tasks lie on the device
  std::unique_ptr<Policy> policy_;
  Planner planner_;
  uint64_t submitted_ = 0;
  Chooser chooser_;
  std::vector<uint64_t> picked_;
  std::vector<int64_t> candidate_labels_;
  std::vector<Write> writes_;
  std::vector<StratumValue> strata_;
  std::vector<Piece> pieces_;
  Plan plan_;
  CopyTeam team_;
  std::unique_ptr<Peers> peers_;  // where draws come from all ranks
  Fetcher fetcher_;

  // Guarded by mutex_.
  std::mutex mutex_;
  std::condition_variable work_;        // something was queued while asleep_, or closing
  bool asleep_ = false;                 // the engine thread has to be woken
  Timed::Clock::time_point nap_end_{};  // when it wakes by itself, while it naps
  Timed::Clock::time_point last_queued_ = Timed::Clock::now();
  Timed::Clock::duration period_{};         // usual time between two queue entries
  Timed::Clock::duration last_interval_{};  // between the last two
  std::condition_variable changed_;         // an entry was finished, or closing
  std::deque<Step> queue_;                  // the front entry stays until it is finished
  std::exception_ptr failure_;
  std::exception_ptr injected_;
  bool closing_ = false;

  std::atomic<uint64_t> finished_{0};  // sequence of the last finished entry
  std::atomic<uint64_t> done_{0};      // number of the last finished step
  std::atomic<bool> broken_{false};    // failure_ is set or closing_

  Timed queue_time_, insert_time_, plan_time_, fetch_time_, wait_time_;
  std::mutex ending_;  // one Close at a time; taken before all others
  std::thread thread_;

  friend struct EngineDeleter;
};

// Destroys an engine, except in a forked child: its thread stayed in the parent, so waiting for that would never end.
// There the memory goes with the process.
struct EngineDeleter {
  void operator()(Engine* engine) const;
};

using EngineHandle = std::unique_ptr<Engine, EngineDeleter>;

}  // namespace reprise
