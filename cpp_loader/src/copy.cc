#include "copy.h"

#include <algorithm>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace reprise {
namespace {

constexpr uint64_t kCacheLine = 64;
// Below this a thread's claim is not worth the cache line it bounces.
constexpr uint64_t kClaimBytes = 16 << 10;
// A piece is what one thread copies at a time: small enough for the last ones to end together, whole lines.
constexpr uint64_t kPieceBytes = 64 << 10;
// Below this a sleeping helper would arrive after the end.
constexpr uint64_t kWakeBytes = 256 << 10;
// Streaming stores are flushed in whole lines; a short piece does not make up for its ragged ends.
constexpr uint64_t kStreamBytes = 1 << 10;

// Up to here the next record is requested while this one is copied, as the hardware cannot guess where it lies. Longer
// ones are copied at the speed of memory anyway.
constexpr uint64_t kPrefetchBytes = 32 << 10;
constexpr uint64_t kPrefetchChunk = 1 << 10;

// Copies `piece` and requests the first piece.bytes bytes of `next` meanwhile.
void CopyAndPrefetch(const Piece& piece, const Piece& next) {
  const uint64_t ahead = std::min(piece.bytes, next.bytes);
  for (uint64_t offset = 0; offset < piece.bytes; offset += kPrefetchChunk) {
    const uint64_t bytes = std::min(kPrefetchChunk, piece.bytes - offset);
    for (uint64_t at = offset; at < std::min(offset + bytes, ahead); at += kCacheLine) {
      __builtin_prefetch(next.source + at);
    }
    std::memcpy(piece.target + offset, piece.source + offset, bytes);
  }
}

#if defined(__x86_64__)

// Whole lines to a line-aligned target, past the cache.
__attribute__((target("avx2"))) void StreamLinesAvx2(std::byte* target, const std::byte* source, uint64_t lines) {
  for (uint64_t line = 0; line < lines; ++line) {
    const auto* from = reinterpret_cast<const __m256i*>(source + line * kCacheLine);
    auto* to = reinterpret_cast<__m256i*>(target + line * kCacheLine);
    const __m256i low = _mm256_loadu_si256(from);
    const __m256i high = _mm256_loadu_si256(from + 1);
    _mm256_stream_si256(to, low);
    _mm256_stream_si256(to + 1, high);
  }
}

void StreamLinesSse2(std::byte* target, const std::byte* source, uint64_t lines) {
  for (uint64_t line = 0; line < lines; ++line) {
    const auto* from = reinterpret_cast<const __m128i*>(source + line * kCacheLine);
    auto* to = reinterpret_cast<__m128i*>(target + line * kCacheLine);
    for (int part = 0; part < 4; ++part) _mm_stream_si128(to + part, _mm_loadu_si128(from + part));
  }
}

void StreamPiece(const Piece& piece) {
  static const auto stream_lines = __builtin_cpu_supports("avx2") ? StreamLinesAvx2 : StreamLinesSse2;
  const auto address = reinterpret_cast<uintptr_t>(piece.target);
  const uint64_t head = (kCacheLine - address % kCacheLine) % kCacheLine;
  const uint64_t lines = (piece.bytes - head) / kCacheLine;
  const uint64_t streamed = head + lines * kCacheLine;
  if (head) std::memcpy(piece.target, piece.source, head);
  stream_lines(piece.target + head, piece.source + head, lines);
  if (streamed < piece.bytes) std::memcpy(piece.target + streamed, piece.source + streamed, piece.bytes - streamed);
}

// Streaming stores are not ordered with others; whoever is told that the copy is done must find it done.
void Fence() { _mm_sfence(); }

#else

// No portable streaming store: the C library knows its machine.
void StreamPiece(const Piece& piece) { std::memcpy(piece.target, piece.source, piece.bytes); }
void Fence() {}

#endif

}  // namespace

