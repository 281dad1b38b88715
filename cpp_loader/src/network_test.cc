// Ranks that ask each other over TCP on the loopback interface, or read each other's memory there, which UCX emulates:
// several in this process, and some in processes of their own, to be stopped and killed. Needs a libucp at run time:
// REPRISE_UCX_LIBRARY, else what the loader finds.
#include "network.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <fstream>
#include <list>
#include <map>
#include <random>
#include <set>
#include <sstream>
#include <thread>

#include "network_news.h"
#include "network_reads.h"
#include "network_wire.h"
#include "test_samples.h"
#include "ucx.h"

// The leak checker stops all threads when a process ends, and crashes now and then over those of UCX.
static bool ucx_was_used = false;
extern "C" __attribute__((visibility("default"))) int __lsan_is_turned_off() { return ucx_was_used; }

namespace reprise {
namespace {

using namespace std::chrono_literals;

TEST(NewsBoard, OnlyMovesForward) {
  NewsBoard board(0, 3);
  board.Learn({1, Counters::kOpen, {10, 100}, 5, 4});
  board.Learn({1, Counters::kOpen, {3, 30}, 4, 3});
  EXPECT_EQ(board.counters(1).fill().stored, 10u);
  EXPECT_EQ(board.counters(1).fill().mass, 100u);
  EXPECT_EQ(board.counters(1).inserted(), 5u);
  EXPECT_EQ(board.counters(1).fetched(), 4u);
  board.Learn({1, Counters::kOpen, {12, 120}, 5, 6});
  EXPECT_EQ(board.counters(1).fill().stored, 12u);
  EXPECT_EQ(board.counters(1).fetched(), 6u);
  board.Learn({1, Counters::kClosed, {12, 120}, 5, 6});
  board.Learn({1, Counters::kOpen, {12, 120}, 5, 6});
  EXPECT_EQ(board.counters(1).state(), Counters::kClosed);
}

TEST(NewsBoard, KnowsNothingOfItselfOrOfRanksThatThereAreNot) {
  NewsBoard board(0, 2);
  board.Learn({0, Counters::kBroken, {1, 1}, 1, 1});
  board.Learn({2, Counters::kBroken, {1, 1}, 1, 1});
  board.Learn({~0u, Counters::kBroken, {1, 1}, 1, 1});
  EXPECT_EQ(board.counters(0).inserted(), 0u);
  EXPECT_EQ(board.counters(0).state(), Counters::kOpen);
  EXPECT_TRUE(board.Take().empty());
}

TEST(NewsBoard, NamesEachRankWithNewsOnce) {
  NewsBoard board(0, 4);
  board.Learn({2, Counters::kOpen, {1, 1}, 1, 0});
  board.Learn({2, Counters::kOpen, {2, 2}, 2, 1});
  board.Learn({1, Counters::kOpen, {0, 0}, 0, 1});
  EXPECT_EQ(board.Take(), (std::vector<uint32_t>{2, 1}));
  board.Learn({2, Counters::kOpen, {2, 2}, 2, 1});
  EXPECT_TRUE(board.Take().empty());
}

TEST(NewsBoard, KeepsTheFirstReason) {
  NewsBoard board(0, 3);
  board.Fail(1, Counters::kBroken, "first");
  board.Fail(1, Counters::kBroken, "second");
  EXPECT_EQ(board.failed(1), "first");
  EXPECT_EQ(board.counters(1).state(), Counters::kBroken);
  EXPECT_EQ(board.Take(), std::vector<uint32_t>{1});
  board.Learn({2, Counters::kClosed, {}, 0, 0});
  EXPECT_EQ(board.failed(2), "");
  board.Fail(2, Counters::kBroken, "the connection is broken");
  EXPECT_EQ(board.failed(2), "closed");
}

TEST(NewsBoard, ARankInDoubtHasLeftIfItsGoodbyeComes) {
  NewsBoard board(0, 4);
  const auto now = NewsBoard::Clock::now();
  for (const uint32_t rank : {1u, 2u, 3u}) {
    board.Doubt(rank, "the connection is broken");
    EXPECT_TRUE(board.has_failed(rank));
    EXPECT_EQ(board.counters(rank).state(), Counters::kOpen);
  }
  EXPECT_TRUE(board.Take().empty());
  board.Learn({1, Counters::kClosed, {}, 0, 0});
  board.Fail(2, Counters::kClosed, "closed");
  for (const uint32_t rank : {1u, 2u}) {
    EXPECT_EQ(board.failed(rank), "closed");
    EXPECT_EQ(board.counters(rank).state(), Counters::kClosed);
  }
  const auto judge = board.Judge(now);
  EXPECT_GT(judge, now);
  EXPECT_EQ(board.counters(3).state(), Counters::kOpen);
  EXPECT_TRUE(board.any_in_doubt());
  EXPECT_EQ(board.Judge(judge), NewsBoard::Clock::time_point::max());
  EXPECT_FALSE(board.any_in_doubt());
  EXPECT_EQ(board.counters(3).state(), Counters::kBroken);
  EXPECT_EQ(board.failed(3), "the connection is broken");
  board.Doubt(3, "again");
  EXPECT_FALSE(board.any_in_doubt());
  EXPECT_EQ(board.Take(), (std::vector<uint32_t>{1, 2, 3}));
}

#if defined(REPRISE_HAVE_UCX)

constexpr uint64_t kKey = 0x5EC2E7;

std::string Library() {
  ucx_was_used = true;
  const char* const library = std::getenv("REPRISE_UCX_LIBRARY");
  return library ? library : UCX_LIBRARY;
}

// A rank with samples: slot i of rank r holds sample r * 1,000 + i, unless it is overwritten.
struct Rank {
  static inline Reads reads = Reads::kAuto;  // of all that are made

  Rank(uint32_t rank, uint32_t world_size, std::vector<uint64_t> field_bytes, uint32_t share,
       std::chrono::nanoseconds limit = 30s)
      : samples(field_bytes),
        layout(field_bytes),
        slab(Slab::Anonymous(Shard::Bytes(layout, share))),
        shard(slab, layout, share) {
    for (uint32_t slot = 0; slot < share; ++slot) Store(slot, Number(rank, slot));
    shard.counters().SetFill({share, share});
    shard.counters().SetToken(kKey + rank);
    NetworkOptions options;
    options.library = Library();
    options.devices = "lo";
    options.transports = "tcp,self";
    options.rank = rank;
    options.world_size = world_size;
    options.key = kKey;
    options.limit = limit;
    options.reads = reads;
    number = rank;
    network = std::make_unique<Network>(options, layout, shard);
  }

  static uint64_t Number(uint32_t rank, uint32_t slot) { return rank * 1000 + slot; }

  void Store(uint32_t slot, uint64_t sample) {
    const Write write{0, slot};
    shard.SetStrata(std::vector<StratumValue>{{slot, static_cast<double>(slot) + 0.5}});
    shard.BeginWrite({&write, 1});
    Fill(slot, sample);
    shard.EndWrite({&write, 1});
  }
  void Fill(uint32_t slot, uint64_t sample) {
    RecordHeader& record = shard.record(slot);
    record.label = Samples::Label(sample);
    record.task = Samples::Task(sample);
    record.stratum = slot;
    for (size_t field = 0; field < layout.num_fields(); ++field) {
      samples.Write(sample, field, reinterpret_cast<std::byte*>(&record) + layout.field_offset(field));
    }
  }
  News news() const { return NewsOf(number, shard.counters()); }

