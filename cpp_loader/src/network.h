// Reads samples of ranks on other nodes, and tells the ranks how far each other is, through UCX.
//
// Where UCX reaches a rank by hardware that reads remote memory (InfiniBand and RoCE), the records are read straight
// out of its shard, without its doing anything: network_reads.h. Everywhere else a read is one request per rank and one
// reply: the owner gathers the asked records from its shard, so that no torn sample is ever sent, and the asker writes
// them where they are wanted. A one-sided read that is emulated on TCP takes 10 to 150 times as long. Either way all
// ranks are asked at once.
//
// Two UCX workers. That of the *server* belongs to a thread of its own, "reprise-network", which sleeps until somebody
// asks or tells something. That of the *client* is used by whoever runs the engine's step; the server's thread looks
// after it only when a message could not leave at once and nobody is inside. So no rank ever waits for one that waits.
// Connections are made when they are first needed, two for each pair of ranks that ask each other.
//
// What protects it: every message carries the job's key and is checked for its length and every number in it; others
// are dropped in silence. UCX itself trusts whoever speaks its protocol at its ports, down to addresses in memory, and
// encrypts nothing: choose the interface. Bytes that are not of its protocol do no harm. Where memory is read by
// hardware, whoever has the key to it, which is a part of the address, can read the whole shard; nobody is given one
// that writes.
// Both ends must have the same byte order and the same version of this file.
//
// UCX is opened at run time (its libucp.so.0, version 1.13 or later). The engine can be built without its headers; then
// the constructor throws. UCX's warnings are switched off for the whole process, unless UCX_LOG_LEVEL is set: to it a
// rank that ends is news.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "layout.h"
#include "shard.h"

namespace reprise {

// How the samples of other ranks are read. kGet: always out of their memory, also where that is emulated: for tests.
enum class Reads { kAuto, kRequest, kGet };

struct NetworkOptions {
  std::string library = "libucp.so.0";  // name or path
  // Interfaces that UCX may use (UCX_NET_DEVICES): "eth0", "lo". Empty: as the environment says, else all.
  std::string devices;
  // Transports (UCX_TLS): "tcp". Empty: as the environment says, else all but shared memory, which cannot tell that a
  // rank has died, and those of graphics cards.
  std::string transports;
  uint32_t rank = 0;
  uint32_t world_size = 1;
  uint64_t key = 0;                                           // secret of the job
  std::chrono::nanoseconds limit = std::chrono::seconds(30);  // until a request must be answered
  Reads reads = Reads::kAuto;
  bool may_pin = true;  // own memory may be kept in RAM, all of it, for others to read
};

// How full and how far a rank is: its Counters at one moment. Sent as it lies in memory.
struct News {
  uint32_t rank = 0;
  uint32_t state = Counters::kOpen;
  Fill fill;
  uint64_t inserted = 0;
  uint64_t fetched = 0;
};

// Start of a reply, once per asked slot.
struct ReplyHead {
  int64_t label;
  int64_t task;
  double inverse_inclusion;
};

// Why no Network can be made with this library; empty when one can.
std::string WhyNoNetwork(const std::string& library);

class Network {
 public:
  // A piece of memory that a part of a reply goes to.
  struct Target {
    std::byte* begin;
    uint64_t bytes;
  };

  // own: what others are given; it and the layout must live as long as this. Throws std::runtime_error with the reason
  // in one line: no UCX in this build or on this machine, too old, no usable interface.
  Network(NetworkOptions options, const Layout& layout, const Shard& own);
  Network(const Network&) = delete;
  Network& operator=(const Network&) = delete;
  // Says goodbye to all ranks it has spoken with; takes a second at most, also when they are dead. In a forked child,
  // to which UCX does not belong, it does nothing.
  ~Network();

  // Where this rank is reached: bytes for all other ranks' Connect.
  const std::string& address() const;
  // Only remembered. Throws std::invalid_argument for what cannot be an address. Any thread.
  void Connect(uint32_t rank, const std::string& address);
  // The version of UCX, and the transports it has chosen for each rank asked so far, a line each; and why others have
  // to ask though they could read. Any thread; waits for a Finish.
  std::string describe() const;

  // ---- what is known of the others; any thread

  // By its last news, from itself or from others. Inserted and fetched stamps never fall, and so wake those who wait;
  // the state becomes kClosed or kBroken when the rank leaves, fails or is lost.
  const Counters& counters(uint32_t rank) const;
  // Ranks of which something new has come, or that were lost, since the last call.
  std::vector<uint32_t> TakeNews();
  // Why a rank cannot be asked any more; "closed": it has left in order. Empty: it works as far as known.
  std::string failed(uint32_t rank) const;

  // ---- client: one thread at a time

  // Send news to a rank. Never waits for anybody; to a failed rank it does nothing.
  void Tell(uint32_t rank, std::span<const News> news);
  // Ask a rank for its records; `own` goes along. The reply is written to the targets in order: first a ReplyHead per
  // slot, then for each slot its fields, without gaps. The targets together must have that many bytes
  // (std::invalid_argument) and stay until Finish returns. Never waits. Without slots it only asks for news. Where its
  // memory is read, the rank is told `own` with the first request only.
  void Request(uint32_t rank, std::span<const uint32_t> slots, std::span<const Target> targets, const News& own);
  // Sleep until every request since the last Finish is answered. false: a rank has failed, or stores less than was
  // asked for (its counters say how much), so that the targets are worth nothing; make another plan. Either way nothing
  // is written to the targets any more.
  bool Finish();
  // Notice connections that have broken since the last call; in Finish that happens by itself. Never waits. For whoever
  // sleeps until a rank has news: one that dies is noticed at once only by those it has asked or told something.
  void Look();
  // End Finish, in any thread, and all later ones, with false.
  void Stop();

  // Since the start; a read of memory counts as a message. Any thread.
  struct Traffic {
    uint64_t messages_sent = 0;
    uint64_t bytes_sent = 0;
    uint64_t bytes_received = 0;
  };
  Traffic traffic() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace reprise
