// Moves records: many pieces of memory in one go, by one thread or by several.
//
// `CopyPieces` is the kernel; `CopyTeam` shares a job out among the thread that has it, helper threads of its own, and
// any thread that has nothing better to do than to wait for it. What is copied where is decided by the engine.
#pragma once

#include <signal.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <thread>
#include <vector>

namespace reprise {

struct Piece {
  std::byte* target;
  const std::byte* source;
  uint64_t bytes;
};

// How targets are written. kStream goes past the cache: right for memory that nobody reads soon (0.85 of the time of
// plain copies into random records). kCached is right for what is read next, and expects sources in random places.
enum class Store { kCached, kStream };

// Appends a copy to a job, cut into pieces that several threads can share.
void AddPieces(std::vector<Piece>& pieces, std::byte* target, const std::byte* source, uint64_t bytes);

// Copies all pieces, in order. Sources and targets must not overlap. What was written is visible to whoever
// synchronises with this thread afterwards. Thread-safe on disjoint targets.
void CopyPieces(std::span<const Piece> pieces, Store store);

// While it lives, new threads are born with all signals but faults blocked: those are for the program's own threads.
class SignalsBlocked {
 public:
  SignalsBlocked();
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;
  ~SignalsBlocked();

 private:
  sigset_t before_;
};

class CopyTeam {
 public:
  // helpers: threads of its own, which sleep between jobs. Throws std::system_error when the system refuses them.
  explicit CopyTeam(unsigned helpers);
  CopyTeam(const CopyTeam&) = delete;
  CopyTeam& operator=(const CopyTeam&) = delete;
  ~CopyTeam();

  // Copy all pieces and return when every byte is in place. One caller at a time.
  void Run(std::span<const Piece> pieces, Store store);

  // Copy along with a job that is running, if there is one; returns whether anything was left to copy. Any thread, at
  // any time.
  bool Help();

 private:
  void Stop();
  bool Work();
  void HelperLoop();

  // The job, valid while the gate is open. Written by Run alone, while the gate is shut and nobody is inside.
  const Piece* pieces_ = nullptr;
  size_t num_pieces_ = 0;
  size_t claim_ = 1;  // pieces that a thread takes at a time
  Store store_ = Store::kCached;
  std::atomic<size_t> next_{0};

  // kOpen, plus the number of threads inside besides the one in Run. Nobody enters a shut gate, and Run leaves only
  // when all others have: that is what keeps a late helper away from the next job's pieces.
  static constexpr uint32_t kOpen = 1u << 31;
  std::atomic<uint32_t> gate_{0};

  std::atomic<uint32_t> jobs_{0};  // large jobs so far; helpers sleep on it
  std::atomic<bool> stopping_{false};
  std::vector<std::jthread> helpers_;
};

}  // namespace reprise