  uint32_t number = 0;
  Samples samples;
  Layout layout;
  Slab slab;
  Shard shard;
  std::unique_ptr<Network> network;
};

void Introduce(std::vector<Rank*> ranks) {
  for (Rank* a : ranks) {
    for (Rank* b : ranks) {
      if (a != b) a->network->Connect(b->number, b->network->address());
    }
  }
}

// Where the reply to one request goes, with bytes around it that must stay.
class Rows {
 public:
  Rows(const Rank& rank, std::vector<uint32_t> slots) : rank_(rank), slots_(std::move(slots)) {
    heads_.resize(slots_.size());
    targets_.push_back({reinterpret_cast<std::byte*>(heads_.data()), heads_.size() * sizeof(ReplyHead)});
    for (size_t i = 0; i < slots_.size(); ++i) {
      for (const uint64_t bytes : rank.samples.field_bytes()) {
        memory_.emplace_back(bytes + 2 * kGuard, kUntouched);
        targets_.push_back({memory_.back().data() + kGuard, bytes});
      }
    }
  }

  std::span<const uint32_t> slots() const { return slots_; }
  std::span<const Network::Target> targets() const { return targets_; }
  const ReplyHead& head(size_t i) const { return heads_[i]; }
  uint64_t number(size_t i) const { return Samples::NumberOf(field(i, 0)); }

  // Whether row i is one sample, whole, with its own label, task and weight.
  bool Whole(size_t i) const {
    const uint64_t sample = number(i);
    for (size_t f = 0; f < rank_.layout.num_fields(); ++f) {
      if (!rank_.samples.Is(sample, f, field(i, f))) return false;
    }
    return heads_[i].label == Samples::Label(sample) && heads_[i].task == Samples::Task(sample) &&
           heads_[i].inverse_inclusion == static_cast<double>(slots_[i]) + 0.5;
  }
  bool AreAsStoredBy(uint32_t rank) const {
    for (size_t i = 0; i < slots_.size(); ++i) {
      if (!Whole(i) || number(i) != Rank::Number(rank, slots_[i])) return false;
    }
    return Framed();
  }
  bool Framed() const {
    for (const auto& memory : memory_) {
      for (uint64_t at = 0; at < kGuard; ++at) {
        if (memory[at] != kUntouched || memory[memory.size() - 1 - at] != kUntouched) return false;
      }
    }
    return true;
  }
  bool Untouched() const {
    for (const auto& memory : memory_) {
      if (std::any_of(memory.begin(), memory.end(), [](std::byte byte) { return byte != kUntouched; })) return false;
    }
    return true;
  }

 private:
  static constexpr uint64_t kGuard = 16;
  static constexpr std::byte kUntouched{0xA5};

  const std::byte* field(size_t i, size_t f) const { return targets_[1 + i * rank_.layout.num_fields() + f].begin; }

  const Rank& rank_;
  std::vector<uint32_t> slots_;
  std::vector<ReplyHead> heads_;
  std::vector<std::vector<std::byte>> memory_;
  std::vector<Network::Target> targets_;
};

std::vector<uint32_t> Some(uint32_t count, uint32_t below, std::mt19937& random) {
  std::vector<uint32_t> slots(count);
  for (uint32_t& slot : slots) slot = random() % below;
  return slots;
}

bool Ask(Rank& asker, uint32_t rank, Rows& rows) {
  asker.network->Request(rank, rows.slots(), rows.targets(), asker.news());
  return asker.network->Finish();
}

bool Ask(Rank& asker, uint32_t rank) {
  Rows rows(asker, {0});
  return Ask(asker, rank, rows) && rows.AreAsStoredBy(rank);
}

// A rank in a process of its own, which is this program once more: UCX does not survive a fork.
class OtherProcess {
 public:
  static constexpr int kIn = 100, kOut = 101;  // its pipes from and to here

  // told: the stamp that it tells everybody it is introduced to; 0: nothing.
  OtherProcess(uint32_t rank, uint32_t world_size, uint64_t field_bytes, uint32_t share, uint64_t told = 0)
      : rank_(rank) {
    int in[2], out[2];
    if (pipe2(in, O_CLOEXEC) || pipe2(out, O_CLOEXEC)) throw std::runtime_error("no pipes");
    std::ostringstream what;
    what << rank << ' ' << world_size << ' ' << field_bytes << ' ' << share << ' ' << told << ' '
         << static_cast<int>(Rank::reads);
    const std::string arguments = what.str();
    process_ = fork();
    if (process_ < 0) throw std::runtime_error("no process");
    if (process_ == 0) {
      dup2(open("/dev/null", O_WRONLY), STDOUT_FILENO);
      dup2(in[0], kIn);
      dup2(out[1], kOut);
      setenv("REPRISE_NETWORK_TEST_RANK", arguments.c_str(), 1);
      execl("/proc/self/exe", "network_test", "--gtest_filter=NetworkProcess.DISABLED_Serves",
            "--gtest_also_run_disabled_tests", "--gtest_brief=1", nullptr);
      _exit(127);
    }
    close(in[0]);
    close(out[1]);
    to_ = in[1];
    from_ = out[0];
    address_ = Receive(from_);
  }
  OtherProcess(const OtherProcess&) = delete;
  OtherProcess& operator=(const OtherProcess&) = delete;
  ~OtherProcess() {
    close(to_);
    close(from_);
    Kill(SIGKILL);
    Reap();
  }

  void Introduce(Rank& other) {
    other.network->Connect(rank_, address_);
    Send(to_,
         std::string(reinterpret_cast<const char*>(&other.number), sizeof(other.number)) + other.network->address());
  }
  void Kill(int signal) {
    if (process_ > 0) kill(process_, signal);  // -1 would be everybody
  }
  // When this returns, it does nothing any more.
  void Stop() {
    Kill(SIGSTOP);
    int status = 0;
    waitpid(process_, &status, WUNTRACED);
  }
  // Returns what waitpid says.
  int Reap() {
    int status = 0;
    if (process_ > 0) waitpid(std::exchange(process_, -1), &status, 0);
    return status;
  }
  // Let it leave in order.
  int Leave() {
    close(std::exchange(to_, -1));
    return Reap();
  }

  static void Send(int descriptor, const std::string& text) {
    const auto bytes = static_cast<uint32_t>(text.size());
    const std::string all = std::string(reinterpret_cast<const char*>(&bytes), sizeof(bytes)) + text;
    if (write(descriptor, all.data(), all.size()) != static_cast<ssize_t>(all.size())) throw std::runtime_error("pipe");
  }
  // Empty at the end.
  static std::string Receive(int descriptor) {
    uint32_t bytes = 0;
    if (read(descriptor, &bytes, sizeof(bytes)) != sizeof(bytes)) return "";
    std::string text(bytes, 0);
    for (size_t at = 0; at < bytes;) {
      const ssize_t some = read(descriptor, text.data() + at, bytes - at);
      if (some <= 0) return "";
      at += static_cast<size_t>(some);
    }
    return text;
  }

 private:
  uint32_t rank_;
  pid_t process_ = -1;
  int to_ = -1, from_ = -1;
  std::string address_;
};

// Not a test: what OtherProcess runs.
TEST(NetworkProcess, DISABLED_Serves) {
  const char* const arguments = std::getenv("REPRISE_NETWORK_TEST_RANK");
  if (!arguments) GTEST_SKIP() << "only run by the other tests";
  std::istringstream stream(arguments);
  uint32_t rank, world_size, share;
  uint64_t field_bytes, told;
  int reads;
  ASSERT_TRUE(stream >> rank >> world_size >> field_bytes >> share >> told >> reads);
  Rank::reads = static_cast<Reads>(reads);
  Rank self(rank, world_size, {field_bytes}, share);
  OtherProcess::Send(OtherProcess::kOut, self.network->address());
  for (std::string line = OtherProcess::Receive(OtherProcess::kIn); !line.empty();
       line = OtherProcess::Receive(OtherProcess::kIn)) {
    const auto other = wire::Read<uint32_t>(line.data());
    self.network->Connect(other, line.substr(sizeof(other)));
    if (!told) continue;
    self.shard.counters().SetInserted(told);
    const News news = self.news();
    self.network->Tell(other, {&news, 1});
  }
}

class NetworkTest : public testing::TestWithParam<Reads> {
 protected:
  void SetUp() override {
    Rank::reads = GetParam();
#if defined(__SANITIZE_THREAD__)
    setenv("UCX_MEM_EVENTS", "n", 0);  // or UCX calls the sanitizer from threads that it has forgotten already
#endif
    try {
      const UcxLibrary library(Library());
      RecordProperty("ucx", library.version());
    } catch (const std::runtime_error& error) {
      GTEST_SKIP() << error.what();
    }
  }

