#include "copy.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <system_error>
#include <thread>

namespace reprise {
namespace {

using Bytes = std::vector<std::byte>;

Bytes RandomBytes(std::mt19937_64& random, size_t size) {
  Bytes bytes(size);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random() >> 56);
  return bytes;
}

// Of any magnitude up to `most`.
uint64_t RandomSize(std::mt19937_64& random, uint64_t most) {
  return random() % (1 + (most >> random() % (1 + static_cast<unsigned>(std::bit_width(most)))));
}

// A copy of many parts of `source` into disjoint parts of `target`, and what must be there afterwards.
struct Job {
  std::vector<Piece> pieces;
  Bytes expected;

  Job(std::mt19937_64& random, const Bytes& source, Bytes& target, uint64_t longest, bool cut) : expected(target) {
    for (size_t at = random() % 3; at < target.size();) {
      const uint64_t bytes = std::min<uint64_t>(RandomSize(random, longest), target.size() - at);
      const size_t from = random() % (source.size() - bytes + 1);
      if (cut) {
        AddPieces(pieces, target.data() + at, source.data() + from, bytes);
      } else {
        pieces.push_back({target.data() + at, source.data() + from, bytes});
      }
      std::memcpy(expected.data() + at, source.data() + from, bytes);
      at += bytes + random() % 4;
    }
    std::shuffle(pieces.begin(), pieces.end(), random);
  }
};

TEST(AddPieces, CutsACopyIntoPartsThatFollowEachOther) {
  Bytes source(1 << 20), target(1 << 20);
  for (const uint64_t bytes : {0, 1, 4096, 65536, 65537, 200'000, 1 << 20}) {
    std::vector<Piece> pieces;
    AddPieces(pieces, target.data(), source.data(), bytes);
    uint64_t at = 0;
    for (const Piece& piece : pieces) {
      EXPECT_EQ(piece.target, target.data() + at);
      EXPECT_EQ(piece.source, source.data() + at);
      EXPECT_LE(piece.bytes, 65536u);
      at += piece.bytes;
    }
    EXPECT_EQ(at, bytes);
    EXPECT_GE(pieces.size(), (bytes + 65535) / 65536);
  }
}

TEST(CopyPieces, EqualsPlainCopiesOfAnySizeAndAlignmentAndTouchesNothingElse) {
  std::mt19937_64 random(1);
  const Bytes source = RandomBytes(random, 300'000);
  for (const Store store : {Store::kCached, Store::kStream}) {
    for (const uint64_t longest : {3, 40, 700, 3000, 40'000, 200'000}) {
      for (int repeat = 0; repeat < 8; ++repeat) {
        Bytes target = RandomBytes(random, 150'000 + random() % 64);
        const Job job(random, source, target, longest, repeat % 2);
        CopyPieces(job.pieces, store);
        ASSERT_TRUE(target == job.expected) << "pieces of up to " << longest << " bytes";
      }
    }
  }
}

TEST(CopyPieces, EveryAlignmentOfATargetAndEveryLengthOfItsEnd) {
  std::mt19937_64 random(2);
  const Bytes source = RandomBytes(random, 4096);
  for (size_t shift = 0; shift < 64; ++shift) {
    for (size_t bytes = 1000; bytes < 1200; bytes += 7) {
      Bytes target = RandomBytes(random, 2048), expected = target;
      std::memcpy(expected.data() + shift, source.data() + bytes % 13, bytes);
      CopyPieces(std::vector<Piece>{{target.data() + shift, source.data() + bytes % 13, bytes}}, Store::kStream);
      ASSERT_TRUE(target == expected) << bytes << " bytes at " << shift;
    }
  }
}

TEST(CopyPieces, LaterPiecesSeeWhatEarlierOnesWrote) {
  std::mt19937_64 random(3);
  for (const Store store : {Store::kCached, Store::kStream}) {
    for (const uint64_t bytes : {5, 2000, 60'000}) {
      Bytes chain = RandomBytes(random, bytes * 3);
      const std::vector<Piece> pieces = {{chain.data() + bytes, chain.data(), bytes},
                                         {chain.data() + 2 * bytes, chain.data() + bytes, bytes}};
      CopyPieces(pieces, store);
      EXPECT_EQ(std::memcmp(chain.data(), chain.data() + 2 * bytes, bytes), 0);
    }
  }
}

TEST(CopyTeam, HelpSaysWhetherThereWasAnythingToCopy) {
  CopyTeam team(0);
  EXPECT_FALSE(team.Help());
  Bytes source(100, std::byte{4}), target(100);
  team.Run(std::vector<Piece>{{target.data(), source.data(), 100}}, Store::kCached);
  EXPECT_EQ(target, source);
  EXPECT_FALSE(team.Help());
  team.Run({}, Store::kCached);
  EXPECT_FALSE(team.Help());
}

TEST(CopyTeam, IsCreatedAndDestroyedWithoutAJob) {
  for (unsigned helpers = 0; helpers < 4; ++helpers) {
    for (int repeat = 0; repeat < 50; ++repeat) EXPECT_FALSE(CopyTeam(helpers).Help());
  }
}

// A job's source and target change right after Run has returned: a late reader or writer would be found out.
TEST(CopyTeam, EveryByteIsInPlaceWhenRunReturnsWhoeverHelps) {
  std::mt19937_64 random(4);
  for (unsigned helpers = 0; helpers < 4; ++helpers) {
    CopyTeam team(helpers);
    std::atomic<bool> over{false};
    std::atomic<uint64_t> helped{0};
    std::vector<std::thread> outside;
    for (int i = 0; i < 2; ++i) {
      outside.emplace_back([&] {
        while (!over.load(std::memory_order_relaxed)) {
          if (team.Help()) helped.fetch_add(1, std::memory_order_relaxed);
          std::this_thread::yield();
        }
      });
    }
    Bytes source = RandomBytes(random, 100'000), target(1'000'000), expected(1'000'000);
    std::vector<Piece> pieces;
    for (int number = 0; number < 1500; ++number) {
      const bool is_large = number % 50 == 0;  // these wake the helpers
      const uint64_t longest = is_large ? 90'000 : 1 + random() % 3000;
      const size_t size = is_large ? 300'000 + random() % 600'000 : random() % 30'000;
      std::fill_n(target.begin(), size, std::byte{0});
      std::fill_n(expected.begin(), size, std::byte{0});
      pieces.clear();
      for (size_t at = 0; at < size;) {
        const uint64_t bytes = std::min<uint64_t>(1 + random() % longest, size - at);
        const size_t from = random() % (source.size() - bytes);
        AddPieces(pieces, target.data() + at, source.data() + from, bytes);
        std::memcpy(expected.data() + at, source.data() + from, bytes);
        at += bytes + random() % 5;
      }
      team.Run(pieces, number % 2 ? Store::kStream : Store::kCached);
      ASSERT_EQ(std::memcmp(target.data(), expected.data(), size), 0) << "job " << number << ", " << helpers;
      source[random() % source.size()] ^= std::byte{0xFF};
    }
    // On a busy machine the others may not have had a core yet.
    pieces.assign(1, {target.data(), source.data(), source.size()});
    while (!helped) team.Run(pieces, Store::kCached);
    over = true;
    for (std::thread& thread : outside) thread.join();
    EXPECT_FALSE(team.Help());
  }
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // they need all addresses for themselves

TEST(CopyTeam, WhenTheSystemRefusesAThreadTheOthersAreLetGo) {
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);
    const rlimit room{uint64_t{256} << 20, uint64_t{256} << 20};  // a few stacks
    setrlimit(RLIMIT_AS, &room);
    try {
      const CopyTeam team(1000);
    } catch (const std::system_error&) {
      _exit(0);
    }
    _exit(1);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_FALSE(WIFSIGNALED(status)) << "waits for its threads for ever";
  EXPECT_EQ(WEXITSTATUS(status), 0) << "a thousand threads within 256 MiB";
}

#endif

}  // namespace
}  // namespace reprise
