// What the engine stores and delivers, against a model that does the same things one after the other. Errors, closing
// and forks are in engine_end_test.cc.
#include "engine.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <filesystem>
#include <map>
#include <random>
#include <stdexcept>
#include <utility>

#include "test_samples.h"

namespace reprise {
namespace {

EngineOptions Options(std::string policy, std::vector<uint64_t> field_bytes, uint32_t share,
                      std::vector<uint32_t> draws) {
  EngineOptions options;
  options.policy = std::move(policy);
  options.field_bytes = std::move(field_bytes);
  options.share = share;
  options.draws = std::move(draws);
  return options;
}

// Samples by number where the engine has bytes; otherwise the engine as its header describes it.
class Model {
 public:
  struct Draws {
    std::vector<uint32_t> sizes;
    std::vector<uint64_t> numbers;
    std::vector<float> weights;
  };

  explicit Model(const EngineOptions& options)
      : options_(options),
        words_(options.seed, options.rank),
        policy_(MakePolicy(options.policy, options.share)),
        planner_(options.draws, options.world_size) {}

  void Submit(uint64_t batch, uint64_t rows) {
    ++step_;
    submitted_ += rows;
    std::vector<uint64_t> offered(rows);
    for (uint64_t row = 0; row < rows; ++row) offered[row] = row;
    if (options_.candidates && options_.candidates < rows) {
      chooser_.Choose(words_, purpose::kCandidates, step_, rows, options_.candidates, offered);
      std::sort(offered.begin(), offered.end());
    }
    std::vector<int64_t> labels;
    for (const uint64_t row : offered) labels.push_back(Samples::Label(batch * Samples::kMaxRows + row));
    std::vector<Write> writes;
    policy_->Insert(labels, rows, step_, words_, writes);
    for (const Write& write : writes) contents_[write.slot] = batch * Samples::kMaxRows + offered[write.row];
    SubmitDraw();
  }

  void SubmitDraw() {
    Plan plan;
    planner_.SetFill(options_.rank, contents_.size());
    planner_.Make(step_, words_, plan);
    Draws draws{plan.sizes, {}, {}};
    for (const uint32_t slot : plan.slots) {
      draws.numbers.push_back(contents_.at(slot));
      const double scale = static_cast<double>(contents_.size()) / static_cast<double>(policy_->Mass());
      draws.weights.push_back(static_cast<float>(policy_->InverseInclusion(slot) * scale));
    }
    pending_.push_back(std::move(draws));
    if (pending_.size() > 2) pending_.pop_front();
  }

  bool has_draw() const { return !started_ || !pending_.empty(); }
  Draws Wait() {
    if (!started_) {
      started_ = true;
      return {std::vector<uint32_t>(options_.draws.size(), 0), {}, {}};
    }
    Draws draws = std::move(pending_.front());
    pending_.pop_front();
    return draws;
  }

  const std::map<uint32_t, uint64_t>& contents() const { return contents_; }
  const std::deque<Draws>& pending() const { return pending_; }
  const Policy& policy() const { return *policy_; }
  uint64_t step() const { return step_; }
  uint64_t submitted() const { return submitted_; }
  bool started() const { return started_; }

 private:
  const EngineOptions options_;
  RandomWords words_;
  std::unique_ptr<Policy> policy_;
  Planner planner_;
  Chooser chooser_;
  std::map<uint32_t, uint64_t> contents_;  // slot -> sample
  std::deque<Draws> pending_;
  uint64_t step_ = 0;
  uint64_t submitted_ = 0;
  bool started_ = false;
};

// An engine and its model side by side. Batches are freed as soon as done() allows that.
class Pair {
 public:
  explicit Pair(const EngineOptions& options)
      : options_(options), samples_(options.field_bytes), engine_(new Engine(options)), model_(options) {}
  ~Pair() { engine_.reset(); }  // reads batches until then

  Engine& engine() { return *engine_; }
  Model& model() { return model_; }

  void Submit(uint64_t rows) {
    auto memory = std::make_unique<BatchMemory>(samples_, ++batches_, rows);
    const uint64_t number = engine_->Submit(memory->View());
    model_.Submit(batches_, rows);
    ASSERT_EQ(number, model_.step());
    batches_alive_.emplace_back(number, std::move(memory));
    EXPECT_LE(number - engine_->done(), Engine::kMaxQueued);
    FreeDone();
  }

