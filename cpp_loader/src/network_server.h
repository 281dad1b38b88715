// The answering half of a Network: a thread that sleeps until another rank asks or tells something. See network.h.
//
// A reply goes out in segments: a few records are gathered, checked and on their way before the next ones are touched.
// Ranks that ask at the same time take turns, and one that is slow to receive keeps nobody waiting.
// Those that read the shard by themselves (network_reads.h) are told where it is.
// Threads: as each method says.
#pragma once

#if defined(REPRISE_HAVE_UCX)

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "copy.h"
#include "layout.h"
#include "network.h"
#include "network_news.h"
#include "network_wire.h"
#include "shard.h"
#include "ucx.h"

namespace reprise {

class NetworkServer {
 public:
  NetworkServer(const UcxLibrary& library, const NetworkOptions& options, const Layout& layout, const Shard& own,
                NewsBoard& board);
  NetworkServer(const NetworkServer&) = delete;
  NetworkServer& operator=(const NetworkServer&) = delete;
  ~NetworkServer();

  const std::string& address() const { return worker_.address(); }
  // What others need to read the shard without asking (Window::Pack); empty: they have to ask.
  const std::string& window() const { return window_; }
  // Why they have to, where hardware could; empty: they need not, or it could not.
  const std::string& why_no_window() const { return why_no_window_; }

  // Once. advance: what else the thread looks after, called after every Wake; it returns a descriptor, to be called
  // again when that is readable, or -1.
  void Start(std::function<int()> advance);
  // client: address of the rank's client, which replies go to. Any thread.
  void Connect(uint32_t rank, std::string client);
  // Any thread.
  void Wake();
  // End the thread, say goodbye to all ranks that have asked or told something, and close the connections, in bounded
  // time. Only then is the shard taken back from those who read it. The last call.
  void End(const News& own);

  Network::Traffic traffic() const;

 private:
  // A request that has not been answered in full.
  struct Job {
    uint64_t id;
    wire::Status status;
    std::vector<uint32_t> slots;
    size_t next;                   // slot to be gathered
    std::vector<ReplyHead> heads;  // of those gathered
  };
  struct Peer {
    NetworkServer* server = nullptr;
    uint32_t rank = 0;
    std::string address;
    ucp_ep_h endpoint = nullptr;
    bool active = false;  // is in active_
    bool broken = false;
    uint32_t sending = 0;  // segments that have not left yet
    std::vector<std::unique_ptr<Job>> jobs;
  };
  // A part of a reply, until all its messages have left.
  struct Segment {
    struct Message {
      wire::Reply reply;
      uint64_t bytes;  // of data
      Segment* segment;
    };
    NetworkServer* server;
    Peer* peer;
    std::unique_ptr<std::byte[]> bytes;
    uint64_t capacity = 0;
    std::vector<Message> messages;
    uint32_t sending;
  };

  static ucs_status_t OnRequest(void* arg, const void* header, size_t header_bytes, void* data, size_t bytes,
                                const ucp_am_recv_param_t* param);
  static ucs_status_t OnTell(void* arg, const void* header, size_t header_bytes, void* data, size_t bytes,
                             const ucp_am_recv_param_t* param);
  static void OnSent(void* request, ucs_status_t status, void* arg);
  static void OnBroken(void* arg, ucp_ep_h endpoint, ucs_status_t status);

  // All below: the server's thread; End when there is none any more.
  void Loop();
  // Add a sender of messages to those that Work looks at.
  void Activate(Peer& peer);
  // Send a segment to each rank that waits for one and can take it; whether there was any.
  bool Work();
  bool Reach(Peer& peer);
  void Answer(Peer& peer);
  // Copy the records job.next, ... to `records`, without gaps, and their heads to job.heads. false: the thread must
  // end.
  bool Gather(Job& job, size_t count, std::byte* records);
  Segment& NewSegment(Peer& peer, uint64_t bytes);
  // Cut the next so many bytes of the segment into messages, of which `reply` is the first one's header.
  void AddMessages(Segment& segment, const wire::Reply& reply, uint64_t bytes);
  void Send(Segment& segment);
  void Release(Segment* segment);
  void CloseBroken();
  void TakeAddresses();
  void Offer();

  const UcxLibrary& library_;
  const NetworkOptions& options_;
  const Layout& layout_;
  const Shard& own_;
  NewsBoard& board_;
  std::vector<uint64_t> offsets_;  // of the fields in a reply's record
  uint64_t record_bytes_ = 0;
  const int wake_;
  std::atomic<bool> stopping_{false};

  std::mutex mutex_;
  std::vector<std::pair<uint32_t, std::string>> addresses_;  // new ones; guarded by mutex_

  std::vector<Peer> peers_;                         // by rank
  std::vector<Peer*> active_;                       // may have jobs, or no endpoint yet
  bool broken_ = false;                             // some peer's connection is to be closed
  uint32_t sending_ = 0;                            // segments that have not left yet
  std::vector<std::unique_ptr<Job>> jobs_;          // answered; used again
  std::vector<std::unique_ptr<Segment>> segments_;  // that have left; used again
  std::vector<size_t> todo_, again_;
  std::vector<uint32_t> versions_;
  std::vector<Piece> pieces_;
  std::function<int()> advance_;
  std::atomic<uint64_t> messages_sent_{0}, bytes_sent_{0}, bytes_received_{0};
  std::string window_, why_no_window_;
  UcxWorker worker_;  // the last to be made and the first to go: its callbacks use the others
  std::unique_ptr<UcxMemory> memory_;
  std::thread thread_;
};

}  // namespace reprise

#endif
