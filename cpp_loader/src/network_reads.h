// Reads records straight out of other ranks' memory, where hardware does that without the owner's help: the better half
// of network_client.h, which chooses. It is the asking thread alone that works; the owner does not notice.
//
// How. All ranks and records are under way together. Each rank goes through three phases, each of which begins when all
// reads of the one before have come to their end:
//   1. the version of every record, and the owner's counters,
//   2. what is wanted: label and task, the fields straight to where they are delivered, the inverse inclusion of the
//      stratum that phase 1 has named; and the counters,
//   3. the versions again, and the counters.
// A record whose version was odd or has changed is read again. Counters are news if the version of the fill count is
// the same in 1 and 3; how much is stored is known either way.
//
// Why that is sound (the owner's side is in shard.cc). Within one read nothing is in order: a network card fetches
// cache lines as it likes, and its bus may reorder them. So no read vouches for itself: the label that comes along with
// a version may be older or newer than that. But a read that has come to its end has brought what was in memory after
// it was begun, and no read is begun before those of the phase before it have ended. So what phase 2 sees was in memory
// after the versions of phase 1 and before those of phase 3.
//   - The owner makes a record's version odd before it changes a byte of it. Had a byte of phase 2 been part of a later
//     write than version 1 says, then that odd version was in memory already, and phase 3 found it or a later one.
//   - It makes the version even after the last byte. So if version 1 is even, that write's bytes were in memory before
//     phase 2 began.
// Hence the same even number twice: phase 2 brought the bytes of that write, all of them. Versions are aligned words,
// which are never seen in part. Cards see memory as processors do (their reads are coherent with the caches: x86 and
// the servers that Arm certifies); where C++'s fences order for processors alone, shard.cc orders for cards as well.
// The version wraps after two billion writes of one record, which do not happen between two phases.
//
// A rank that leaves says goodbye before it takes its memory back, and reads that are under way then may fail. So a
// rank whose memory cannot be read is in doubt at first (network_news.h).
//
// Threads: as the client, under its lock.
#pragma once

#if defined(REPRISE_HAVE_UCX)

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "layout.h"
#include "network.h"
#include "network_news.h"
#include "shard.h"
#include "ucx.h"

namespace reprise {

// What a rank offers to others: where its shard lies in its memory, and what they need to read it.
struct Window {
  uint64_t base = 0;
  uint64_t token = 0;  // Counters::token
  uint32_t share = 0;
  std::string key;  // UcxMemory::key; empty: nothing is offered

  // For its way to the others; empty when nothing is offered.
  std::string Pack() const;
  // Throws std::invalid_argument for anything else than what Pack makes: UCX takes keys on trust.
  static Window Unpack(std::string_view packed);
};

class NetworkReads {
 public:
  using Clock = std::chrono::steady_clock;
  // A rank has failed; the board knows why. Called by everything below.
  using Broken = std::function<void(uint32_t rank)>;

  // The worker: whose endpoints Open is given; it may be made later, and goes before this does.
  NetworkReads(UcxWorker& worker, const NetworkOptions& options, const Layout& layout, NewsBoard& board, Broken broken);
  NetworkReads(const NetworkReads&) = delete;
  NetworkReads& operator=(const NetworkReads&) = delete;
  ~NetworkReads();

  // What a rank offers.
  void Connect(uint32_t rank, Window window);
  // Find out whether the rank is read over this endpoint.
  void Open(uint32_t rank, ucp_ep_h endpoint);
  bool is_open(uint32_t rank) const { return remotes_[rank].endpoint; }
  // Just before its endpoint is closed.
  void Close(uint32_t rank);
  // For the log: what is to be said about the way that a rank is read in. Empty: by request, as it must be.
  std::string Describe(uint32_t rank) const;

