// What engines that draw from each other deliver: all of them in this process, each with a slab that the others map
// again, or read over the network as if they were elsewhere. Losses and ends are in global_end_test.cc.
#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <thread>

#include "engine.h"
#include "test_child.h"
#include "test_ranks.h"

namespace reprise {
namespace {

struct Draws {
  std::vector<uint32_t> sizes;
  std::vector<uint64_t> numbers;
  std::vector<float> weights;
};

// What deterministic engines do, step by step: all ranks insert, then all draw.
class Model {
 public:
  explicit Model(const std::vector<EngineOptions>& options) : options_(options), contents_(options.size()) {
    for (const EngineOptions& one : options) policies_.push_back(MakePolicy(one.policy, one.share));
    draws_.emplace_back(options.size());
    fills_.emplace_back(options.size());
  }

  // rows: of each rank's batch
  void Step(const std::vector<uint64_t>& rows) {
    ++step_;
    std::vector<Fill> fills;
    Fill total;
    for (uint32_t rank = 0; rank < options_.size(); ++rank) {
      Insert(rank, rows[rank]);
      fills.push_back({policies_[rank]->stored(), policies_[rank]->Mass()});
      total.stored += fills.back().stored;
      total.mass += fills.back().mass;
    }
    std::vector<Draws> draws;
    const double scale = static_cast<double>(total.stored) / static_cast<double>(std::max<uint64_t>(total.mass, 1));
    for (const EngineOptions& options : options_) {
      Planner planner(options.draws, options.world_size);
      for (uint32_t rank = 0; rank < fills.size(); ++rank) planner.SetFill(rank, fills[rank].stored);
      Plan plan;
      planner.Make(step_, RandomWords(options.seed, options.rank), plan);
      Draws& own = draws.emplace_back();
      own.sizes = plan.sizes;
      for (size_t i = 0; i < plan.slots.size(); ++i) {
        own.numbers.push_back(contents_[plan.ranks[i]].at(plan.slots[i]));
        own.weights.push_back(static_cast<float>(policies_[plan.ranks[i]]->InverseInclusion(plan.slots[i]) * scale));
      }
    }
    draws_.push_back(std::move(draws));
    fills_.push_back(std::move(fills));
  }

  uint64_t step() const { return step_; }
  const Draws& draws(uint64_t step, uint32_t rank) const { return draws_[step][rank]; }
  const std::vector<Fill>& fills(uint64_t step) const { return fills_[step]; }

 private:
  void Insert(uint32_t rank, uint64_t rows) {
    const EngineOptions& options = options_[rank];
    const RandomWords words(options.seed, rank);
    std::vector<uint64_t> offered(rows);
    std::iota(offered.begin(), offered.end(), 0);
    if (options.candidates && options.candidates < rows) {
      Chooser().Choose(words, purpose::kCandidates, step_, rows, options.candidates, offered);
      std::sort(offered.begin(), offered.end());
    }
    const uint64_t first = BatchOf(rank, step_) * Samples::kMaxRows;
    std::vector<int64_t> labels;
    for (const uint64_t row : offered) labels.push_back(Samples::Label(first + row));
    std::vector<Write> writes;
    policies_[rank]->Insert(labels, rows, step_, words, writes);
    for (const Write& write : writes) contents_[rank][write.slot] = first + offered[write.row];
  }

  const std::vector<EngineOptions> options_;
  std::vector<std::unique_ptr<Policy>> policies_;
  std::vector<std::map<uint32_t, uint64_t>> contents_;  // of each rank: slot -> sample
  std::vector<std::vector<Draws>> draws_;               // of each step: of each rank
  std::vector<std::vector<Fill>> fills_;
  uint64_t step_ = 0;
};

// One rank as its training loop drives it.
class Rank {
 public:
  Rank(const EngineOptions& options, const Model* model)
      : options_(options), samples_(options.field_bytes), model_(model) {}

