#include "shard.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <stdexcept>
#include <thread>
#include <vector>

#include "test_child.h"

namespace reprise {
namespace {

using std::chrono::hours;
using std::chrono::milliseconds;

const Layout kLayout(std::vector<uint64_t>{100, 4096});
constexpr uint32_t kShare = 1024;  // two pages of strata, with nothing between them and the records

// A shard as its owner has it, and as others see it.
struct Memory {
  Slab slab = Slab::Shared(Shard::Bytes(kLayout, kShare));
  Slab mapped = Slab::OfProcess(getpid(), slab.descriptor(), slab.size());
  Shard own{slab, kLayout, kShare};
  Shard seen{mapped, kLayout, kShare};
};

TEST(Shard, AZeroedSlabIsOneWithoutSamples) {
  const Memory memory;
  const Counters& counters = memory.seen.counters();
  EXPECT_EQ(memory.seen.share(), kShare);
  EXPECT_EQ(memory.seen.stride(), kLayout.stride());
  EXPECT_EQ(counters.fill().stored, 0u);
  EXPECT_EQ(counters.fill().mass, 0u);
  EXPECT_EQ(counters.inserted(), 0u);
  EXPECT_EQ(counters.fetched(), 0u);
  EXPECT_EQ(counters.token(), 0u);
  EXPECT_EQ(counters.state(), Counters::kOpen);
  for (const uint32_t slot : {0u, 1u, kShare - 1}) EXPECT_EQ(memory.seen.BeginRead(slot), 0u);
}

TEST(Shard, NoTwoPartsShareBytesAndAllLieInTheSlab) {
  const Memory memory;
  std::vector<Write> all;
  std::vector<StratumValue> strata;
  for (uint32_t slot = 0; slot < kShare; ++slot) {
    all.push_back({slot, slot});
    strata.push_back({slot, slot + 0.5});
  }
  Counters& counters = memory.own.counters();
  counters.SetToken(~uint64_t{0});
  counters.SetFill({~uint64_t{0} - 1, ~uint64_t{0} - 2});
  counters.SetInserted(~uint64_t{0} - 3);
  counters.SetFetched(~uint64_t{0} - 4);
  counters.SetState(Counters::kBroken);
  memory.own.BeginWrite(all);
  memory.own.SetStrata(strata);
  for (uint32_t slot = 0; slot < kShare; ++slot) {
    auto* const record = reinterpret_cast<std::byte*>(&memory.own.record(slot));
    ASSERT_GE(record, memory.slab.data());
    ASSERT_LE(record + kLayout.stride(), memory.slab.data() + memory.slab.size());
    std::fill(record + sizeof(uint32_t), record + kLayout.stride(), static_cast<std::byte>(slot % 250 + 1));
  }
  memory.own.EndWrite(all);

  const Counters& seen = memory.seen.counters();
  EXPECT_EQ(seen.token(), ~uint64_t{0});
  EXPECT_EQ(seen.fill().stored, ~uint64_t{0} - 1);
  EXPECT_EQ(seen.fill().mass, ~uint64_t{0} - 2);
  EXPECT_EQ(seen.inserted(), ~uint64_t{0} - 3);
  EXPECT_EQ(seen.fetched(), ~uint64_t{0} - 4);
  EXPECT_EQ(seen.state(), Counters::kBroken);
  for (uint32_t slot = 0; slot < kShare; ++slot) {
    ASSERT_EQ(memory.seen.BeginRead(slot), 2u);
    ASSERT_EQ(memory.seen.InverseInclusion(slot), slot + 0.5);
    const auto* const record = reinterpret_cast<const std::byte*>(&memory.seen.record(slot));
    ASSERT_TRUE(std::all_of(record + sizeof(uint32_t), record + kLayout.stride(),
                            [&](std::byte byte) { return byte == static_cast<std::byte>(slot % 250 + 1); }));
  }
}

TEST(Shard, AVersionIsOddWhileItsRecordIsWrittenAndAnotherAfterwards) {
  const Memory memory;
  const std::vector<Write> writes = {{0, 3}, {1, 0}, {2, kShare - 1}};
  for (uint32_t rewrite = 0; rewrite < 5; ++rewrite) {
    for (const auto& [row, slot] : writes) EXPECT_EQ(memory.seen.BeginRead(slot), 2 * rewrite);
    memory.own.BeginWrite(writes);
    for (const auto& [row, slot] : writes) {
      EXPECT_EQ(memory.seen.BeginRead(slot), 2 * rewrite + 1);
      EXPECT_FALSE(memory.seen.Unchanged(slot, 2 * rewrite));
    }
    memory.own.EndWrite(writes);
    for (const auto& [row, slot] : writes) {
      Shard::EndReads();
      EXPECT_FALSE(memory.seen.Unchanged(slot, 2 * rewrite));
      EXPECT_TRUE(memory.seen.Unchanged(slot, 2 * rewrite + 2));
    }
    EXPECT_EQ(memory.seen.BeginRead(1), 0u) << "a record that nobody wrote";
    EXPECT_TRUE(memory.seen.Unchanged(1, 0));
  }
}

TEST(Shard, AViewKeepsWhatIsThere) {
  const Memory memory;
  const std::vector<Write> writes = {{0, 7}};
  memory.own.BeginWrite(writes);
  memory.own.record(7).label = -5;
  memory.own.EndWrite(writes);
  memory.own.counters().SetFill({8, 90});
  const Shard again(memory.slab, kLayout, kShare);
  EXPECT_EQ(again.record(7).label, -5);
  EXPECT_EQ(again.BeginRead(7), 2u);
  EXPECT_EQ(again.counters().fill().mass, 90u);
}

TEST(Shard, StrataKeepTheirValueUntilTheyGetAnother) {
  const Memory memory;
  memory.own.SetStrata(std::vector<StratumValue>{{0, 1.5}, {kShare - 1, 1e9}});
  memory.own.SetStrata(std::vector<StratumValue>{{1, 2.25}});
  memory.own.SetStrata({});
  EXPECT_EQ(memory.seen.InverseInclusion(0), 1.5);
  EXPECT_EQ(memory.seen.InverseInclusion(1), 2.25);
  EXPECT_EQ(memory.seen.InverseInclusion(2), 0.0);
  EXPECT_EQ(memory.seen.InverseInclusion(kShare - 1), 1e9);
  memory.own.SetStrata(std::vector<StratumValue>{{0, 7}});
  EXPECT_EQ(memory.seen.InverseInclusion(0), 7.0);
}

// What a reader finds in a record that is being written may be anything.
TEST(Shard, AStratumThatCannotBeIsNotLookedUp) {
  const Memory memory;
  memory.own.record(0) = {~0u, ~0u, -1, -1};
  for (const uint32_t stratum : {kShare, kShare + 1, kShare + 2, 1u << 31, ~0u}) {
    EXPECT_EQ(memory.seen.InverseInclusion(stratum), 0.0) << stratum;
  }
}

TEST(Shard, BytesOfMoreThanAnyMachineAddressesAreRefused) {
  const Layout huge(std::vector<uint64_t>{uint64_t{1} << 40});
  EXPECT_THROW(Shard::Bytes(huge, 1 << 16), std::runtime_error);  // 2^56, and what goes with it
  EXPECT_THROW(Shard::Bytes(huge, 1 << 24), std::runtime_error);  // 0 modulo 2^64, almost
  EXPECT_THROW(Shard::Bytes(huge, ~0u), std::runtime_error);
  EXPECT_GT(Shard::Bytes(huge, 1 << 15), uint64_t{1} << 55);
  try {
    Shard::Bytes(huge, 1 << 24);
  } catch (const std::runtime_error& error) {
    EXPECT_NE(std::string(error.what()).find("16777216 samples of " + std::to_string(huge.stride()) + " bytes refused"),
              std::string::npos)
        << error.what();
  }
}

TEST(Shard, BytesAreThoseOfTheRecordsAndLittleMore) {
  for (const uint32_t share : {1u, 511u, 512u, 513u, 100'000u}) {
    EXPECT_GE(Shard::Bytes(kLayout, share), share * kLayout.stride() + share * sizeof(double) + sizeof(Counters));
    EXPECT_LE(Shard::Bytes(kLayout, share), share * kLayout.stride() + share * sizeof(double) + 3 * 4096);
  }
}

// A writer that rewrites two records as fast as it can, a reader that keeps what the versions say is whole.
TEST(Shard, WhatHasTheSameEvenVersionBeforeAndAfterIsWhole) {
  const Deadline deadline(150);
  const Memory memory;
  constexpr size_t kWords = 4096 / sizeof(uint64_t);
  const auto words = [](const Shard& shard, uint32_t slot) {
    return reinterpret_cast<uint64_t*>(reinterpret_cast<std::byte*>(&shard.record(slot)) + kLayout.field_offset(1));
  };
  std::atomic<bool> enough{false};
  std::thread writer([&] {
    const std::vector<Write> writes = {{0, 0}, {1, 1}};
    for (uint64_t round = 1; !enough.load(std::memory_order_relaxed); ++round) {
      memory.own.BeginWrite(writes);
      for (const auto& [row, slot] : writes) {
        std::fill_n(words(memory.own, slot), kWords, round * 2 + slot);
      }
      memory.own.EndWrite(writes);
      if (round % 16 == 0) std::this_thread::yield();
    }
  });
  uint64_t whole = 0, torn = 0, changes = 0, last = 0;
  std::array<uint64_t, kWords> copy;
  for (uint32_t tries = 0; whole < 20'000 || changes < 200; ++tries) {
    const uint32_t slot = tries % 2;
    const uint32_t version = memory.seen.BeginRead(slot);
    if (version % 2) continue;
    std::memcpy(copy.data(), words(memory.seen, slot), sizeof(copy));
    Shard::EndReads();
    if (!memory.seen.Unchanged(slot, version)) continue;
    ++whole;
    torn += std::any_of(copy.begin(), copy.end(), [&](uint64_t word) { return word != copy.front(); });
    if (version > 0) {
      torn += copy.front() % 2 != slot;
      torn += copy.front() / 2 != version / 2;
    }
    changes += copy.front() != last;
    last = copy.front();
  }
  enough = true;
  writer.join();
  EXPECT_EQ(torn, 0u);
}

TEST(Counters, BothNumbersOfAFillBelongTogetherWhileTheyAreWritten) {
  const Deadline deadline(150);
  const Memory memory;
  constexpr uint64_t kFactor = 1'000'003;
  std::atomic<bool> enough{false};
  std::thread writer([&] {
    for (uint64_t stored = 1; !enough.load(std::memory_order_relaxed); ++stored) {
      memory.own.counters().SetFill({stored, stored * kFactor});
      // Long enough for a reader to find the two at rest.
      if (stored % 8 == 0) std::this_thread::yield();
    }
  });
  uint64_t mixed = 0, backwards = 0, last = 0, different = 0;
  for (int look = 0; look < 2'000'000 || different < 20'000; ++look) {
    // The thread sanitizer knows what happens in one mapping, the rest comes from another.
    const Fill fill = (look % 2 ? memory.own : memory.seen).counters().fill();
    mixed += fill.mass != fill.stored * kFactor;
    backwards += fill.stored < last;
    different += fill.stored != last;
    last = fill.stored;
  }
  enough = true;
  writer.join();
  EXPECT_EQ(mixed, 0u);
  EXPECT_EQ(backwards, 0u);
}

// An owner that was killed before it said that its new numbers hold.
TEST(Counters, AFillThatIsNeverFinishedIsNotRead) {
  const Deadline deadline(60);
  const Memory memory;
  auto* const words = reinterpret_cast<std::atomic<uint64_t>*>(&memory.own.counters());
  memory.own.counters().SetFill({5, 50});
  const uint64_t version = words[0];
  words[1 + 2 * ((version + 1) % 2)] = 6;
  EXPECT_EQ(memory.seen.counters().fill().stored, 5u);
  EXPECT_EQ(memory.seen.counters().fill().mass, 50u);
  words[2 + 2 * ((version + 1) % 2)] = 60;
  words[0] = version + 1;
  EXPECT_EQ(memory.seen.counters().fill().stored, 6u);
  EXPECT_EQ(memory.seen.counters().fill().mass, 60u);
}

TEST(Counters, AwaitReturnsAtOnceWhenTheCounterHasChangedBefore) {
  const Deadline deadline(60);
  const Memory memory;
  memory.own.counters().SetInserted(4);
  memory.own.counters().SetFetched(3);
  memory.seen.counters().AwaitInserted(3, hours(1));
  memory.seen.counters().AwaitFetched(2, hours(1));
}

TEST(Counters, AwaitReturnsAtTheTimeLimitWhenNothingHappens) {
  const Deadline deadline(60);
  const Memory memory;
  memory.own.counters().SetInserted(4);
  const auto start = std::chrono::steady_clock::now();
  memory.seen.counters().AwaitInserted(4, milliseconds(30));
  memory.seen.counters().AwaitFetched(0, milliseconds(30));
  EXPECT_GE(std::chrono::steady_clock::now() - start, milliseconds(60));
}

// Each side waits for the other's counter: a wake-up that gets lost is a hang.
void TakeTurns(const Counters& other, Counters& own, uint64_t first, bool begins) {
  constexpr uint64_t kTurns = 300;
  for (uint64_t turn = first; turn < first + kTurns; ++turn) {
    if (begins) own.SetInserted(turn);
    for (uint64_t seen; (seen = begins ? other.fetched() : other.inserted()) < turn;) {
      begins ? other.AwaitFetched(seen, hours(1)) : other.AwaitInserted(seen, hours(1));
    }
    if (!begins) own.SetFetched(turn);
  }
}

TEST(Counters, WakeAReaderInAnotherProcessThatMayNotWrite) {
  const Deadline deadline(100);
  const Memory memory;
  Child child([&](const Link& parent) {
    // Mapped anew, from the owner's process.
    const Slab mapped = Slab::OfProcess(getppid(), memory.slab.descriptor(), memory.slab.size());
    const Slab own_slab = Slab::Shared(Shard::Bytes(kLayout, kShare));
    parent.Send(own_slab.descriptor());
    TakeTurns(Shard(mapped, kLayout, kShare).counters(), Shard(own_slab, kLayout, kShare).counters(), 1, false);
    parent.Receive<bool>();
  });
  const Slab of_child = Slab::OfProcess(child.number(), child.link().Receive<int>(), memory.slab.size());
  TakeTurns(Shard(of_child, kLayout, kShare).counters(), memory.own.counters(), 1, true);
  child.link().Send(true);
  EXPECT_EQ(child.Collect(), 0);
}

TEST(Counters, WakeAReaderInThisProcess) {
  const Deadline deadline(100);
  const Memory first, second;
  std::thread other([&] { TakeTurns(first.seen.counters(), second.own.counters(), 1, false); });
  TakeTurns(second.seen.counters(), first.own.counters(), 1, true);
  other.join();
}

TEST(Counters, AStateWakesThoseWhoWaitForEitherCounter) {
  const Deadline deadline(100);
  for (const bool of_inserted : {true, false}) {
    const Memory memory;
    std::atomic<bool> returned{false};
    std::thread waiter([&] {
      if (of_inserted) {
        memory.seen.counters().AwaitInserted(0, hours(1));
      } else {
        memory.seen.counters().AwaitFetched(0, hours(1));
      }
      EXPECT_EQ(memory.seen.counters().state(), Counters::kClosed);
      returned = true;
    });
    // A waiter that is not asleep yet misses the call, hence again and again.
    while (!returned) {
      memory.own.counters().SetState(Counters::kClosed);
      std::this_thread::sleep_for(milliseconds(1));
    }
    waiter.join();
  }
}

}  // namespace
}  // namespace reprise