  // Read what Network::Request asks for, from a rank that is open. Never waits.
  void Begin(uint32_t rank, std::span<const uint32_t> slots, std::span<const Network::Target> targets,
             Clock::time_point deadline);
  // Go on with everything that can go on. Whether that was anything.
  bool Go();
  // Everything that was begun is complete.
  bool done() const { return reads_.empty(); }
  // Something that was begun will not be complete, without anybody having failed: a slot holds no sample.
  bool lost() const { return lost_; }
  bool is_reading(uint32_t rank) const;
  // When Go or TakeLate have something to do though nothing arrives.
  Clock::time_point next() const;

  // Whether the targets may still be written to.
  bool under_way() const;
  // What is not complete will not be waited for after `end`.
  void Hurry(Clock::time_point end);
  // Ranks whose time is up: they have to fail, or to be closed. Those that are closed already are let go of.
  std::vector<uint32_t> TakeLate(Clock::time_point now);
  // Forget everything that was begun. Only when nothing is under way.
  void Clear();

  // Reads begun so far, and the bytes they were for. Any thread.
  uint64_t num_reads() const { return num_reads_.load(std::memory_order_relaxed); }
  uint64_t num_bytes() const { return num_bytes_.load(std::memory_order_relaxed); }

 private:
  struct Remote {
    Window window;
    ucp_ep_h endpoint = nullptr;  // with a key
    ucp_rkey_h key = nullptr;
    uint64_t under_way = 0;
    std::string note;
  };
  // The start of a RecordHeader.
  struct Version {
    uint32_t version;
    uint32_t stratum;
  };
  struct Record {
    Version before, after;
    RecordHeader header;
    double inverse_inclusion;
  };
  struct alignas(64) CountersCopy {
    std::array<std::byte, sizeof(Counters)> bytes;
    const Counters& get() const { return *reinterpret_cast<const Counters*>(bytes.data()); }
  };
  enum class Phase { kBegin, kVersions, kContents, kVersionsAgain, kComplete };
  // Of one request.
  struct Read {
    NetworkReads* reads = nullptr;
    uint32_t rank = 0;
    std::vector<uint32_t> slots;
    std::vector<Network::Target> targets;
    std::vector<uint64_t> ends;  // of each target in what a reply would be
    std::vector<Record> records;
    std::vector<uint32_t> todo, again;  // indices of slots
    std::array<CountersCopy, 3> counters;
    Phase phase = Phase::kBegin;
    uint64_t under_way = 0;
    bool over = false;  // it will not be complete
    Clock::time_point deadline;
    Clock::time_point not_before;  // phase 1
  };

  static void OnRead(void* request, ucs_status_t status, void* arg);

  void Get(Read& read, void* target, uint64_t offset, uint64_t bytes);
  // Cut the given part of the reply into the targets that it goes to.
  template <typename Part>
  void ForTargets(const Read& read, uint64_t offset, uint64_t bytes, Part part) const;
  void GetCounters(Read& read, size_t phase) { Get(read, &read.counters[phase], 0, sizeof(Counters)); }
  uint64_t RecordAt(const Read& read, uint32_t i) const;
  // Whether anything was to be done.
  bool Step(Read& read);
  void StartVersions(Read& read);
  void StartContents(Read& read);
  void StartVersionsAgain(Read& read);
  void Conclude(Read& read);
  void Deliver(Read& read);
  void Doubt(const Read& read, const std::string& reason);
  // The rank is known not to be open any more.
  void Left(const Read& read, Counters::State state);
  bool is_over(const Read& read) const { return read.over || board_.has_failed(read.rank); }
  void DestroyKey(Remote& remote);

  UcxWorker& worker_;
  const NetworkOptions& options_;
  const Layout& layout_;
  NewsBoard& board_;
  const Broken broken_;
  std::vector<uint64_t> offsets_;  // of the fields in a reply's record
  uint64_t record_bytes_ = 0;
  std::vector<Remote> remotes_;                              // by rank
  std::vector<std::unique_ptr<Read>> reads_, reads_before_;  // those that are over are used again
  std::vector<std::unique_ptr<Read>> given_up_;              // UCX owes them an end
  bool lost_ = false;
  std::atomic<uint64_t> num_reads_{0}, num_bytes_{0};
};

}  // namespace reprise

#endif
