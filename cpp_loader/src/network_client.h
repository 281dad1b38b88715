// The asking half of a Network: sends requests and news, and puts replies where they are wanted, or reads what is
// wanted itself where hardware can (network_reads.h). See network.h.
//
// Threads: everything may be called from any thread, one at a time inside: a Finish keeps all others but Stop out.
#pragma once

#if defined(REPRISE_HAVE_UCX)

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "layout.h"
#include "network.h"
#include "network_news.h"
#include "network_reads.h"
#include "network_wire.h"
#include "ucx.h"

namespace reprise {

class NetworkClient {
 public:
  // unfinished: called, outside of everything, when messages could not leave at once: somebody must call Advance.
  NetworkClient(const UcxLibrary& library, const NetworkOptions& options, const Layout& layout, NewsBoard& board,
                std::function<void()> unfinished);
  NetworkClient(const NetworkClient&) = delete;
  NetworkClient& operator=(const NetworkClient&) = delete;
  ~NetworkClient();

  const std::string& address() const { return worker_.address(); }
  // server: address of the rank's server. window: what it offers.
  void Connect(uint32_t rank, std::string server, Window window);
  std::vector<std::string> describe() const;

  void Tell(uint32_t rank, std::span<const News> news);
  void Request(uint32_t rank, std::span<const uint32_t> slots, std::span<const Network::Target> targets,
               const News& own);
  bool Finish();
  void Stop();

  // Notice what has happened, and send what could not leave at once, if nobody else is inside. Returns what becomes
  // readable when more can be done; -1: nothing is left, or somebody else sees to it and calls unfinished().
  int Advance();
  // Tell all ranks ever connected that this one leaves, and close the connections, in bounded time. The last call.
  void End(const News& own);

  Network::Traffic traffic() const;

 private:
  struct Peer {
    std::string address;
    ucp_ep_h endpoint = nullptr;
    NetworkClient* client = nullptr;
    uint32_t rank = 0;
    uint32_t sending = 0;  // messages that have not left yet
    bool broken = false;   // its connection is, or will be, closed, for good
    bool told = false;     // it has heard of this rank, and so will say goodbye to it
    std::vector<News> owed;
  };
  struct Message {
    NetworkClient* client;
    Peer* peer;
    std::vector<std::byte> bytes;
  };
  struct Asked {
    uint64_t id;
    uint32_t rank;
    std::vector<Network::Target> targets;
    std::vector<uint64_t> ends;  // of each target in the reply
    uint64_t received;
    std::chrono::steady_clock::time_point deadline;
  };

  static ucs_status_t OnReply(void* arg, const void* header, size_t header_bytes, void* data, size_t bytes,
                              const ucp_am_recv_param_t* param);
  static void OnSent(void* request, ucs_status_t status, void* arg);
  static void OnBroken(void* arg, ucp_ep_h endpoint, ucs_status_t status);

  // All below: under mutex_.
  bool Reach(Peer& peer);
  Message& NewMessage(Peer& peer, uint64_t bytes);
  void Send(Message& message, unsigned id);
  void SendNews(Peer& peer, std::span<const News> news);
  // Keep news until there is room for them; send those for which there is.
  void Owe(Peer& peer, std::span<const News> news);
  void PayOwed();
  Asked* Find(const wire::Reply& reply);
  // Takes in a part of a reply; checked before.
  void Deliver(const wire::Reply& reply, const std::byte* data, uint64_t bytes);
  void Fail(uint32_t rank, Counters::State state, const std::string& reason);
  // As Fail, unless it turns out that the rank has left.
  void Doubt(uint32_t rank, const std::string& reason);
  // The rank has failed.
  void Broken(uint32_t rank);
  void CloseBroken();
  bool Overdue();
  // Bring to an end what still writes to targets, if need be by closing the connection.
  void SettleReads();
  // Sleep until nobody is in doubt, or Stop.
  void AwaitVerdicts();
  bool Unfinished() const { return sending_ > 0 || broken_ || worker_.closing(); }
  void Sleep();
  // stoppable: Stop wakes it, also when it has been called before.
  void SleepUntil(std::chrono::steady_clock::time_point end, bool stoppable);

  const UcxLibrary& library_;
  const NetworkOptions& options_;
  NewsBoard& board_;
  const std::function<void()> unfinished_;
  uint64_t record_bytes_ = 0;  // of a record in a reply
  const int wake_;             // event descriptor: Stop

  mutable std::mutex mutex_;
  std::vector<Peer> peers_;                                   // by rank
  std::vector<std::unique_ptr<Asked>> asked_, asked_before_;  // those answered are used again
  std::vector<std::unique_ptr<Message>> messages_;            // those that have left; used again
  uint64_t last_id_ = 0;
  uint64_t sending_ = 0;
  uint64_t owing_ = 0;   // peers with owed news
  bool broken_ = false;  // some peer has a connection to be closed
  bool lost_ = false;    // a request since the last Finish has failed
  std::atomic<bool> stopping_{false};
  std::atomic<uint64_t> messages_sent_{0}, bytes_sent_{0}, bytes_received_{0};
  NetworkReads reads_;
  UcxWorker worker_;  // the last to be made and the first to go: its callbacks use the others
};

}  // namespace reprise

#endif