  // `batch`: whose samples; the step's own where the model is to know them.
  void Submit(Engine& engine, uint64_t batch, uint64_t rows) {
    batches_.push_back(std::make_unique<BatchMemory>(samples_, BatchOf(options_.rank, batch), rows));
    engine.Submit(batches_.back()->View());
    Ask(++step_);
  }
  void SubmitDraw(Engine& engine) {
    engine.SubmitDraw();
    Ask(step_);
  }
  bool has_draw() const { return !started_ || !pending_.empty(); }
  // Returns the step whose draws it has checked.
  void Wait(Engine& engine) {
    const Delivery delivery = engine.Wait();
    uint64_t step = 0;
    if (std::exchange(started_, true)) {
      step = pending_.front();
      pending_.pop_front();
    }
    if (model_) Check(engine.staging(delivery.slot), delivery, step);
  }
  void DropDraws() { pending_.clear(); }
  uint64_t step() const { return step_; }
  const EngineOptions& options() const { return options_; }
  const Samples& samples() const { return samples_; }

 private:
  void Ask(uint64_t step) {
    pending_.push_back(step);
    if (pending_.size() > 2) pending_.pop_front();
  }

  void Check(const Staging& staging, const Delivery& delivery, uint64_t step) const {
    SCOPED_TRACE("rank " + std::to_string(options_.rank) + ", draw of step " + std::to_string(step));
    if (step == 0) {
      EXPECT_EQ(Snapshot::Rows(delivery.sizes), 0u);
      return;
    }
    const Draws& expected = model_->draws(step, options_.rank);
    ASSERT_EQ(delivery.sizes, expected.sizes);
    ASSERT_EQ(NumbersOf(staging, delivery), expected.numbers);
    ASSERT_EQ(FlawOf(samples_, staging, delivery), "");
    for (size_t i = 0; i < expected.weights.size(); ++i) {
      ASSERT_EQ(staging.weights()[staging.front() + i], expected.weights[i]) << "row " << i;
    }
  }

  const EngineOptions options_;
  const Samples samples_;
  const Model* const model_;
  std::vector<std::unique_ptr<BatchMemory>> batches_;
  std::deque<uint64_t> pending_;
  uint64_t step_ = 0;
  bool started_ = false;
};

std::vector<EngineOptions> OptionsOf(uint32_t num_ranks, const std::string& policy, bool deterministic,
                                     Way way = Way::kMemory) {
  std::vector<EngineOptions> all;
  for (uint32_t rank = 0; rank < num_ranks; ++rank) {
    EngineOptions options;
    options.policy = policy;
    options.field_bytes = {24, 3000};
    options.share = std::vector<uint32_t>{9, 30, 1, 17, 4}[rank];
    options.draws = {rank % 3 * 3 + 4, 2};
    options.candidates = rank == 1 ? 5 : 0;
    options.seed = 12;
    options.rank = rank;
    options.world_size = num_ranks;
    options.threads = 1 + rank % 2;
    options.exchanges = true;
    options.deterministic = deterministic;
    options.limit_s = 100;
    options.network = NetworkFor(way);
    all.push_back(std::move(options));
  }
  return all;
}

std::vector<EngineHandle> EnginesOf(const std::vector<EngineOptions>& options) {
  std::vector<EngineHandle> engines;
  for (const EngineOptions& one : options) engines.emplace_back(new Engine(one));
  Connect(engines);
  return engines;
}

// Rank 1 has nothing for a while, all have batches of 0 rows now and then.
uint64_t RowsOf(uint32_t rank, uint64_t step) {
  if (rank == 1 && step < 12) return 0;
  return std::mt19937_64(rank * 1000 + step)() % 5 ? (step * 7 + rank * 3) % 11 : 0;
}

void RunSteps(Model& model, uint64_t num_steps, uint32_t num_ranks) {
  for (uint64_t step = model.step() + 1; step <= num_steps; ++step) {
    std::vector<uint64_t> rows;
    for (uint32_t rank = 0; rank < num_ranks; ++rank) rows.push_back(RowsOf(rank, step));
    model.Step(rows);
  }
}

// Each in a thread of its own.
void ForAll(std::deque<Rank>& ranks, const std::function<void(uint32_t, Rank&)>& drive) {
  std::vector<std::thread> threads;
  for (uint32_t rank = 0; rank < ranks.size(); ++rank) threads.emplace_back([&, rank] { drive(rank, ranks[rank]); });
  for (std::thread& thread : threads) thread.join();
}

void Dawdle(std::mt19937_64& random, uint32_t rank) {
  if (random() % 3 == 0) std::this_thread::sleep_for(std::chrono::microseconds(random() % (1 + rank * 300)));
}

class GlobalDraws : public testing::TestWithParam<std::tuple<uint32_t, const char*, Way>> {
 protected:
  void SetUp() override {
    const std::string reason = WhyNot(way_);
    if (!reason.empty()) GTEST_SKIP() << reason;
  }