  void SubmitDraw() {
    engine_->SubmitDraw();
    model_.SubmitDraw();
  }

  void Wait() {
    const uint32_t expected_slot = engine_->next_slot();
    const Delivery delivery = engine_->Wait();
    EXPECT_EQ(delivery.slot, expected_slot);
    held_ = model_.Wait();
    held_slot_ = delivery.slot;
    CheckRows(delivery, held_);
    FreeDone();
  }

  void Drain() {
    engine_->Drain();
    EXPECT_EQ(engine_->done(), model_.step());
    FreeDone();
    EXPECT_TRUE(batches_alive_.empty());
  }

  void ReserveFront(uint64_t rows) {
    engine_->ReserveFront(rows);
    for (uint32_t slot = 0; slot < Engine::kSlots; ++slot) ASSERT_EQ(engine_->staging(slot).front(), rows);
    if (held_slot_ != Engine::kSlots) CheckRows({held_slot_, held_.sizes}, held_);
  }

  void CheckContents() {
    ASSERT_EQ(engine_->stored(), model_.contents().size());
    EXPECT_EQ(engine_->submitted(), model_.submitted());
    EXPECT_EQ(engine_->step(), model_.step());
    EXPECT_EQ(engine_->mass(), model_.policy().Mass());
    EXPECT_EQ(engine_->policy_state(), model_.policy().State());
    EXPECT_EQ(engine_->started(), model_.started());
    const Snapshot snapshot(*engine_, samples_);
    const size_t num_fields = samples_.field_bytes().size();
    std::vector<int64_t> labels;
    for (const auto& [slot, number] : model_.contents()) {
      labels.push_back(Samples::Label(number));
      for (size_t field = 0; field < num_fields; ++field) {
        EXPECT_TRUE(samples_.Is(number, field, snapshot.columns[field].data() + slot * samples_.field_bytes()[field]));
      }
      int64_t label, task;
      std::memcpy(&label, snapshot.columns[num_fields].data() + slot * sizeof(label), sizeof(label));
      std::memcpy(&task, snapshot.columns[num_fields + 1].data() + slot * sizeof(task), sizeof(task));
      EXPECT_EQ(label, labels.back());
      EXPECT_EQ(task, Samples::Task(number));
    }
    EXPECT_EQ(engine_->labels(), labels);
    CheckVersions();
  }

  // A slot has the version that it had at the last look if, and only if, it has the sample that it had then.
  void CheckVersions() {
    const std::vector<int64_t> versions = engine_->versions();
    ASSERT_EQ(versions.size(), model_.contents().size());
    std::map<uint32_t, std::pair<uint64_t, int64_t>> now;
    for (const auto& [slot, number] : model_.contents()) {
      now[slot] = {number, versions[slot]};
      const auto before = looked_at_.find(slot);
      if (before == looked_at_.end()) continue;
      EXPECT_EQ(before->second.first == number, before->second.second == versions[slot]) << "slot " << slot;
    }
    looked_at_ = std::move(now);
  }

  void CheckPending() {
    const std::vector<Delivery> pending = engine_->pending();
    ASSERT_EQ(pending.size(), model_.pending().size());
    for (size_t i = 0; i < pending.size(); ++i) CheckRows(pending[i], model_.pending()[i]);
  }

  // Go on with a new engine that gets everything from the old one.
  void MoveToNewEngine() {
    const Snapshot snapshot(*engine_, samples_);
    batches_alive_.clear();
    engine_.reset(new Engine(options_));
    snapshot.LoadInto(*engine_);
    held_slot_ = Engine::kSlots;
    looked_at_.clear();
    EXPECT_EQ(engine_->done(), model_.step());
  }

 private:
  void FreeDone() {
    const uint64_t done = engine_->done();
    while (!batches_alive_.empty() && batches_alive_.front().first <= done) batches_alive_.pop_front();
  }

