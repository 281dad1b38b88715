// How an engine ends: errors, closing at any moment, destruction, forks. A batch that blocks whoever reads it makes
// these moments last, so that nothing here depends on timing.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <deque>
#include <numeric>
#include <stdexcept>
#include <thread>

#include "engine.h"
#include "test_samples.h"

namespace reprise {
namespace {

const Samples kSamples({16, 3});

EngineOptions Options(unsigned threads = 1) {
  EngineOptions options;
  options.policy = "reservoir";
  options.field_bytes = kSamples.field_bytes();
  options.share = 20;
  options.draws = {4};
  options.threads = threads;
  return options;
}

// A batch of one row whose label cannot be read before Open(): the first to try blocks, and nobody else reads it.
class BlockingBatch {
 public:
  BlockingBatch() : memory_(kSamples, 1, 1) {
    page_bytes_ = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    page_ = mmap(nullptr, page_bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    EXPECT_EQ(pipe(reached_), 0);
    EXPECT_EQ(pipe(opened_), 0);
    current_ = this;
    struct sigaction action{};
    action.sa_handler = [](int) { current_->Block(); };
    EXPECT_EQ(sigaction(SIGSEGV, &action, &before_), 0);
  }
  ~BlockingBatch() {
    Open();
    sigaction(SIGSEGV, &before_, nullptr);
    munmap(page_, page_bytes_);
    for (const int fd : {reached_[0], reached_[1], opened_[0], opened_[1]}) close(fd);
  }

  Batch View() const {
    Batch batch = memory_.View();
    batch.labels = static_cast<const int64_t*>(page_);
    return batch;
  }
  // Return once somebody is blocked.
  void Reached() {
    char byte;
    EXPECT_EQ(read(reached_[0], &byte, 1), 1);
  }
  void Open() {
    if (is_open_) return;
    is_open_ = true;
    EXPECT_EQ(mprotect(page_, page_bytes_, PROT_READ | PROT_WRITE), 0);
    EXPECT_EQ(write(opened_[1], "!", 1), 1);
  }

 private:
  void Block() {
    const int error = errno;
    char byte = '!';
    if (write(reached_[1], &byte, 1) != 1 || read(opened_[0], &byte, 1) != 1) _exit(3);
    errno = error;
  }

  static BlockingBatch* current_;

  BatchMemory memory_;
  void* page_;
  size_t page_bytes_;
  int reached_[2], opened_[2];
  bool is_open_ = false;
  struct sigaction before_;
};

BlockingBatch* BlockingBatch::current_ = nullptr;

template <typename Call>
std::string ErrorOf(Call call) {
  try {
    call();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "none";
}

const std::string kClosed = "the rehearsal buffer is closed";

// Every way to call an engine.
std::vector<std::string> ErrorsOfAllCalls(Engine& engine) {
  const BatchMemory memory(kSamples, 9, 2);
  std::vector<std::byte> room(20 * 16);
  return {ErrorOf([&] { engine.Submit(memory.View()); }),
          ErrorOf([&] { engine.SubmitDraw(); }),
          ErrorOf([&] { engine.Wait(); }),
          ErrorOf([&] { engine.Drain(); }),
          ErrorOf([&] { engine.ReserveFront(3); }),
          ErrorOf([&] { engine.stored(); }),
          ErrorOf([&] { engine.submitted(); }),
          ErrorOf([&] { engine.step(); }),
          ErrorOf([&] { engine.mass(); }),
          ErrorOf([&] { engine.policy_state(); }),
          ErrorOf([&] { engine.labels(); }),
          ErrorOf([&] { engine.versions(); }),
          ErrorOf([&] { engine.ReadColumn(0, {}, room.data()); }),
          ErrorOf([&] { engine.Load({}, 0, 0, false, {}, std::vector<const std::byte*>(4)); }),
          ErrorOf([&] { engine.AdoptDraw({1}); }),
          ErrorOf([&] { engine.pending(); })};
}

void ExpectAll(const std::vector<std::string>& errors, const std::string& expected) {
  for (size_t call = 0; call < errors.size(); ++call) EXPECT_EQ(errors[call], expected) << "call " << call;
}

TEST(EngineErrors, OneThatAStepThrowsIsThrownByEveryLaterCall) {
  for (int repeat = 0; repeat < 30; ++repeat) {
    Engine engine(Options(1 + static_cast<unsigned>(repeat) % 3));
    const BatchMemory memory(kSamples, 1, 5);
    engine.Submit(memory.View());
    engine.Wait();
    if (repeat % 2) engine.Drain();
    engine.FailNextStep(std::make_exception_ptr(std::runtime_error("out of luck")));
    // Thrown here already if the failing step is the one before, still queued.
    const std::string at_submit = ErrorOf([&] { engine.Submit(memory.View()); });
    EXPECT_TRUE(at_submit == "none" || (at_submit == "out of luck" && repeat % 2 == 0)) << at_submit;
    EXPECT_EQ(ErrorOf([&] { engine.Drain(); }), "out of luck");
    ExpectAll(ErrorsOfAllCalls(engine), "out of luck");
    EXPECT_LE(engine.done(), 1u);
    engine.Close();
    ExpectAll(ErrorsOfAllCalls(engine), "out of luck");
  }
}

TEST(EngineErrors, OneInALaterStepOfAFullQueueIsNotLost) {
  BlockingBatch blocking;
  Engine engine(Options());
  const BatchMemory memory(kSamples, 2, 5);
  engine.Submit(blocking.View());
  engine.Wait();
  blocking.Reached();
  for (int step = 0; step < 3; ++step) engine.Submit(memory.View());
  engine.FailNextStep(std::make_exception_ptr(std::logic_error("second step")));
  blocking.Open();
  EXPECT_EQ(ErrorOf([&] { engine.Drain(); }), "second step");
  EXPECT_EQ(engine.done(), 1u) << "steps after the failed one were run";
  ExpectAll(ErrorsOfAllCalls(engine), "second step");
}

TEST(EngineErrors, KeepTheirType) {
  Engine engine(Options());
  engine.FailNextStep(std::make_exception_ptr(std::bad_alloc()));
  const BatchMemory memory(kSamples, 1, 5);
  engine.Submit(memory.View());
  EXPECT_THROW(engine.Drain(), std::bad_alloc);
}

TEST(EngineClose, EveryLaterCallSaysSo) {
  Engine engine(Options());
  const BatchMemory memory(kSamples, 1, 5);
  engine.Submit(memory.View());
  engine.Wait();
  engine.Drain();
  engine.Close();
  ExpectAll(ErrorsOfAllCalls(engine), kClosed);
  engine.Close();
  ExpectAll(ErrorsOfAllCalls(engine), kClosed);
  EXPECT_EQ(engine.done(), 1u);
  EXPECT_EQ(engine.timings().size(), 5u);
}

TEST(EngineClose, BeforeTheFirstWaitIsNoticedByIt) {
  Engine engine(Options());
  engine.Close();
  EXPECT_EQ(ErrorOf([&] { engine.Wait(); }), kClosed);
}

TEST(EngineClose, FromAnotherThreadWakesABlockedWaitWhileTheStepIsStillStuck) {
  for (const unsigned threads : {1u, 3u}) {
    BlockingBatch blocking;
    Engine engine(Options(threads));
    engine.Submit(blocking.View());
    engine.Wait();
    blocking.Reached();  // the engine thread is stuck, not we
    EXPECT_FALSE(engine.ready());
    EXPECT_EQ(engine.done(), 0u);
    std::thread closer([&] { engine.Close(); });
    EXPECT_EQ(ErrorOf([&] { engine.Wait(); }), kClosed);
    EXPECT_EQ(engine.done(), 0u);
    blocking.Open();
    closer.join();
    ExpectAll(ErrorsOfAllCalls(engine), kClosed);
  }
}

TEST(EngineClose, WaitsForTheStepThatRunsAndDropsTheOthers) {
  auto blocking = std::make_unique<BlockingBatch>();
  Engine engine(Options());
  auto memory = std::make_unique<BatchMemory>(kSamples, 2, 5);
  engine.Submit(blocking->View());
  blocking->Reached();
  for (int step = 0; step < 3; ++step) engine.Submit(memory->View());
  std::thread closer([&] { engine.Close(); });
  EXPECT_EQ(ErrorOf([&] { engine.Drain(); }), kClosed);
  memory.reset();  // a sanitizer sees it if a dropped batch is read
  blocking->Open();
  closer.join();
  blocking.reset();
  EXPECT_EQ(engine.done(), 1u);
}

TEST(EngineClose, ManyAtOnceAndWhileTheCallerWorks) {
  const BatchMemory memory(kSamples, 1, 5);
  for (int repeat = 0; repeat < 100; ++repeat) {
    Engine engine(Options(1 + static_cast<unsigned>(repeat) % 3));
    std::vector<std::thread> closers;
    for (int i = 0; i < 2; ++i) closers.emplace_back([&] { engine.Close(); });
    std::string error = "none";
    while (error == "none") {
      error = ErrorOf([&] {
        engine.Submit(memory.View());
        engine.Wait();
      });
    }
    EXPECT_EQ(error, kClosed);
    for (std::thread& closer : closers) closer.join();
  }
}

// The samples are unmapped by Close: nobody may still be looking at them.
TEST(EngineClose, WhileTheCallerReadsOrLoadsContents) {
  EngineOptions options = Options();
  options.share = 2000;
  const BatchMemory memory(kSamples, 1, 60);
  for (int repeat = 0; repeat < 60; ++repeat) {
    Engine engine(options);
    for (int step = 0; step < 40; ++step) engine.Submit(memory.View());
    const Snapshot snapshot(engine, kSamples);
    std::vector<std::byte> room(2000 * 16);
    std::vector<int64_t> slots(engine.stored());
    std::iota(slots.begin(), slots.end(), 0);
    std::atomic<bool> started{false};
    std::thread closer([&] {
      started.wait(false);
      engine.Close();
    });
    started = true;
    started.notify_one();
    std::string error = "none";
    while (error == "none") {
      error = ErrorOf([&] {
        switch (repeat % 3) {
          case 0:
            engine.labels();
            break;
          case 1:
            engine.ReadColumn(0, slots, room.data());
            break;
          default:
            snapshot.LoadInto(engine);
        }
      });
    }
    EXPECT_EQ(error, kClosed);
    closer.join();
  }
}

TEST(EngineDestruction, WithoutCloseAndWithStepsQueuedReadsNoBatchAfterwards) {
  const BatchMemory first(kSamples, 1, 5);
  for (int repeat = 0; repeat < 50; ++repeat) {
    std::deque<BatchMemory> batches;
    {
      Engine engine(Options(1 + static_cast<unsigned>(repeat) % 3));
      for (int step = 0; step < repeat % 5; ++step) {
        batches.emplace_back(kSamples, 3 + step, 7);
        engine.Submit(batches.back().View());
      }
    }
    batches.clear();
  }
}

TEST(EngineDestruction, RightAfterAnErrorOrOfAnIdleEngine) {
  const BatchMemory memory(kSamples, 1, 5);
  for (int repeat = 0; repeat < 30; ++repeat) {
    const EngineHandle engine(new Engine(Options()));
    if (repeat % 3 == 0) continue;
    engine->FailNextStep(std::make_exception_ptr(std::runtime_error("out of luck")));
    if (repeat % 3 == 1) engine->Submit(memory.View());
  }
}

TEST(EngineQueue, SubmitBlocksWhenFourStepsAreUnfinished) {
  BlockingBatch blocking;
  Engine engine(Options());
  const BatchMemory memory(kSamples, 2, 3);
  engine.Submit(blocking.View());
  blocking.Reached();
  for (uint64_t step = 2; step <= Engine::kMaxQueued; ++step) {
    EXPECT_FALSE(engine.behind());
    EXPECT_EQ(engine.Submit(memory.View()), step);
  }
  EXPECT_TRUE(engine.behind());
  std::atomic<bool> returned{false};
  std::thread caller([&] {
    EXPECT_EQ(engine.Submit(memory.View()), Engine::kMaxQueued + 1);
    EXPECT_GE(engine.done(), 1u);
    returned = true;
  });
  // Time for a Submit that does not block to return; one that does is never too late.
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_FALSE(returned);
  blocking.Open();
  caller.join();
  engine.Drain();
  EXPECT_FALSE(engine.behind());
  EXPECT_EQ(engine.done(), Engine::kMaxQueued + 1);
  EXPECT_EQ(engine.submitted(), 1 + 3 * Engine::kMaxQueued);
}

TEST(EngineQueue, ReadySaysWhetherWaitWouldBlock) {
  BlockingBatch blocking;
  Engine engine(Options());
  EXPECT_TRUE(engine.ready()) << "the first wait has nothing to wait for";
  engine.Submit(blocking.View());
  engine.Wait();
  blocking.Reached();
  EXPECT_FALSE(engine.ready());
  blocking.Open();
  engine.Drain();
  EXPECT_TRUE(engine.ready());
  engine.Wait();
  EXPECT_TRUE(engine.ready()) << "no draw was asked for: an error at once";
}

// What a forked child does with its copy, while the parent's engine is in the given state; then the parent goes on.
class EngineInAForkedChild : public testing::Test {
 protected:
  static void Fork(EngineHandle& engine) {
    const pid_t child = fork();
    if (child == 0) {
      alarm(20);  // a hang ends here
      engine->Close();
      engine.reset();
      _exit(0);
    }
    int status = -1;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
  }
};

TEST_F(EngineInAForkedChild, IsDestroyedWithoutWaitingForTheThreadThatStayedBehind) {
  for (const unsigned threads : {1u, 3u}) {
    for (const std::string& storage : {std::string(), testing::TempDir()}) {
      EngineOptions options = Options(threads);
      options.storage = storage;
      EngineHandle engine(new Engine(options));
      const BatchMemory memory(kSamples, 1, 5);
      Fork(engine);
      for (int step = 0; step < 5; ++step) {
        engine->Submit(memory.View());
        Fork(engine);
        engine->Wait();
      }
      engine->Drain();
      EXPECT_EQ(engine->submitted(), 25u);
      EXPECT_EQ(engine->stored(), 20u);
    }
  }
}

TEST_F(EngineInAForkedChild, IsDestroyedAlsoWhileAStepHoldsTheLocks) {
  BlockingBatch blocking;
  EngineHandle engine(new Engine(Options()));
  engine->Submit(blocking.View());
  blocking.Reached();
  Fork(engine);
  blocking.Open();
  engine->Drain();
  EXPECT_EQ(engine->stored(), 1u);
}

}  // namespace
}  // namespace reprise