  static bool Gets() { return GetParam() == Reads::kGet; }

  // In some builds of 1.13 an assertion ends the process when another one leaves while they are still introducing
  // themselves (https://github.com/openucx/ucx/pull/8175), as strangers do.
  static bool StrangersAreSafe() { return UcxLibrary(Library()).version().rfind("1.13.", 0) != 0; }

  std::mt19937 random_{7};
};

INSTANTIATE_TEST_SUITE_P(Ways, NetworkTest, testing::Values(Reads::kAuto, Reads::kGet),
                         [](const auto& info) { return info.param == Reads::kGet ? "Gets" : "Requests"; });

TEST_P(NetworkTest, BringsWhatIsStored) {
  for (const std::vector<uint64_t>& fields :
       std::vector<std::vector<uint64_t>>{{8}, {12288}, {3072, 400, 11}, {602112}, {200000, 8}}) {
    Rank a(0, 2, fields, 20), b(1, 2, fields, 20);
    Introduce({&a, &b});
    for (const uint32_t count : {1u, 2u, 7u, 16u, 20u, 64u}) {
      Rows rows(a, Some(count, 20, random_));
      ASSERT_TRUE(Ask(a, 1, rows)) << a.network->failed(1);
      EXPECT_TRUE(rows.AreAsStoredBy(1)) << fields[0] << " bytes, " << count << " samples";
    }
  }
}

TEST_P(NetworkTest, ManyRequests) {
  Rank a(0, 2, {12288}, 50), b(1, 2, {12288}, 50);
  Introduce({&a, &b});
  for (int i = 0; i < Often(3000); ++i) {
    Rows rows(a, Some(1 + random_() % 16, 50, random_));
    ASSERT_TRUE(Ask(a, 1, rows));
    ASSERT_TRUE(rows.AreAsStoredBy(1));
  }
  EXPECT_EQ(a.network->failed(1), "");
}

TEST_P(NetworkTest, AsksSeveralRanksAtOnceAndIsAskedMeanwhile) {
  constexpr uint32_t kRanks = 4, kShare = 12;
  std::vector<std::unique_ptr<Rank>> ranks;
  std::vector<Rank*> all;
  for (uint32_t rank = 0; rank < kRanks; ++rank) {
    ranks.push_back(std::make_unique<Rank>(rank, kRanks, std::vector<uint64_t>{40000, 16}, kShare));
    all.push_back(ranks.back().get());
  }
  Introduce(all);
  std::atomic<int> good{0};
  std::vector<std::thread> threads;
  constexpr int kSteps = Often(150);
  for (Rank* rank : all) {
    threads.emplace_back([&, rank] {
      std::mt19937 random(rank->number);
      for (int step = 0; step < kSteps; ++step) {
        std::map<uint32_t, Rows> rows;
        for (uint32_t other = 0; other < kRanks; ++other) {
          if (other == rank->number) continue;
          const Rows& asked = rows.try_emplace(other, *rank, Some(1 + random() % 20, kShare, random)).first->second;
          rank->network->Request(other, asked.slots(), asked.targets(), rank->news());
        }
        if (!rank->network->Finish()) continue;
        bool whole = true;
        for (const auto& [other, asked] : rows) whole &= asked.AreAsStoredBy(other);
        good += whole;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(good, static_cast<int>(kRanks) * kSteps);
}

TEST_P(NetworkTest, TwoRequestsToOneRankAreBothAnswered) {
  Rank a(0, 2, {600000}, 5), b(1, 2, {600000}, 5);
  Introduce({&a, &b});
  Rows first(a, {1, 2}), second(a, {4});
  a.network->Request(1, first.slots(), first.targets(), a.news());
  a.network->Request(1, second.slots(), second.targets(), a.news());
  ASSERT_TRUE(a.network->Finish());
  EXPECT_TRUE(first.AreAsStoredBy(1));
  EXPECT_TRUE(second.AreAsStoredBy(1));
}

TEST_P(NetworkTest, ARequestMayComeBeforeTheAskerIsKnown) {
  Rank a(0, 2, {100}, 5), b(1, 2, {100}, 5);
  a.network->Connect(1, b.network->address());
  Rows rows(a, {3});
  a.network->Request(1, rows.slots(), rows.targets(), a.news());
  std::thread late([&] {
    // The request has arrived when its news have.
    a.shard.counters().SetInserted(1);
    const News news = a.news();
    a.network->Tell(1, {&news, 1});
    while (b.network->counters(0).inserted() == 0) b.network->counters(0).AwaitInserted(0, 10ms);
    b.network->Connect(0, a.network->address());
  });
  late.join();
  EXPECT_TRUE(a.network->Finish());
  EXPECT_TRUE(rows.AreAsStoredBy(1));
}

TEST_P(NetworkTest, RefusesWhatCannotBe) {
  Rank a(0, 2, {100}, 5), b(1, 2, {100}, 5);
  EXPECT_THROW(a.network->Connect(2, b.network->address()), std::invalid_argument);
  EXPECT_THROW(a.network->Connect(1, ""), std::invalid_argument);
  EXPECT_THROW(a.network->Connect(1, b.network->address().substr(0, 8)), std::invalid_argument);
  Rows rows(a, {1});
  EXPECT_THROW(a.network->Request(1, rows.slots(), rows.targets(), a.news()), std::invalid_argument);  // no address
  Introduce({&a, &b});
  EXPECT_THROW(a.network->Request(1, rows.slots(), rows.targets().first(1), a.news()), std::invalid_argument);
  EXPECT_THROW(a.network->Request(0, rows.slots(), rows.targets(), a.news()), std::invalid_argument);
  EXPECT_TRUE(Ask(a, 1));
}

TEST_P(NetworkTest, SaysWhyItCannotStart) {
  const auto reason = [](NetworkOptions options) -> std::string {
    const std::vector<uint64_t> fields{8};
    const Layout layout(fields);
    const Slab slab = Slab::Anonymous(Shard::Bytes(layout, 1));
    const Shard shard(slab, layout, 1);
    try {
      const Network network(std::move(options), layout, shard);
    } catch (const std::runtime_error& error) {
      return error.what();
    }
    return "";
  };
  NetworkOptions options;
  options.library = "libno-such-ucx.so";
  EXPECT_NE(reason(options).find("libno-such-ucx.so"), std::string::npos) << reason(options);
  options.library = "libm.so.6";
  EXPECT_NE(reason(options).find("ucp_get_version"), std::string::npos) << reason(options);
  options.library = Library();
  options.devices = "nosuch0";
  options.transports = "tcp";
  EXPECT_NE(reason(options).find("nosuch0"), std::string::npos) << reason(options);
  EXPECT_EQ(reason(options).find('\n'), std::string::npos);
}

TEST_P(NetworkTest, DescribesWhatItUses) {
  Rank a(0, 3, {100}, 5), b(1, 3, {100}, 5);
  Introduce({&a, &b});
  EXPECT_EQ(a.network->describe().find("rank"), std::string::npos) << a.network->describe();
  ASSERT_TRUE(Ask(a, 1));
  EXPECT_NE(a.network->describe().find("UCX 1."), std::string::npos) << a.network->describe();
  const std::string how = Gets() ? "rank 1: tcp/lo, its memory is read" : "rank 1: tcp/lo";
  EXPECT_TRUE(a.network->describe().ends_with(how)) << a.network->describe();
}

TEST_P(NetworkTest, CountsTraffic) {
  Rank a(0, 2, {100000}, 5), b(1, 2, {100000}, 5);
  Introduce({&a, &b});
  ASSERT_TRUE(Ask(a, 1));
  const Network::Traffic asked = a.network->traffic(), answered = b.network->traffic();
  if (Gets()) {
    // It has told its news, and read counters and version twice, then counters, header, weight and field.
    EXPECT_EQ(asked.messages_sent, 1u + 2 + 4 + 2);
    EXPECT_EQ(asked.bytes_sent, sizeof(wire::Tell) + sizeof(News));
    EXPECT_EQ(asked.bytes_received, 3 * sizeof(Counters) + 2 * 8 + sizeof(RecordHeader) + sizeof(double) + 100000);
    EXPECT_EQ(answered.messages_sent, 0u);
    return;
  }
  EXPECT_EQ(asked.messages_sent, 1u);
  EXPECT_EQ(asked.bytes_sent, sizeof(wire::Request) + sizeof(uint32_t));
  EXPECT_EQ(answered.bytes_received, asked.bytes_sent);
  EXPECT_EQ(answered.messages_sent, 2u);
  EXPECT_EQ(answered.bytes_sent, 100000 + sizeof(ReplyHead) + 2 * sizeof(wire::Reply));
  EXPECT_EQ(asked.bytes_received, answered.bytes_sent);
}

// ---- news

TEST_P(NetworkTest, ToldNewsWakeThoseWhoWait) {
  Rank a(0, 3, {100}, 5), b(1, 3, {100}, 5);
  Introduce({&a, &b});
  std::atomic<bool> woken{false};
  std::thread waiting([&] {
    while (b.network->counters(0).inserted() < 9) b.network->counters(0).AwaitInserted(0, 60s);
    woken = true;
  });
  a.shard.counters().SetFill({4, 44});
  a.shard.counters().SetFetched(8);
  a.shard.counters().SetInserted(9);
  const News news[] = {a.news(), {2, Counters::kOpen, {3, 33}, 7, 6}};
  a.network->Tell(1, news);
  waiting.join();
  EXPECT_TRUE(woken);
  while (b.network->counters(0).fetched() == 0) std::this_thread::sleep_for(1ms);
  EXPECT_EQ(b.network->counters(0).fill().stored, 4u);
  EXPECT_EQ(b.network->counters(0).fill().mass, 44u);
  EXPECT_EQ(b.network->counters(0).fetched(), 8u);
  while (b.network->counters(2).inserted() == 0) std::this_thread::sleep_for(1ms);
  EXPECT_EQ(b.network->counters(2).inserted(), 7u);
  std::vector<uint32_t> fresh = b.network->TakeNews();
  std::sort(fresh.begin(), fresh.end());
  EXPECT_EQ(fresh, (std::vector<uint32_t>{0, 2}));
}

TEST_P(NetworkTest, RequestAndReplyCarryNews) {
  Rank a(0, 2, {100}, 5), b(1, 2, {100}, 5);
  Introduce({&a, &b});
  a.shard.counters().SetInserted(3);
  b.shard.counters().SetFill({2, 20});
  b.shard.counters().SetInserted(5);
  ASSERT_TRUE(Ask(a, 1));
  EXPECT_EQ(a.network->counters(1).inserted(), 5u);
  EXPECT_EQ(a.network->counters(1).fill().stored, 2u);
  while (Gets() && b.network->counters(0).inserted() == 0) b.network->counters(0).AwaitInserted(0, 10ms);
  EXPECT_EQ(b.network->counters(0).inserted(), 3u);
  Rows none(a, {});
  b.shard.counters().SetInserted(6);
  ASSERT_TRUE(Ask(a, 1, none));
  EXPECT_EQ(a.network->counters(1).inserted(), 6u);
}

TEST_P(NetworkTest, ManyToldNewsAllArrive) {
  Rank a(0, 2, {100}, 5), b(1, 2, {100}, 5);
  Introduce({&a, &b});
  for (uint64_t stamp = 1; stamp <= 20'000; ++stamp) {
    a.shard.counters().SetInserted(stamp);
    const News news = a.news();
    a.network->Tell(1, {&news, 1});
  }
  while (b.network->counters(0).inserted() < 20'000) {
    b.network->counters(0).AwaitInserted(b.network->counters(0).inserted(), 100ms);
    ASSERT_EQ(a.network->failed(1), "");
  }
}

TEST_P(NetworkTest, ASlotThatIsNotStoredAnyMoreIsAnError) {
  Rank a(0, 2, {100}, 5), b(1, 2, {100}, 5);
  Introduce({&a, &b});
  b.shard.counters().SetFill({2, 2});
  Rows rows(a, {1, 2});
  EXPECT_FALSE(Ask(a, 1, rows));
  EXPECT_TRUE(Gets() ? rows.Framed() : rows.Untouched());
  EXPECT_EQ(a.network->failed(1), "");
  EXPECT_EQ(a.network->counters(1).fill().stored, 2u);
  EXPECT_TRUE(Ask(a, 1));
  Rows beyond(a, {1, 5});
  if (Gets()) {
    EXPECT_FALSE(Ask(a, 1, beyond));
  }
  EXPECT_EQ(a.network->failed(1), "");
}

// ---- records that change

// Overwrites a rank's records as fast as it can.
class Writer {
 public:
  // kSilent: versions stay, as if there were none. kInBursts: with rests, for those who take longer to read a record
  // than passes until it is overwritten, and would otherwise never find it whole.
  enum Kind { kHonest, kSilent, kInBursts };

  Writer(Rank& rank, Kind kind) : thread_([this, &rank, kind] { Loop(rank, kind); }) {}
  ~Writer() {
    stopping_ = true;
    thread_.join();
  }

 private:
  void Loop(Rank& rank, Kind kind) {
    auto begin = std::chrono::steady_clock::now();
    for (uint64_t sample = 1'000'000; !stopping_; ++sample) {
      const auto slot = static_cast<uint32_t>(sample % rank.shard.share());
      if (kind == kSilent) {
        rank.Fill(slot, sample);
      } else {
        rank.Store(slot, sample);
      }
      if (kind == kInBursts && sample % 20 == 0) {
        std::this_thread::sleep_for(5 * (std::chrono::steady_clock::now() - begin));
        begin = std::chrono::steady_clock::now();
      }
    }
  }

  std::atomic<bool> stopping_{false};
  std::thread thread_;
};

// How many of the rows are torn; up to so many samples are read, or until one is.
uint64_t Torn(uint64_t field_bytes, Writer::Kind kind, uint64_t reads) {
  Rank a(0, 2, {field_bytes}, 6), b(1, 2, {field_bytes}, 6);
  Introduce({&a, &b});
  const Writer writer(b, kind);
  std::mt19937 random(1);
  uint64_t torn = 0;
  for (uint64_t read = 0; read < reads && !torn;) {
    Rows rows(a, Some(3, 6, random));
    if (!Ask(a, 1, rows)) throw std::runtime_error("not answered: " + a.network->failed(1));
    for (size_t i = 0; i < rows.slots().size(); ++i) torn += !rows.Whole(i);
    read += rows.slots().size();
  }
  return torn;
}

#if defined(__SANITIZE_THREAD__)
#define SKIP_RACES() GTEST_SKIP() << "reads while others write, on purpose"
#else
#define SKIP_RACES()
#endif

TEST_P(NetworkTest, NoSampleIsTorn) {
  SKIP_RACES();
  const Writer::Kind kind = Gets() ? Writer::kInBursts : Writer::kHonest;
  EXPECT_EQ(Torn(12288, kind, 6000), 0u);
  EXPECT_EQ(Torn(602112, kind, 300), 0u);
}

TEST_P(NetworkTest, WithoutVersionsSamplesAreTorn) {
  SKIP_RACES();
  EXPECT_GT(Torn(12288, Writer::kSilent, 1'000'000), 0u);
  EXPECT_GT(Torn(602112, Writer::kSilent, 100'000), 0u);
}

TEST_P(NetworkTest, ARecordThatStaysHalfWrittenHangsNobody) {
  auto a = std::make_unique<Rank>(0, 2, std::vector<uint64_t>{100}, 5, 200ms);
  Rank b(1, 2, {100}, 5);
  Introduce({a.get(), &b});
  const Write write{0, 2};
  b.shard.BeginWrite({&write, 1});
  Rows rows(*a, {2});
  EXPECT_FALSE(Ask(*a, 1, rows));
  EXPECT_TRUE(rows.Untouched());
  b.network.reset();
}

// ---- memory that is read

TEST(ReadsNatively, KnowsTheTransportsByTheirNames) {
  for (const char* const text : {"rc_verbs/mlx5_0:1", "dc_mlx5/mlx5_1:1, tcp/eth0", "self/memory, rc_mlx5/mlx5_0:1",
                                 "#      resource 3  :  md 2  dev 1  flags -- rc_mlx5/mlx5_0:1\n"}) {
    EXPECT_TRUE(ReadsNatively(text)) << text;
  }
  for (const char* const text : {"", "tcp/eth0, self/memory", "ud_mlx5/mlx5_0:1", "tcp/rc_0", "tcp/src_0", "unknown"}) {
    EXPECT_FALSE(ReadsNatively(text)) << text;
  }
}

TEST(Window, TravelsWholeOrNotAtAll) {
  const Window window{0x7F0123456000, 99, 20, std::string("\0key", 4)};
  const std::string packed = window.Pack();
  const Window same = Window::Unpack(packed);
  EXPECT_EQ(same.base, window.base);
  EXPECT_EQ(same.token, window.token);
  EXPECT_EQ(same.share, window.share);
  EXPECT_EQ(same.key, window.key);
  EXPECT_EQ(Window().Pack(), "");
  EXPECT_EQ(Window::Unpack("").key, "");
  for (size_t bytes = 1; bytes < packed.size(); ++bytes) {
    EXPECT_THROW(Window::Unpack(packed.substr(0, bytes)), std::invalid_argument) << bytes;
  }
  for (size_t at = 0; at < packed.size(); ++at) {
    std::string other = packed;
    other[at] ^= 1;
    EXPECT_THROW(Window::Unpack(other), std::invalid_argument) << at;
  }
}

// Ranks that do not read as all others do.
class NetworkReadsTest : public NetworkTest {};

INSTANTIATE_TEST_SUITE_P(Ways, NetworkReadsTest, testing::Values(Reads::kGet),
                         [](const auto&) { return std::string("Gets"); });

TEST_P(NetworkReadsTest, AreByRequestWhereNothingIsOfferedOrHardwareWouldNotReadIt) {
  for (const Reads other : {Reads::kAuto, Reads::kRequest}) {
    Rank a(0, 2, {20000, 7}, 20);
    Rank::reads = other;
    Rank b(1, 2, {20000, 7}, 20);
    Rank::reads = Reads::kGet;
    Introduce({&a, &b});
    Rows there(a, {1, 5, 19}), back(b, {2, 3});
    ASSERT_TRUE(Ask(a, 1, there));
    EXPECT_TRUE(there.AreAsStoredBy(1));
    ASSERT_TRUE(Ask(b, 0, back));
    EXPECT_TRUE(back.AreAsStoredBy(0));
    EXPECT_TRUE(a.network->describe().ends_with("tcp/lo, by request: it offers no memory")) << a.network->describe();
    EXPECT_TRUE(b.network->describe().ends_with("rank 0: tcp/lo")) << b.network->describe();
    a.network.reset();
    EXPECT_FALSE(Ask(b, 0));
    EXPECT_EQ(b.network->failed(0), "closed");
  }
}

TEST_P(NetworkReadsTest, AKeyThatIsNoneIsNoAddress) {
  Rank a(0, 2, {100}, 5), b(1, 2, {100}, 5);
  const std::string address = b.network->address();
  const auto server_bytes = wire::Read<uint32_t>(address.data()), window_bytes = wire::Read<uint32_t>(&address[4]);
  ASSERT_GT(window_bytes, 0u);
  for (uint32_t at = 0; at < window_bytes; ++at) {
    std::string wrong = address;
    wrong[8 + server_bytes + at] = static_cast<char>(~wrong[8 + server_bytes + at]);
    EXPECT_THROW(a.network->Connect(1, wrong), std::invalid_argument) << at;
  }
  // Without any, it asks.
  std::string none = address;
  none.erase(8 + server_bytes, window_bytes);
  none.replace(4, 4, 4, '\0');
  a.network->Connect(1, none);
  b.network->Connect(0, a.network->address());
  EXPECT_TRUE(Ask(a, 1));
  EXPECT_GT(b.network->traffic().messages_sent, 0u);
}

TEST_P(NetworkReadsTest, OnlyBelieveTheMemoryThatTheyWereTold) {
  Rank a(0, 2, {100}, 5), b(1, 2, {100}, 5);
  Introduce({&a, &b});
  ASSERT_TRUE(Ask(a, 1));
  b.shard.counters().SetToken(1);
  EXPECT_FALSE(Ask(a, 1));
  EXPECT_EQ(a.network->failed(1), "its memory does not hold its samples");
  EXPECT_EQ(a.network->counters(1).state(), Counters::kBroken);
}

TEST_P(NetworkReadsTest, OfferNoFileAndSaySo) {
  const std::vector<uint64_t> fields{100};
  const Layout layout(fields);
  const Slab slab = Slab::Anonymous(Shard::Bytes(layout, 5));
  const Shard shard(slab, layout, 5);
  NetworkOptions options;
  options.library = Library();
  options.devices = "lo";
  options.transports = "tcp,self";
  options.reads = Reads::kGet;
  options.may_pin = false;
  const Network network(options, layout, shard);
  EXPECT_TRUE(network.describe().ends_with(
      "\nother ranks read by request: its samples are in a file, which is not to be kept in memory"));
  EXPECT_EQ(wire::Read<uint32_t>(&network.address()[4]), 0u);
}

TEST_P(NetworkReadsTest, MemoryThatCannotBeOfferedIsAnErrorWithTheReason) {
  const UcxLibrary library(Library());
  const UcxWorker worker(library, "lo", "tcp,self", Reads::kGet);
  try {
    const UcxMemory memory(worker, nullptr, 3 << 20);
    FAIL() << "was taken";
  } catch (const std::runtime_error& error) {
    EXPECT_NE(std::string(error.what()).find(": registering 3 MiB was refused: "), std::string::npos) << error.what();
  }
}

// Where no hardware reads, at least: on TCP.
TEST_P(NetworkReadsTest, OfferedMemoryIsNotTouched) {
  Rank a(0, 2, {100}, 5);
  const std::vector<uint64_t> fields{1 << 20};
  const Layout layout(fields);
  const Slab slab = Slab::Shared(Shard::Bytes(layout, 64));
  const Shard shard(slab, layout, 64);
  const auto resident = [&] {
    std::vector<unsigned char> pages((slab.size() + 4095) / 4096);
    EXPECT_EQ(mincore(slab.data(), slab.size(), pages.data()), 0);
    return std::count_if(pages.begin(), pages.end(), [](unsigned char page) { return page & 1; });
  };
  shard.counters().SetToken(3);
  const auto before = resident();
  NetworkOptions options;
  options.library = Library();
  options.devices = "lo";
  options.transports = "tcp,self";
  options.rank = 1;
  options.world_size = 2;
  options.key = kKey;
  options.reads = Reads::kGet;
  const Network network(options, layout, shard);
  a.network->Connect(1, network.address());
  ASSERT_TRUE(a.network->describe().find("refused") == std::string::npos);
  Rows none(a, {});
  ASSERT_TRUE(Ask(a, 1, none));
  EXPECT_EQ(resident(), before);
}

TEST_P(NetworkReadsTest, FillsBelongTogetherWhileTheyAreWritten) {
  SKIP_RACES();
  Rank a(0, 2, {100}, 5), b(1, 2, {100}, 5);
  Introduce({&a, &b});
  std::atomic<bool> stopping{false};
  std::thread writer([&] {
    for (uint64_t stored = 6; !stopping; ++stored) {
      b.shard.counters().SetFill({stored, stored * 10});
      b.shard.counters().SetInserted(stored);
      if (stored % 4 == 0) std::this_thread::sleep_for(10us);
    }
  });
  for (int i = 0; i < 3000; ++i) {
    Rows none(a, {});
    ASSERT_TRUE(Ask(a, 1, none));
    const Fill fill = a.network->counters(1).fill();
    ASSERT_EQ(fill.mass, fill.stored * 10);
    ASSERT_GE(fill.stored, a.network->counters(1).inserted());
  }
  stopping = true;
  writer.join();
  Rows none(a, {});
  ASSERT_TRUE(Ask(a, 1, none));
  EXPECT_GT(a.network->counters(1).fill().stored, 6u);
  EXPECT_EQ(a.network->counters(1).fill().stored, a.network->counters(1).inserted());
}

TEST_P(NetworkReadsTest, ARankThatLeavesWhileItIsReadIsClosed) {
  SKIP_RACES();
  for (int repeat = 0; repeat < 20; ++repeat) {
    Rank a(0, 2, {60000}, 8), b(1, 2, {60000}, 8);
    Introduce({&a, &b});
    std::atomic<int> read{0};
    std::thread leaving([&] {
      while (read < 2 + repeat % 5) std::this_thread::yield();
      // As ranks do: on TCP the goodbye is lost now and then when it crosses with a read.
      b.shard.counters().SetState(Counters::kClosed);
      const News news = b.news();
      b.network->Tell(0, {&news, 1});
      b.network.reset();
    });
    for (;; ++read) {
      Rows rows(a, Some(7, 8, random_));
      if (!Ask(a, 1, rows)) break;
      ASSERT_TRUE(rows.AreAsStoredBy(1));
    }
    leaving.join();
    ASSERT_EQ(a.network->failed(1), "closed") << repeat;
  }
}

// ---- strangers

// Sends what it likes to a worker.
class Stranger {
 public:
  explicit Stranger(const std::string& worker)
      : library_(Library()),
        worker_(library_, "lo", "tcp,self", Reads::kRequest),
        endpoint_(worker_.Connect(worker, Ignore, nullptr)) {}
  ~Stranger() {
    worker_.Close(endpoint_);
    worker_.ProgressWhile([&] { return worker_.closing(); }, 1s);
    for (const Sent& sent : sent_) {
      if (sent.request) library_.request_free(sent.request);
    }
  }

  // Without waiting until it has left.
  void Send(unsigned id, std::vector<std::byte> header, std::vector<std::byte> data, uint32_t flags) {
    Sent& sent = sent_.emplace_back(Sent{std::move(header), std::move(data), nullptr});
    ucp_request_param_t params{};
    params.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
    params.flags = flags;
    void* const request = library_.am_send_nbx(endpoint_, id, sent.header.data(), sent.header.size(), sent.data.data(),
                                               sent.data.size(), &params);
    if (UCS_PTR_IS_PTR(request)) sent.request = request;
    Progress();
  }
  void Progress() {
    while (worker_.Progress()) {
    }
  }

 private:
  struct Sent {
    std::vector<std::byte> header, data;
    void* request;
  };

  static void Ignore(void*, ucp_ep_h, ucs_status_t) {}

  UcxLibrary library_;
  UcxWorker worker_;
  ucp_ep_h endpoint_;
  std::list<Sent> sent_;
};

// Until what a stranger has sent has certainly been received by both halves of `a`.
void Converse(Stranger& stranger, Rank& a, Rank& b) {
  for (int i = 0; i < 20; ++i) {
    stranger.Progress();
    EXPECT_TRUE(Ask(a, b.number));
    EXPECT_TRUE(Ask(b, a.number));
    std::this_thread::sleep_for(1ms);
  }
}

template <typename T>
std::vector<std::byte> BytesOf(const T& value, size_t more = 0) {
  std::vector<std::byte> bytes(sizeof(value) + more);
  std::memcpy(bytes.data(), &value, sizeof(value));
  return bytes;
}

std::pair<std::string, std::string> Workers(const std::string& address) {
  const auto server_bytes = wire::Read<uint32_t>(address.data()), window_bytes = wire::Read<uint32_t>(&address[4]);
  return {address.substr(8, server_bytes), address.substr(8 + server_bytes + window_bytes)};
}

void ExpectUnchanged(Rank& a, Rank& b) {
  for (Rank* rank : {&a, &b}) {
    EXPECT_EQ(rank->network->counters(2).inserted(), 0u);
    EXPECT_EQ(rank->network->counters(2).state(), Counters::kOpen);
    EXPECT_EQ(rank->network->failed(1 - rank->number), "");
    EXPECT_EQ(rank->network->failed(2), "");
  }
  EXPECT_TRUE(Ask(a, 1));
  EXPECT_TRUE(Ask(b, 0));
}

TEST_P(NetworkTest, WrongMessagesChangeNothing) {
  if (!StrangersAreSafe()) GTEST_SKIP() << "not with this version of UCX";
  Rank a(0, 3, {100}, 5), b(1, 3, {100}, 5);
  Introduce({&a, &b});
  ASSERT_TRUE(Ask(a, 1));
  a.network->TakeNews();
  Rows rows(a, {1, 2});
  const auto [server, client] = Workers(a.network->address());
  {
    Stranger stranger(server);
    const News news{2, Counters::kBroken, {5, 5}, 99, 99};
    const wire::Request request{kKey, 1, 2, 1, news};
    wire::Request wrong = request;
    const auto send = [&](const std::vector<std::byte>& data) {
      stranger.Send(wire::kRequest, {}, data, UCP_AM_SEND_FLAG_EAGER);
    };
    wrong.key = kKey + 1;
    send(BytesOf(wrong, 4));
    for (const size_t more : {0u, 3u, 5u, 8u, 100000u}) send(BytesOf(request, more));
    for (const uint32_t count : {0u, 2u, 1u << 20, ~0u, 1u << 30}) {
      wrong = request;
      wrong.num_slots = count;
      send(BytesOf(wrong, 4));
    }
    for (const uint32_t rank : {0u, 3u, ~0u}) {
      wrong = request;
      wrong.rank = wrong.own.rank = rank;
      send(BytesOf(wrong, 4));
    }
    wrong = request;
    wrong.own.rank = 1;
    send(BytesOf(wrong, 4));
    std::vector<std::byte> beyond = BytesOf(request, 4);
    const uint32_t slot = 5;
    std::memcpy(beyond.data() + sizeof(request), &slot, sizeof(slot));
    send(beyond);
    const wire::Tell tell{kKey, 1, 1};
    std::vector<std::byte> told = BytesOf(tell, sizeof(News));
    std::memcpy(told.data() + sizeof(tell), &news, sizeof(news));
    const auto send_tell = [&](wire::Tell head, size_t bytes) {
      std::vector<std::byte> data = told;
      data.resize(bytes);
      std::memcpy(data.data(), &head, sizeof(head));
      stranger.Send(wire::kTell, {}, data, UCP_AM_SEND_FLAG_EAGER);
    };
    send_tell({kKey + 1, 1, 1}, told.size());
    send_tell({kKey, 3, 1}, told.size());
    send_tell({kKey, 1, 2}, told.size());
    send_tell({kKey, 1, ~0u}, told.size());
    send_tell({kKey, 1, 1}, told.size() - 1);
    // Right in everything but how it comes.
    stranger.Send(wire::kTell, told, told, UCP_AM_SEND_FLAG_EAGER);
    stranger.Send(wire::kTell, {}, told, UCP_AM_SEND_FLAG_RNDV);
    Converse(stranger, a, b);
  }
  {
    Stranger stranger(client);
    const wire::Reply reply{kKey, 22, 0, 1, wire::kRecords, {1, Counters::kBroken, {1, 1}, 99, 99}};
    const std::vector<std::byte> data(48);
    wire::Reply wrong = reply;
    Converse(stranger, a, b);
    a.network->Request(1, rows.slots(), rows.targets(), a.news());  // of id 22, as Converse asks 20 times
    wrong.key = kKey + 1;
    stranger.Send(wire::kReply, BytesOf(wrong), data, UCP_AM_SEND_FLAG_EAGER);
    wrong = reply;
    wrong.rank = 3;
    stranger.Send(wire::kReply, BytesOf(wrong), data, UCP_AM_SEND_FLAG_EAGER);
    stranger.Send(wire::kReply, BytesOf(reply, 1), data, UCP_AM_SEND_FLAG_EAGER);
    stranger.Send(wire::kReply, BytesOf(reply), data, UCP_AM_SEND_FLAG_RNDV);
    for (const uint64_t offset : {uint64_t{248}, uint64_t{201}, ~uint64_t{0}, ~uint64_t{0} - 47}) {
      wrong = reply;
      wrong.own = {1, Counters::kOpen, {5, 5}, 0, 0};
      wrong.offset = offset;
      stranger.Send(wire::kReply, BytesOf(wrong), data, UCP_AM_SEND_FLAG_EAGER);
    }
    EXPECT_TRUE(a.network->Finish());
    EXPECT_TRUE(rows.AreAsStoredBy(1));
  }
  ExpectUnchanged(a, b);
}

TEST_P(NetworkTest, RandomMessagesChangeNothing) {
  if (!StrangersAreSafe()) GTEST_SKIP() << "not with this version of UCX";
  Rank a(0, 3, {100}, 5), b(1, 3, {100}, 5);
  Introduce({&a, &b});
  ASSERT_TRUE(Ask(a, 1));
  const auto [server, client] = Workers(a.network->address());
  for (const auto& [worker, numbers] : {std::pair(server, 2u), std::pair(client, 1u)}) {
    Stranger stranger(worker);
    for (int i = 0; i < 400; ++i) {
      std::vector<std::byte> header(random_() % 3 ? random_() % 120 : 72), data(random_() % (i % 20 ? 300 : 90000));
      for (std::byte& byte : header) byte = static_cast<std::byte>(random_());
      for (std::byte& byte : data) byte = static_cast<std::byte>(random_());
      stranger.Send(random_() % numbers, random_() % 2 ? header : std::vector<std::byte>(), data,
                    i % 7 ? UCP_AM_SEND_FLAG_EAGER : 0);
    }
    Converse(stranger, a, b);
  }
  ExpectUnchanged(a, b);
}

// Addresses on which this process listens for TCP connections.
std::vector<std::pair<std::string, uint16_t>> Listening() {
  std::set<std::string> own;
  if (DIR* const folder = opendir("/proc/self/fd")) {
    while (const dirent* const entry = readdir(folder)) {
      struct stat status;
      const std::string name = std::string("/proc/self/fd/") + entry->d_name;
      if (stat(name.c_str(), &status) == 0 && S_ISSOCK(status.st_mode)) own.insert(std::to_string(status.st_ino));
    }
    closedir(folder);
  }
  std::vector<std::pair<std::string, uint16_t>> found;
  for (const char* const table : {"/proc/net/tcp", "/proc/net/tcp6"}) {
    std::ifstream file(table);
    std::string line;
    std::getline(file, line);
    while (std::getline(file, line)) {
      std::istringstream words(line);
      std::string number, local, remote, state, queues, timer, retransmits, user, timeout, inode;
      words >> number >> local >> remote >> state >> queues >> timer >> retransmits >> user >> timeout >> inode;
      if (state != "0A" || !own.count(inode)) continue;
      const size_t colon = local.find(':');
      found.emplace_back(local.substr(0, colon), std::stoul(local.substr(colon + 1), nullptr, 16));
    }
  }
  return found;
}

TEST_P(NetworkTest, RandomBytesAtOpenPortsChangeNothing) {
  Rank a(0, 3, {100}, 5), b(1, 3, {100}, 5);
  Introduce({&a, &b});
  ASSERT_TRUE(Ask(a, 1));
  const auto listening = Listening();
  ASSERT_FALSE(listening.empty());
  for (const auto& [address, port] : listening) {
    EXPECT_EQ(address, "0100007F") << "listens beyond loopback";
    std::vector<int> sockets;
    for (int i = 0; i < 40; ++i) {
      const int descriptor = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
      sockaddr_in to{};
      to.sin_family = AF_INET;
      to.sin_port = htons(port);
      to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
      ASSERT_EQ(connect(descriptor, reinterpret_cast<sockaddr*>(&to), sizeof(to)), 0);
      std::vector<char> bytes(1 + random_() % (i % 4 ? 100 : 10000));
      for (char& byte : bytes) byte = static_cast<char>(random_());
      EXPECT_NE(send(descriptor, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT), 0);
      if (i % 2) {
        close(descriptor);
      } else {
        sockets.push_back(descriptor);
      }
    }
    Rows rows(a, {4});
    EXPECT_TRUE(Ask(a, 1, rows));
    for (const int descriptor : sockets) close(descriptor);
  }
  ExpectUnchanged(a, b);
}

// ---- ranks that go

TEST_P(NetworkTest, ARankThatLeavesIsClosed) {
  Rank a(0, 4, {100}, 5), b(1, 4, {100}, 5), c(2, 4, {100}, 5), d(3, 4, {100}, 5);
  Introduce({&a, &b, &c, &d});
  ASSERT_TRUE(Ask(a, 1));  // a has asked b,
  ASSERT_TRUE(Ask(b, 2));  // b has asked c
  b.network.reset();
  EXPECT_FALSE(Ask(a, 1));
  EXPECT_EQ(a.network->failed(1), "closed");
  EXPECT_EQ(a.network->counters(1).state(), Counters::kClosed);
  while (c.network->counters(1).state() == Counters::kOpen) std::this_thread::sleep_for(1ms);
  EXPECT_EQ(c.network->counters(1).state(), Counters::kClosed);
  EXPECT_FALSE(Ask(d, 1));  // a stranger to b
  EXPECT_NE(d.network->failed(1), "");
  EXPECT_TRUE(Ask(a, 2));
  EXPECT_TRUE(Ask(c, 0));
}

TEST_P(NetworkTest, ARankThatHasClosedItsShardSaysSo) {
  Rank a(0, 3, {100}, 5), b(1, 3, {100}, 5), c(2, 3, {100}, 5);
  Introduce({&a, &b, &c});
  b.shard.counters().SetState(Counters::kClosed);
  c.shard.counters().SetState(Counters::kBroken);
  EXPECT_FALSE(Ask(a, 1));
  EXPECT_EQ(a.network->failed(1), "closed");
  EXPECT_FALSE(Ask(a, 2));
  EXPECT_EQ(a.network->failed(2), "its rehearsal buffer has failed");
  EXPECT_FALSE(Ask(a, 1));
}

TEST_P(NetworkTest, AKilledRankIsNoticedInMidConversation) {
  for (const uint64_t bytes : {12288u, 602112u}) {
    Rank a(0, 3, {bytes}, 8), b(1, 3, {bytes}, 8);
    OtherProcess other(2, 3, bytes, 8);
    Introduce({&a, &b});
    other.Introduce(a);
    other.Introduce(b);
    ASSERT_TRUE(Ask(b, 2));
    std::atomic<int> answered{0};
    std::thread killer([&] {
      while (answered < 20) std::this_thread::sleep_for(1ms);
      other.Kill(SIGKILL);
    });
    for (;; ++answered) {
      Rows rows(a, Some(7, 8, random_)), more(a, Some(2, 8, random_));
      a.network->Request(1, more.slots(), more.targets(), a.news());
      a.network->Request(2, rows.slots(), rows.targets(), a.news());
      if (!a.network->Finish()) break;
      ASSERT_TRUE(rows.AreAsStoredBy(2));
      ASSERT_TRUE(more.AreAsStoredBy(1));
    }
    killer.join();
    EXPECT_NE(a.network->failed(2).find("connection"), std::string::npos) << a.network->failed(2);
    EXPECT_EQ(a.network->counters(2).state(), Counters::kBroken);
    EXPECT_EQ(a.network->failed(1), "");
    EXPECT_TRUE(Ask(a, 1));
    EXPECT_FALSE(Ask(a, 2));
    EXPECT_FALSE(Ask(b, 2));
    EXPECT_TRUE(Ask(b, 0));
    const std::vector<uint32_t> fresh = a.network->TakeNews();
    EXPECT_EQ(std::count(fresh.begin(), fresh.end(), 2u), 1);
  }
}

TEST_P(NetworkTest, WhoWaitsForNewsOfAKilledRankLearnsIt) {
  Rank a(0, 2, {100}, 5);
  OtherProcess other(1, 2, 100, 5);
  other.Introduce(a);
  ASSERT_TRUE(Ask(a, 1));
  other.Kill(SIGKILL);
  while (a.network->counters(1).state() == Counters::kOpen) {
    a.network->counters(1).AwaitInserted(0, 10ms);
    a.network->Look();
  }
  EXPECT_NE(a.network->failed(1).find("connection"), std::string::npos) << a.network->failed(1);
}

// Without looking: the other one has told something before.
TEST_P(NetworkTest, AKilledRankThatHasToldSomethingWakesThoseWhoWaitForMore) {
  Rank a(0, 2, {100}, 5);
  OtherProcess other(1, 2, 100, 5, 7);
  other.Introduce(a);
  while (a.network->counters(1).inserted() < 7) a.network->counters(1).AwaitInserted(0, 60s);
  other.Kill(SIGKILL);
  while (a.network->counters(1).state() == Counters::kOpen) a.network->counters(1).AwaitInserted(7, 60s);
  EXPECT_NE(a.network->failed(1).find("connection"), std::string::npos) << a.network->failed(1);
}

TEST_P(NetworkTest, ARankThatStopsAnsweringIsGivenUp) {
  Rank a(0, 3, {12288}, 8, 300ms), b(1, 3, {12288}, 8);
  OtherProcess other(2, 3, 12288, 8);
  Introduce({&a, &b});
  other.Introduce(a);
  ASSERT_TRUE(Ask(a, 2));
  other.Stop();
  EXPECT_FALSE(Ask(a, 2));
  EXPECT_EQ(a.network->failed(2), "it has not answered within 0.3 s");
  EXPECT_TRUE(Ask(a, 1));
  other.Kill(SIGCONT);
  EXPECT_TRUE(Ask(a, 1));
  EXPECT_FALSE(Ask(a, 2));
}

TEST_P(NetworkTest, ARankThatTakesNoMessagesHoldsNobodyUp) {
  Rank a(0, 3, {602112}, 8), b(1, 3, {602112}, 8);
  OtherProcess other(2, 3, 602112, 8);
  Introduce({&a, &b});
  other.Introduce(a);
  ASSERT_TRUE(Ask(a, 2));
  other.Stop();
  const News news = a.news();
  for (int i = 0; i < 100'000; ++i) a.network->Tell(2, {&news, 1});
  EXPECT_TRUE(Ask(a, 1));
  EXPECT_EQ(a.network->failed(2), "");
  other.Kill(SIGCONT);
  EXPECT_TRUE(Ask(a, 2));
}

TEST_P(NetworkTest, FinishEndsWhenItIsStopped) {
  Rank a(0, 2, {100}, 5);
  OtherProcess other(1, 2, 100, 5);
  other.Introduce(a);
  ASSERT_TRUE(Ask(a, 1));
  other.Stop();
  Rows rows(a, {1});
  a.network->Request(1, rows.slots(), rows.targets(), a.news());
  std::thread stopper([&] {
    std::this_thread::sleep_for(50ms);
    a.network->Stop();
  });
  EXPECT_FALSE(a.network->Finish());
  stopper.join();
  EXPECT_EQ(a.network->failed(1), "");
  EXPECT_FALSE(Ask(a, 1));
}

TEST_P(NetworkTest, EndsWithDeadAndStoppedRanks) {
  auto a = std::make_unique<Rank>(0, 4, std::vector<uint64_t>{602112}, 8);
  OtherProcess dead(1, 4, 602112, 8), stopped(2, 4, 602112, 8), alive(3, 4, 602112, 8);
  for (OtherProcess* other : {&dead, &stopped, &alive}) other->Introduce(*a);
  for (const uint32_t rank : {1u, 2u, 3u}) ASSERT_TRUE(Ask(*a, rank));
  stopped.Stop();
  Rows rows(*a, {1, 2, 3, 4, 5}), more(*a, {1});
  a->network->Request(2, rows.slots(), rows.targets(), a->news());
  dead.Kill(SIGKILL);
  dead.Reap();
  a->network->Request(1, more.slots(), more.targets(), a->news());
  a->network.reset();
  EXPECT_EQ(alive.Leave(), 0);
}

TEST_P(NetworkTest, LeavingProcessesEndInOrder) {
  Rank a(0, 2, {100}, 5);
  OtherProcess other(1, 2, 100, 5);
  other.Introduce(a);
  ASSERT_TRUE(Ask(a, 1));
  EXPECT_EQ(other.Leave(), 0);
  EXPECT_FALSE(Ask(a, 1));
  EXPECT_EQ(a.network->failed(1), "closed");
}

TEST_P(NetworkTest, AForkedChildLeavesItAlone) {
  Rank a(0, 2, {100}, 5), b(1, 2, {100}, 5);
  Introduce({&a, &b});
  ASSERT_TRUE(Ask(a, 1));
  const pid_t child = fork();
  if (child == 0) {
    a.network.reset();
    b.network.reset();
    _exit(7);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(WEXITSTATUS(status), 7);
  EXPECT_TRUE(Ask(a, 1));
  EXPECT_TRUE(Ask(b, 0));
}

#else

TEST(NetworkTest, ABuildWithoutUcxSaysSo) {
  const std::vector<uint64_t> fields{8};
  const Layout layout(fields);
  const Slab slab = Slab::Anonymous(Shard::Bytes(layout, 1));
  const Shard shard(slab, layout, 1);
  EXPECT_THROW(Network(NetworkOptions(), layout, shard), std::runtime_error);
}

#endif

}  // namespace
}  // namespace reprise