  void CheckRows(const Delivery& delivery, const Model::Draws& expected) {
    ASSERT_EQ(delivery.sizes, expected.sizes);
    const Staging& staging = engine_->staging(delivery.slot);
    for (uint64_t i = 0; i < expected.numbers.size(); ++i) {
      const uint64_t row = staging.front() + i;
      for (size_t field = 0; field < samples_.field_bytes().size(); ++field) {
        const std::byte* const found = staging.field(field) + row * samples_.field_bytes()[field];
        ASSERT_TRUE(samples_.Is(expected.numbers[i], field, found)) << "row " << i << " of step " << model_.step();
      }
      ASSERT_EQ(staging.labels()[row], Samples::Label(expected.numbers[i]));
      ASSERT_EQ(staging.tasks()[row], Samples::Task(expected.numbers[i]));
      ASSERT_EQ(staging.ranks()[row], options_.rank);
      ASSERT_EQ(staging.weights()[row], expected.weights[i]);
    }
  }

  const EngineOptions options_;
  const Samples samples_;
  std::deque<std::pair<uint64_t, std::unique_ptr<BatchMemory>>> batches_alive_;  // by step
  EngineHandle engine_;
  Model model_;
  std::map<uint32_t, std::pair<uint64_t, int64_t>> looked_at_;  // slot -> number and version of its sample
  Model::Draws held_;
  uint32_t held_slot_ = Engine::kSlots;  // none yet
  uint64_t batches_ = 0;
};

class EngineWithEveryPolicy : public testing::TestWithParam<const char*> {
 protected:
  EngineOptions Options(std::vector<uint64_t> field_bytes, uint32_t share, std::vector<uint32_t> draws) {
    return reprise::Options(GetParam(), std::move(field_bytes), share, std::move(draws));
  }
};

TEST_P(EngineWithEveryPolicy, StoresAndDeliversWhatTheModelDoesInAnyOrderOfCalls) {
  for (uint64_t seed = 0; seed < Often<uint64_t>(40); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937_64 random(seed);
    EngineOptions options = Options({}, 1 + random() % (random() % 2 ? 8 : 200), {});
    options.field_bytes.resize(1 + random() % 3);
    for (uint64_t& bytes : options.field_bytes) bytes = std::vector<uint64_t>{1, 3, 8, 77, 1030, 4096}[random() % 6];
    const bool is_large = seed % 8 == 0;
    if (is_large) options.field_bytes.push_back(100 << 10);
    options.draws.resize(random() % 4);
    for (uint32_t& size : options.draws) size = static_cast<uint32_t>(random() % 12);
    options.candidates = random() % 3 ? static_cast<uint32_t>(random() % 20) : 0;
    options.seed = random();
    options.world_size = 1 + static_cast<uint32_t>(random() % 3);
    options.rank = static_cast<uint32_t>(random() % options.world_size);
    options.threads = 1 + static_cast<unsigned>(random() % 3);
    if (seed % 4 == 1) options.storage = testing::TempDir();

    Pair pair(options);
    const uint64_t most_rows = is_large ? 6 : 30;
    for (int call = 0; call < (is_large ? 40 : 150) && !HasFatalFailure(); ++call) {
      const uint64_t kind = random() % 100;
      if (kind < 48) {
        pair.Submit(random() % 5 ? random() % most_rows : 0);
      } else if (kind < 88) {
        if (pair.model().has_draw()) pair.Wait();
      } else if (kind < 91) {
        pair.Drain();
      } else if (kind < 93) {
        pair.ReserveFront(random() % 40);
      } else if (kind < 95) {
        pair.SubmitDraw();
      } else if (kind < 97) {
        pair.CheckPending();
      } else if (kind < 99) {
        pair.CheckContents();
      } else {
        pair.MoveToNewEngine();
      }
    }
    pair.CheckContents();
    pair.CheckPending();
    if (HasFailure()) return;
  }
}

TEST_P(EngineWithEveryPolicy, HelpersAndStorageChangeNothing) {
  for (unsigned threads = 1; threads <= 4; ++threads) {
    for (const std::string& storage : {std::string(), testing::TempDir()}) {
      // Large enough for helpers to be woken.
      EngineOptions options = Options({40'000, 16}, 64, {16, 16});
      options.threads = threads;
      options.storage = storage;
      Pair pair(options);
      for (int step = 0; step < Often(24); ++step) {
        pair.Wait();
        pair.Submit(16);
      }
      pair.CheckContents();
    }
  }
}

TEST_P(EngineWithEveryPolicy, GoesOnFromItsStateAsIfNothingHadHappened) {
  Pair pair(Options({24, 5}, 30, {4, 3}));
  std::mt19937_64 random(7);
  for (int round = 0; round < 40; ++round) {
    for (uint64_t i = random() % 4; i > 0; --i) pair.Submit(random() % 12);
    if (random() % 2 && pair.model().has_draw()) pair.Wait();
    pair.MoveToNewEngine();
    pair.CheckPending();
    pair.CheckContents();
  }
}

INSTANTIATE_TEST_SUITE_P(Policies, EngineWithEveryPolicy, testing::Values("class_balanced", "reservoir", "fifo"),
                         [](const auto& info) { return std::string(info.param); });

TEST(Engine, TheFirstWaitReturnsDrawsWithoutRowsAlsoAfterASubmit) {
  Pair pair(Options("reservoir", {8}, 10, {3, 4}));
  pair.Submit(5);
  EXPECT_FALSE(pair.engine().started());
  EXPECT_EQ(pair.engine().Wait().sizes, (std::vector<uint32_t>{0, 0}));
  EXPECT_TRUE(pair.engine().started());
  EXPECT_EQ(pair.engine().Wait().sizes, (std::vector<uint32_t>{3, 4}));
}

TEST(Engine, WaitWithoutASubmitIsAnErrorThatPasses) {
  Pair pair(Options("reservoir", {8}, 10, {3}));
  pair.Wait();
  EXPECT_THROW(pair.engine().Wait(), std::runtime_error);
  pair.Submit(5);
  pair.Wait();
  EXPECT_THROW(pair.engine().Wait(), std::runtime_error);
  pair.Submit(0);
  pair.Wait();
}

TEST(Engine, OfDrawsThatNobodyWaitedForTheLatestTwoAreKept) {
  Pair pair(Options("fifo", {8}, 4, {4}));
  pair.Wait();
  for (int step = 0; step < 9; ++step) pair.Submit(4);
  EXPECT_EQ(pair.engine().pending().size(), 2u);
  pair.Wait();  // of step 8, as the model says
  pair.Wait();
  EXPECT_THROW(pair.engine().Wait(), std::runtime_error);
}

TEST(Engine, ADrawStaysAsItIsUntilTheNextWaitReturns) {
  Pair pair(Options("fifo", {16}, 6, {6}));
  pair.Wait();
  pair.Submit(6);
  const Delivery held = [&] { return pair.engine().Wait(); }();
  const Staging& staging = pair.engine().staging(held.slot);
  const std::vector<std::byte> rows(staging.field(0), staging.field(0) + 6 * 16);
  const std::vector<int64_t> labels(staging.labels(), staging.labels() + 6);
  for (int step = 0; step < 7; ++step) pair.Submit(6);
  pair.Drain();
  EXPECT_TRUE(std::equal(rows.begin(), rows.end(), staging.field(0)));
  EXPECT_TRUE(std::equal(labels.begin(), labels.end(), staging.labels()));
  EXPECT_NE(pair.engine().Wait().slot, held.slot);
}

TEST(Engine, BatchesWithoutRowsOnlyAskForADrawAndNeedNoMemory) {
  EngineOptions options = Options("class_balanced", {8}, 10, {3});
  Engine engine(options);
  Batch nothing;
  nothing.fields = {nullptr};
  EXPECT_EQ(engine.Submit(nothing), 1u);
  engine.Wait();
  EXPECT_EQ(engine.Wait().sizes, (std::vector<uint32_t>{0}));
  EXPECT_EQ(engine.step(), 1u);
  EXPECT_EQ(engine.submitted(), 0u);
}

TEST(Engine, ABatchWithAnotherNumberOfFieldsIsRefusedAndNothingOfItStored) {
  Pair pair(Options("fifo", {8, 4}, 10, {3}));
  const BatchMemory memory(Samples({8, 4}), 1, 3);
  for (const size_t num_fields : {0, 1, 3}) {
    Batch batch = memory.View();
    batch.fields.resize(num_fields);
    EXPECT_THROW(pair.engine().Submit(batch), std::invalid_argument);
  }
  pair.CheckContents();
  pair.Submit(3);
  pair.CheckContents();
}

TEST(Engine, NewSamplesInFrontAndTheDrawAreContiguousWhateverTheirNumber) {
  Pair pair(Options("fifo", {12}, 8, {5}));
  const Samples samples({12});
  pair.Wait();
  pair.Submit(8);
  pair.ReserveFront(10);
  pair.CheckPending();
  for (const uint64_t rows : {10, 3, 7}) {
    const uint32_t slot = pair.engine().next_slot();
    const Staging& staging = pair.engine().staging(slot);
    std::byte* const first = staging.field(0) + (staging.front() - rows) * 12;
    for (uint64_t row = 0; row < rows; ++row) samples.Write(1'000'000 + row, 0, first + row * 12);
    pair.Wait();
    EXPECT_EQ(pair.model().started(), true);
    for (uint64_t row = 0; row < rows; ++row) {
      EXPECT_TRUE(samples.Is(1'000'000 + row, 0, first + row * 12));
      EXPECT_EQ(staging.weights()[staging.front() - rows + row], 1.0f);
    }
    pair.Submit(2);
  }
}

TEST(Engine, AFrontThatIsRefusedLeavesAllSlotsAndDrawsAsTheyAre) {
  Pair pair(Options("fifo", {16}, 8, {5}));
  pair.Wait();
  pair.Submit(8);
  pair.ReserveFront(4);
  for (const uint64_t rows : {uint64_t{1} << 42, uint64_t{1} << 60}) {
    EXPECT_THROW(pair.engine().ReserveFront(rows), std::runtime_error);
    for (uint32_t slot = 0; slot < Engine::kSlots; ++slot) EXPECT_EQ(pair.engine().staging(slot).front(), 4u);
  }
  pair.CheckPending();
  pair.Submit(3);
  pair.Wait();
}

TEST(Engine, LoadingIntoAnEngineThatHasBeenUsedReplacesEverything) {
  const EngineOptions options = Options("reservoir", {8, 3}, 20, {6});
  const Samples samples(options.field_bytes);
  Pair fresh(options), later(options), used(options);
  fresh.Submit(9);
  for (int step = 0; step < 5; ++step) {
    later.Wait();
    later.Submit(9);
  }
  for (int step = 0; step < 9; ++step) {
    used.Submit(12);
    used.Wait();
  }
  for (Pair* source : {&later, &fresh}) {
    const Snapshot snapshot(source->engine(), samples);
    Engine& engine = used.engine();
    const BatchMemory dropped(samples, 500, 2);
    engine.Submit(dropped.View());
    snapshot.LoadInto(engine);
    EXPECT_EQ(engine.stored(), snapshot.columns[0].size() / 8);
    EXPECT_EQ(engine.started(), snapshot.started);
    EXPECT_EQ(engine.step(), snapshot.step);
    EXPECT_EQ(engine.done(), snapshot.step);
    const Delivery first = engine.Wait();
    if (!snapshot.started) {
      EXPECT_EQ(first.sizes, (std::vector<uint32_t>{0})) << "the first draw has rows of another life";
    }
    EXPECT_EQ(Snapshot(engine, samples).columns, snapshot.columns);
  }
}

TEST(Engine, AStateThatCannotBeIsRefusedAndChangesNothing) {
  const EngineOptions options = Options("reservoir", {8}, 5, {2});
  const Samples samples(options.field_bytes);
  Pair pair(options), larger(Options("reservoir", {8}, 6, {2}));
  pair.Wait();
  pair.Submit(9);
  larger.Submit(9);
  const Snapshot good(pair.engine(), samples), of_larger(larger.engine(), samples);
  std::vector<const std::byte*> columns;
  for (const auto& column : of_larger.columns) columns.push_back(column.data());

  Engine& engine = pair.engine();
  EXPECT_THROW(engine.Load(of_larger.policy, 1, 9, true, {}, columns), std::invalid_argument);
  EXPECT_THROW(engine.Load({}, 1, 9, true, {}, columns), std::invalid_argument);
  EXPECT_THROW(engine.Load({{"stored", int64_t{-1}}, {"submitted", int64_t{9}}}, 1, 9, true, {}, columns),
               std::invalid_argument);
  columns.pop_back();
  EXPECT_THROW(engine.Load(good.policy, 1, 9, true, {}, columns), std::invalid_argument);
  pair.CheckContents();
  pair.CheckPending();
  pair.Wait();
  pair.Submit(4);
  pair.Wait();
}

TEST(Engine, APendingDrawThatDoesNotFitIsRefused) {
  Engine engine(Options("fifo", {8}, 10, {3, 2}));
  EXPECT_THROW(engine.AdoptDraw({3}), std::invalid_argument);
  EXPECT_THROW(engine.AdoptDraw({3, 3}), std::invalid_argument);
  EXPECT_THROW(engine.AdoptDraw({3, 2, 0}), std::invalid_argument);
  EXPECT_TRUE(engine.pending().empty());
  const uint32_t first = engine.AdoptDraw({3, 2});
  EXPECT_NE(engine.AdoptDraw({0, 1}), first);
  EXPECT_THROW(engine.AdoptDraw({1, 1}), std::invalid_argument);
  EXPECT_EQ(engine.pending().size(), 2u);
  engine.Wait();
  EXPECT_EQ(engine.Wait().sizes, (std::vector<uint32_t>{3, 2}));
  EXPECT_EQ(engine.Wait().sizes, (std::vector<uint32_t>{0, 1}));
}

TEST(Engine, CountsEveryStepInItsTimings) {
  Pair pair(Options("fifo", {8}, 10, {3}));
  for (int step = 0; step < 6; ++step) {
    pair.Wait();
    pair.Submit(2);
  }
  pair.SubmitDraw();
  pair.Drain();
  std::map<std::string, uint64_t> counts;
  for (const auto& [name, part] : pair.engine().timings()) counts[name] = part->stats().count;
  const std::map<std::string, uint64_t> expected = {
      {"queue", 6}, {"insert", 6}, {"plan", 7}, {"fetch", 7}, {"wait", 6}};
  EXPECT_EQ(counts, expected);
}

TEST(Engine, OptionsThatMakeNoSenseAreRefused) {
  const EngineOptions good = Options("fifo", {8}, 10, {3});
  const auto refuses = [&](auto change) {
    EngineOptions options = good;
    change(options);
    EXPECT_THROW(Engine{options}, std::invalid_argument);
  };
  refuses([](EngineOptions& options) { options.field_bytes.clear(); });
  refuses([](EngineOptions& options) { options.field_bytes = {8, 0}; });
  refuses([](EngineOptions& options) { options.share = 0; });
  refuses([](EngineOptions& options) { options.policy = "lifo"; });
  refuses([](EngineOptions& options) { options.threads = 0; });
  refuses([](EngineOptions& options) { options.rank = 1; });
  refuses([](EngineOptions& options) { options.world_size = 0; });
  Engine{good};
}

TEST(Engine, MemoryThatIsRefusedIsAnErrorWithTheNumbers) {
  const auto refusal = [](const EngineOptions& options) -> std::string {
    try {
      Engine{options};
    } catch (const std::runtime_error& error) {
      return error.what();
    }
    return "none";
  };
  EngineOptions options = Options("fifo", {uint64_t{1} << 40}, 1 << 20, {1});
  EXPECT_NE(refusal(options).find("bytes refused"), std::string::npos) << refusal(options);
  options = Options("fifo", {uint64_t{1} << 47}, 1 << 17, {});  // with the header a little more than 2^64 in all
  EXPECT_NE(refusal(options).find(" bytes refused"), std::string::npos) << refusal(options);
  options = Options("fifo", {uint64_t{1} << 40}, 1, {UINT32_MAX});
  EXPECT_NE(refusal(options).find(" bytes refused"), std::string::npos) << refusal(options);
  options = Options("fifo", {8}, 10, {1});
  options.storage = testing::TempDir() + "/missing/samples";
  EXPECT_NE(refusal(options).find(options.storage), std::string::npos) << refusal(options);
}

}  // namespace
}  // namespace reprise