SignalsBlocked::SignalsBlocked() {
  sigset_t blocked;
  sigfillset(&blocked);
  // What a thread does wrong itself must reach its handler.
  for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT}) sigdelset(&blocked, fault);
  pthread_sigmask(SIG_SETMASK, &blocked, &before_);
}

SignalsBlocked::~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

void AddPieces(std::vector<Piece>& pieces, std::byte* target, const std::byte* source, uint64_t bytes) {
  for (; bytes > kPieceBytes; bytes -= kPieceBytes, target += kPieceBytes, source += kPieceBytes) {
    pieces.push_back({target, source, kPieceBytes});
  }
  pieces.push_back({target, source, bytes});
}

void CopyPieces(std::span<const Piece> pieces, Store store) {
  for (size_t i = 0; i < pieces.size(); ++i) {
    const Piece& piece = pieces[i];
    if (store == Store::kStream && piece.bytes >= kStreamBytes) {
      StreamPiece(piece);
    } else if (store == Store::kCached && piece.bytes <= kPrefetchBytes && i + 1 < pieces.size()) {
      CopyAndPrefetch(piece, pieces[i + 1]);
    } else {
      std::memcpy(piece.target, piece.source, piece.bytes);
    }
  }
  if (store == Store::kStream) Fence();
}

CopyTeam::CopyTeam(unsigned helpers) {
  try {
    helpers_.reserve(helpers);
    const SignalsBlocked blocked;
    for (unsigned i = 0; i < helpers; ++i) helpers_.emplace_back([this] { HelperLoop(); });
  } catch (...) {
    Stop();  // no destructor runs, and the helpers that there are would be joined in their sleep
    throw;
  }
}

CopyTeam::~CopyTeam() { Stop(); }

void CopyTeam::Stop() {
  stopping_ = true;
  jobs_.fetch_add(1);
  jobs_.notify_all();
}

void CopyTeam::Run(std::span<const Piece> pieces, Store store) {
  if (pieces.empty()) return;
  uint64_t bytes = 0;
  for (const Piece& piece : pieces) bytes += piece.bytes;
  pieces_ = pieces.data();
  num_pieces_ = pieces.size();
  claim_ = std::max<uint64_t>(1, kClaimBytes * pieces.size() / std::max<uint64_t>(bytes, 1));
  store_ = store;
  next_.store(0, std::memory_order_relaxed);
  gate_.store(kOpen, std::memory_order_release);
  if (!helpers_.empty() && bytes >= kWakeBytes) {
    jobs_.fetch_add(1, std::memory_order_release);
    jobs_.notify_all();
  }
  Work();
  // Everything is claimed; those inside are at their last claim, so this is short.
  gate_.fetch_and(~kOpen, std::memory_order_acq_rel);
  for (uint32_t inside = gate_.load(std::memory_order_acquire); inside;
       inside = gate_.load(std::memory_order_acquire)) {
    gate_.wait(inside, std::memory_order_acquire);
  }
}

bool CopyTeam::Help() {
  uint32_t gate = gate_.load(std::memory_order_relaxed);
  do {
    if (!(gate & kOpen)) return false;
  } while (!gate_.compare_exchange_weak(gate, gate + 1, std::memory_order_acquire, std::memory_order_relaxed));
  const bool copied = Work();
  if (gate_.fetch_sub(1, std::memory_order_acq_rel) == 1) gate_.notify_all();
  return copied;
}

bool CopyTeam::Work() {
  const std::span<const Piece> pieces(pieces_, num_pieces_);
  for (bool copied = false;; copied = true) {
    const size_t first = next_.fetch_add(claim_, std::memory_order_relaxed);
    if (first >= pieces.size()) return copied;
    CopyPieces(pieces.subspan(first, std::min(claim_, pieces.size() - first)), store_);
  }
}

void CopyTeam::HelperLoop() {
  uint32_t seen = 0;
  while (!stopping_) {
    jobs_.wait(seen, std::memory_order_acquire);
    seen = jobs_.load(std::memory_order_acquire);
    Help();
  }
}

}  // namespace reprise