  const uint32_t num_ranks_ = std::get<0>(GetParam());
  const Way way_ = std::get<2>(GetParam());
  const std::vector<EngineOptions> options_ = OptionsOf(num_ranks_, std::get<1>(GetParam()), true, way_);
  const Deadline deadline_{200};
};

std::string NameOfDraws(const testing::TestParamInfo<std::tuple<uint32_t, const char*, Way>>& info) {
  const Way way = std::get<2>(info.param);
  return std::to_string(std::get<0>(info.param)) + std::get<1>(info.param) + (way == Way::kMemory ? "" : NameOf(way));
}

INSTANTIATE_TEST_SUITE_P(Ranks, GlobalDraws,
                         testing::Combine(testing::Values(2u, 3u, 5u),
                                          testing::Values("class_balanced", "reservoir", "fifo"),
                                          testing::Values(Way::kMemory)),
                         NameOfDraws);
INSTANTIATE_TEST_SUITE_P(RanksApart, GlobalDraws,
                         testing::Combine(testing::Values(2u, 3u), testing::Values("class_balanced"),
                                          testing::Values(Way::kRequests, Way::kGets)),
                         NameOfDraws);

TEST_P(GlobalDraws, AreThoseOfTheModelHoweverFastRanksAre) {
  constexpr uint64_t kSteps = 60;
  Model model(options_);
  RunSteps(model, kSteps, num_ranks_);
  for (uint64_t seed = 0; seed < 3; ++seed) {
    const std::vector<EngineHandle> engines = EnginesOf(options_);
    std::deque<Rank> ranks;
    for (const EngineOptions& options : options_) ranks.emplace_back(options, &model);
    ForAll(ranks, [&](uint32_t number, Rank& rank) {
      std::mt19937_64 random(seed * 10 + number);
      Engine& engine = *engines[number];
      const uint32_t slowness = static_cast<uint32_t>((number + seed) % num_ranks_);
      while (rank.step() < kSteps) {
        Dawdle(random, slowness);
        rank.Submit(engine, rank.step() + 1, RowsOf(number, rank.step() + 1));
        // Some draws are not waited for.
        for (uint64_t waits = random() % 3; waits > 0 && rank.has_draw(); --waits) rank.Wait(engine);
        if (random() % 16 == 0) engine.Drain();
      }
      while (rank.has_draw()) rank.Wait(engine);
      engine.Close();  // though others may not have the draws of their last steps yet
    });
    for (const EngineHandle& engine : engines) EXPECT_FALSE(engine->any_lost());
    if (HasFailure()) return;
  }
}

TEST_P(GlobalDraws, GoOnFromLoadedContentsAsIfNothingHadHappened) {
  constexpr uint64_t kFirst = 20, kSteps = 50;
  Model model(options_);
  RunSteps(model, kSteps, num_ranks_);
  std::vector<EngineHandle> engines = EnginesOf(options_);
  std::deque<Rank> ranks;
  for (const EngineOptions& options : options_) ranks.emplace_back(options, &model);
  std::vector<std::unique_ptr<Snapshot>> snapshots(num_ranks_);
  // Every rank once with a different number of draws in flight.
  const auto go_on = [&](uint32_t number, Rank& rank, uint64_t until) {
    while (rank.step() < until) {
      rank.Submit(*engines[number], rank.step() + 1, RowsOf(number, rank.step() + 1));
      if ((rank.step() + number) % 4 != 0 && rank.has_draw()) rank.Wait(*engines[number]);
    }
  };
  ForAll(ranks, [&](uint32_t number, Rank& rank) {
    go_on(number, rank, kFirst);
    Engine& engine = *engines[number];
    snapshots[number] = std::make_unique<Snapshot>(engine, rank.samples());
    const Snapshot& snapshot = *snapshots[number];
    for (int repeat = 0; repeat < 3; ++repeat) {
      // Steps that are taken back, with other samples, as many on every rank.
      Rank discarded(rank.options(), nullptr);
      for (uint64_t step = 1; step <= static_cast<uint64_t>(repeat); ++step) discarded.Submit(engine, 900 + step, 9);
      snapshot.LoadInto(engine);
      const std::vector<Fill> fills = engine.fills();
      for (uint32_t other = 0; other < num_ranks_; ++other) {
        EXPECT_EQ(fills[other].stored, model.fills(kFirst)[other].stored);
        EXPECT_EQ(fills[other].mass, model.fills(kFirst)[other].mass);
      }
      engine.Drain();  // the discarded batches go
    }
    go_on(number, rank, kFirst + 10);
  });
  ASSERT_FALSE(HasFailure());

  // Into new engines, as after a restart; what goes back to step 20 is once more ahead of it.
  ForAll(ranks, [&](uint32_t number, Rank& rank) {
    while (rank.has_draw()) rank.Wait(*engines[number]);
    snapshots[number] = std::make_unique<Snapshot>(*engines[number], rank.samples());
  });
  engines = EnginesOf(options_);
  ForAll(ranks, [&](uint32_t number, Rank& rank) {
    Engine& engine = *engines[number];
    snapshots[number]->LoadInto(engine);
    go_on(number, rank, kFirst + 20);
    // Without the draws that were in flight, which are asked for again from the loaded contents.
    engine.Drain();
    Snapshot without_draws(engine, rank.samples());
    without_draws.draws.clear();
    without_draws.fills.clear();
    without_draws.LoadInto(engine);
    rank.DropDraws();
    rank.SubmitDraw(engine);
    rank.Wait(engine);
    const std::vector<Fill> fills = engine.fills();
    for (uint32_t other = 0; other < num_ranks_; ++other) {
      EXPECT_EQ(fills[other].stored, model.fills(kFirst + 20)[other].stored);
      EXPECT_EQ(fills[other].mass, model.fills(kFirst + 20)[other].mass);
    }
    go_on(number, rank, kSteps);
    while (rank.has_draw()) rank.Wait(engine);
  });
}

TEST(GlobalFills, AreThoseOfAllRanks) {
  const Deadline deadline(100);
  for (const bool deterministic : {false, true}) {
    const std::vector<EngineOptions> options = OptionsOf(3, "reservoir", deterministic);
    const std::vector<EngineHandle> engines = EnginesOf(options);
    std::deque<Rank> ranks;
    for (const EngineOptions& one : options) ranks.emplace_back(one, nullptr);
    for (const EngineHandle& engine : engines) EXPECT_EQ(engine->fills().size(), 3u);
    for (uint64_t step = 1; step <= 6; ++step) {
      for (uint32_t rank = 0; rank < 3; ++rank) ranks[rank].Submit(*engines[rank], step, rank == 1 && step < 4 ? 0 : 4);
      for (const EngineHandle& engine : engines) engine->Drain();
      for (const EngineHandle& engine : engines) {
        const std::vector<Fill> fills = engine->fills();
        ASSERT_EQ(fills.size(), 3u);
        for (uint32_t rank = 0; rank < 3; ++rank) {
          EXPECT_EQ(fills[rank].stored, engines[rank]->stored());
          EXPECT_EQ(fills[rank].mass, engines[rank]->mass());
        }
      }
    }
    engines[2]->Close();
    if (deterministic) continue;  // as of its last step
    EXPECT_EQ(engines[0]->fills()[2].stored, 0u);
    EXPECT_EQ(engines[0]->fills()[0].stored, 9u);
  }
}

// Those who read each other's memory ask nobody, and so hear of a rank only what it says unasked.
TEST(GlobalFills, ReachRanksThatNeverReadEachOther) {
  const Deadline deadline(100);
  constexpr uint32_t kRanks = 5;
  for (const Way way : {Way::kRequests, Way::kGets}) {
    if (const std::string reason = WhyNotLeave(way); !reason.empty()) GTEST_SKIP() << reason;
    std::vector<EngineOptions> options = OptionsOf(kRanks, "fifo", false, way);
    for (EngineOptions& one : options) {
      one.share = 4;
      one.draws = {0};
    }
    const std::vector<EngineHandle> engines = EnginesOf(options);
    std::deque<Rank> ranks;
    for (const EngineOptions& one : options) ranks.emplace_back(one, nullptr);
    const auto known = [&] {
      for (const EngineHandle& engine : engines) {
        for (const Fill& fill : engine->fills()) {
          if (fill.stored != 4) return false;
        }
      }
      return true;
    };
    // All know it a few steps after the last one has filled its share, but for messages that are still on their way.
    for (uint64_t step = 1; step < 4 || !known(); ++step) {
      for (uint32_t rank = 0; rank < kRanks; ++rank) ranks[rank].Submit(*engines[rank], step, 2);
      for (const EngineHandle& engine : engines) engine->Drain();
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      ASSERT_LT(step, 10'000u);
    }
  }
}

TEST(GlobalDrawsAnyTime, OneRankAloneDrawsFromItself) {
  const Deadline deadline(100);
  for (const bool deterministic : {false, true}) {
    const std::vector<EngineOptions> options = OptionsOf(1, "class_balanced", deterministic);
    Model model(options);
    RunSteps(model, 30, 1);
    const std::vector<EngineHandle> engines = EnginesOf(options);
    Rank rank(options[0], &model);
    for (uint64_t step = 1; step <= 30; ++step) {
      rank.Submit(*engines[0], step, RowsOf(0, step));
      rank.Wait(*engines[0]);
    }
    rank.Wait(*engines[0]);
  }
}

class GlobalDrawsAtFullSpeed : public testing::TestWithParam<Way> {};

INSTANTIATE_TEST_SUITE_P(Ways, GlobalDrawsAtFullSpeed, testing::Values(Way::kMemory, Way::kRequests, Way::kGets),
                         [](const auto& info) { return NameOf(info.param); });

// Shares so small that slots are overwritten while others read them, all the time.
TEST_P(GlobalDrawsAtFullSpeed, HaveWholeSamplesOfEveryRankWhileAllWrite) {
#if defined(__SANITIZE_THREAD__)
  if (GetParam() != Way::kMemory) GTEST_SKIP() << "reads while others write, on purpose";
#endif
  if (const std::string reason = WhyNot(GetParam()); !reason.empty()) GTEST_SKIP() << reason;
  const Deadline deadline(230);
  const uint64_t kSteps = GetParam() == Way::kMemory ? 400 : 200;
  for (const uint32_t num_ranks : {2u, 4u}) {
    std::vector<EngineOptions> options = OptionsOf(num_ranks, "reservoir", false, GetParam());
    for (EngineOptions& one : options) {
      one.policy = std::vector<std::string>{"fifo", "reservoir", "class_balanced", "fifo"}[one.rank];
      one.field_bytes = {16, 12288};
      one.share = 6;
      one.draws = {7, 3};
      one.candidates = 0;
    }
    const std::vector<EngineHandle> engines = EnginesOf(options);
    std::deque<Rank> ranks;
    for (const EngineOptions& one : options) ranks.emplace_back(one, nullptr);
    std::atomic<uint32_t> num_done{0};
    ForAll(ranks, [&](uint32_t number, Rank& rank) {
      Engine& engine = *engines[number];
      std::deque<BatchMemory> batches;
      std::vector<uint64_t> rows_of_rank(num_ranks, 0);
      std::unique_ptr<Snapshot> snapshot;
      bool done = false;
      // Until all have made their steps and drawn from all, so that the last one does not run alone.
      for (uint64_t step = 1; num_done < num_ranks && !HasFailure(); ++step) {
        batches.emplace_back(rank.samples(), BatchOf(number, step), 6);
        engine.Submit(batches.back().View());
        const Delivery delivery = engine.Wait();
        ASSERT_EQ(FlawOf(rank.samples(), engine.staging(delivery.slot), delivery), "") << "step " << step;
        for (const uint64_t drawn : NumbersOf(engine.staging(delivery.slot), delivery)) ++rows_of_rank[RankOf(drawn)];
        // Contents that are loaded are written just as well.
        if (number == 1 && step % 64 == 0) snapshot = std::make_unique<Snapshot>(engine, rank.samples());
        if (snapshot && step % 8 == 0) snapshot->LoadInto(engine);
        while (engine.done() < engine.step() || batches.size() > 8) {
          engine.Drain();
          batches.clear();
        }
        const bool enough =
            std::all_of(rows_of_rank.begin(), rows_of_rank.end(), [&](uint64_t rows) { return rows > kSteps; });
        if (step >= kSteps && enough && !std::exchange(done, true)) ++num_done;
      }
      engine.Drain();
    });
    for (const EngineHandle& engine : engines) EXPECT_FALSE(engine->any_lost());
    ASSERT_FALSE(HasFailure());
  }
}

}  // namespace
}  // namespace reprise
