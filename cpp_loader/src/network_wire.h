// The messages between ranks (network.h), as they lie in memory on both ends. Flat; read by memcpy, as UCX aligns
// nothing.
#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>

#include "network.h"

namespace reprise::wire {

// Active message numbers, of the server's worker and of the client's, from 0 and without gaps.
inline constexpr unsigned kRequest = 0;
inline constexpr unsigned kTell = 1;
inline constexpr unsigned kReply = 0;

// A reply goes out in messages of so many bytes, so that gathering, sending and receiving overlap. On TCP one of this
// size is a single fragment of UCX's (at most 64 KiB), which is handed over without being assembled first.
inline constexpr uint64_t kMessageBytes = 60 << 10;

// Before the slots, one uint32_t each.
struct Request {
  uint64_t key;
  uint64_t id;    // of the request, on the client
  uint32_t rank;  // who asks
  uint32_t num_slots;
  News own;
};

// Before the news.
struct Tell {
  uint64_t key;
  uint32_t rank;  // who tells
  uint32_t num_news;
};

enum Status : uint32_t {
  kRecords,  // a part of the reply is in the message
  kMissing,  // a slot holds no sample
  kLeft,     // the rank has closed its buffer. With id 0: goodbye, unasked
  kFailed,   // its engine has failed. With id 0: likewise
};

// The header of a reply's every message; its data is the message's.
struct Reply {
  uint64_t key;
  uint64_t id;
  uint64_t offset;  // of the message's data in the reply
  uint32_t rank;    // who answers
  uint32_t status;
  News own;
};

template <typename T>
T Read(const void* from) {
  static_assert(std::is_trivially_copyable_v<T>);
  T value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

static_assert(sizeof(News) == 40 && sizeof(Request) == 64 && sizeof(Tell) == 16 && sizeof(Reply) == 72);
static_assert(sizeof(ReplyHead) == 24);

}  // namespace reprise::wire
