// engine_stress N [seed]: N random operations on engines, in every state that they get into, and nothing but that.
//
// One thread is the caller; a second one reads statistics and closes engines at any moment. Samples are tiny, so that
// the operations and not the copies take the time, and every delivered row is checked: its fields, label and task are
// those of one sample, which was submitted to this engine and may still be there, once per draw. What exactly must be
// there is engine_test.cc's business. Meant to run under the sanitizers. Prints operations per second and counts; exits
// with 1 at the first violation.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <filesystem>
#include <functional>
#include <map>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>

#include "engine.h"
#include "test_samples.h"

namespace reprise {
namespace {

struct Violation : std::runtime_error {
  using std::runtime_error::runtime_error;
};

void Check(bool holds, const char* what) {
  if (!holds) throw Violation(what);
}

constexpr const char* kClosed = "the rehearsal buffer is closed";
constexpr const char* kInjected = "injected by the stress program";

// Calls functions on an engine from another thread, one at a time, while the caller goes on.
class Bystander {
 public:
  Bystander() : thread_([this] { Loop(); }) {}
  ~Bystander() {
    Finish();
    task_ = nullptr;
    Begin();
    thread_.join();
  }

  bool is_busy() const { return busy_.load(std::memory_order_acquire); }
  void Start(std::function<void()> task) {
    task_ = std::move(task);
    Begin();
  }
  void Finish() { busy_.wait(true, std::memory_order_acquire); }

 private:
  void Begin() {
    busy_.store(true, std::memory_order_release);
    busy_.notify_all();
  }
  void Loop() {
    for (;;) {
      busy_.wait(false, std::memory_order_acquire);
      if (!task_) return;
      task_();
      busy_.store(false, std::memory_order_release);
      busy_.notify_all();
    }
  }

  std::function<void()> task_;  // with the caller, or while busy with the thread
  std::atomic<bool> busy_{false};
  std::thread thread_;
};

// Which samples may be in an engine: those it was loaded with and all that were submitted afterwards.
struct Origin {
  std::vector<uint64_t> loaded;  // ascending
  uint64_t first_batch;

  bool Includes(uint64_t number, uint64_t batches) const {
    const uint64_t batch = number / Samples::kMaxRows;
    if (batch >= first_batch) return batch < batches;
    return std::binary_search(loaded.begin(), loaded.end(), number);
  }
};

struct Saved {
  EngineOptions options;
  Snapshot snapshot;
  std::vector<uint64_t> numbers;  // of the samples in it, ascending
};

class Stress {
 public:
  explicit Stress(uint64_t seed) : random_(seed) { Open(RandomOptions()); }
  ~Stress() {
    bystander_.Finish();
    engine_.reset();
  }

  // One operation. An exception that had to be expected ends the engine's life, and a new one is opened.
  void Operate() {
    // Else the caller runs nearly every step itself, as it comes back before the engine thread has woken.
    if (Below(6) == 0) {
      std::this_thread::yield();
      for (uint64_t i = Below(3000); i > 0; --i) idled_.store(i, std::memory_order_relaxed);
    }
    try {
      const bool was_closed = closing_ && !bystander_.is_busy();
      const uint64_t engine = engines_;
      RandomOperation();
      if (was_closed && engine == engines_) {
        engine_->Drain();
        throw Violation("a closed engine takes calls");
      }
    } catch (const Violation&) {
      throw;
    } catch (const std::runtime_error& error) {
      const std::string what = error.what();
      Check((closing_ && what == kClosed) || (injected_ && what == kInjected), error.what());
      ++counts_[what == kClosed ? "ended by close" : "ended by an error"];
      Replace();
    }
  }

  void Report() const {
    for (const auto& [name, count] : counts_) std::printf("  %-20s %llu\n", name.c_str(), Number(count));
    std::printf("  %-20s %llu\n", "engines", Number(engines_));
    std::printf("  %-20s %llu\n", "rows checked", Number(rows_checked_));
  }

 private:
  static unsigned long long Number(uint64_t value) { return value; }
  uint64_t Below(uint64_t bound) { return random_() % bound; }

  EngineOptions RandomOptions() {
    EngineOptions options;
    options.field_bytes = {8};
    if (Below(2)) options.field_bytes.push_back(1 + Below(30));
    options.share = 1 + static_cast<uint32_t>(Below(Below(2) ? 4 : 40));
    options.policy = std::vector<std::string>{"class_balanced", "reservoir", "fifo"}[Below(3)];
    options.draws.resize(Below(4));
    for (uint32_t& size : options.draws) size = static_cast<uint32_t>(Below(7));
    options.candidates = static_cast<uint32_t>(Below(4));
    options.seed = random_();
    options.world_size = 1 + static_cast<uint32_t>(Below(2));
    options.rank = static_cast<uint32_t>(Below(options.world_size));
    options.threads = 1 + static_cast<unsigned>(Below(3));
    if (Below(4) == 0) options.storage = std::filesystem::temp_directory_path();
    if (Below(200) == 0) {
      // Large enough for the helpers to be woken, and slow.
      options.field_bytes.push_back(100 << 10);
      options.share = std::min(options.share, 8u);
    }
    return options;
  }

  void Open(EngineOptions options) {
    ++engines_;
    options_ = std::move(options);
    samples_ = Samples(options_.field_bytes);
    engine_.reset(new Engine(options_));
    origin_ = {{}, batches_};
    closing_ = injected_ = started_ = false;
    pending_ = 0;
  }

  // The old engine is closed or simply destroyed, with whatever is queued; its batches may go at once after that.
  void Replace() {
    bystander_.Finish();
    if (Below(2)) {
      engine_->Close();
      memory_.clear();
    }
    engine_.reset();
    memory_.clear();
    if (saved_ && Below(3) == 0) {
      Open(saved_->options);
      Restore();
    } else {
      Open(RandomOptions());
    }
  }

  void RandomOperation() {
    const uint64_t kind = Below(10000);
    if (kind < 4600) return Submit();
    if (kind < 9200) return Wait();
    if (kind < 9500) return Drain();
    if (kind < 9700) return Observe();
    if (kind < 9750) return SubmitDraw();
    if (kind < 9800) return Inspect();
    if (kind < 9850) return ReserveFront();
    if (kind < 9900) return Save();
    if (kind < 9920) return RestoreHere();
    if (kind < 9930) return LoadNonsense();
    if (kind < 9935) return Inject();
    if (kind < 9940) return CloseFromOutside();
    if (kind < 9942) return CloseHere();
    if (kind < 9945) return Replace();
    return Submit();
  }

  void Submit() {
    ++counts_["submit"];
    const uint64_t batch = batches_++;
    auto memory = std::make_unique<BatchMemory>(samples_, batch, Below(5));
    Batch view = memory->View();
    // Kept also if this throws: nobody says then that the engine has not begun with it.
    memory_.emplace_back(UINT64_MAX, std::move(memory));
    memory_.back().first = engine_->Submit(std::move(view));
    Check(memory_.back().first <= engine_->done() + Engine::kMaxQueued, "more steps are queued than allowed");
    pending_ = std::min<uint64_t>(pending_ + 1, Engine::kSlots - 1);
    FreeDone();
  }

  void SubmitDraw() {
    ++counts_["submit_draw"];
    engine_->SubmitDraw();
    pending_ = std::min<uint64_t>(pending_ + 1, Engine::kSlots - 1);
  }

  void Wait() {
    ++counts_["wait"];
    const bool has_draw = !started_ || pending_;
    try {
      const uint32_t slot = engine_->next_slot();
      const Delivery delivery = engine_->Wait();
      Check(has_draw, "a draw that nobody asked for");
      Check(delivery.slot == slot, "a draw in another slot than announced");
      if (started_) {
        --pending_;
        CheckRows(delivery);
      } else {
        Check(Snapshot::Rows(delivery.sizes) == 0, "the first draw has rows");
      }
      started_ = true;
    } catch (const std::runtime_error& error) {
      if (has_draw || !std::string(error.what()).starts_with("wait() called twice")) throw;
    }
    FreeDone();
  }

  void Drain() {
    ++counts_["drain"];
    engine_->Drain();
    FreeDone();
    Check(memory_.empty(), "a drained engine is not done with all steps");
  }

  void Observe() {
    if (bystander_.is_busy()) return;
    ++counts_["observe"];
    bystander_.Start([engine = engine_.get(), this] {
      const uint64_t done = engine->done();
      for (const auto& [name, part] : engine->timings()) observed_ += part->stats().count + part->recent().size();
      observed_ += done;
    });
  }

  void Inspect() {
    ++counts_["inspect"];
    const uint32_t stored = engine_->stored();
    Check(stored <= options_.share, "more samples than slots");
    Check(engine_->labels().size() == stored, "labels of other samples");
    for (const Delivery& delivery : engine_->pending()) CheckRows(delivery);
    for (const uint64_t number : StoredNumbers(Snapshot(*engine_, samples_).columns[0])) {
      Check(origin_.Includes(number, batches_), "a sample is stored that was not submitted");
    }
  }

  void ReserveFront() {
    ++counts_["reserve_front"];
    engine_->ReserveFront(Below(9));
    for (const Delivery& delivery : engine_->pending()) CheckRows(delivery);
  }

  void Save() {
    ++counts_["save"];
    auto saved = std::make_unique<Saved>(Saved{options_, Snapshot(*engine_, samples_), {}});
    saved->numbers = StoredNumbers(saved->snapshot.columns[0]);
    // Pending draws may show samples that are not stored any more.
    for (const Snapshot::Draw& draw : saved->snapshot.draws) {
      for (const uint64_t number : Numbers(draw.columns[0])) saved->numbers.push_back(number);
    }
    std::sort(saved->numbers.begin(), saved->numbers.end());
    saved_ = std::move(saved);
  }

  void RestoreHere() {
    if (!saved_ || saved_->options.field_bytes != options_.field_bytes || saved_->options.policy != options_.policy ||
        saved_->options.share != options_.share || saved_->options.draws != options_.draws ||
        saved_->options.rank != options_.rank) {
      return;
    }
    Restore();
  }

  void Restore() {
    ++counts_["restore"];
    const Snapshot& snapshot = saved_->snapshot;
    snapshot.LoadInto(*engine_);
    memory_.clear();  // loading drains
    origin_ = {saved_->numbers, batches_};
    started_ = snapshot.started;
    pending_ = snapshot.draws.size();
    const Snapshot again(*engine_, samples_);
    Check(again.policy == snapshot.policy && again.columns == snapshot.columns && again.step == snapshot.step &&
              again.submitted == snapshot.submitted && again.started == snapshot.started &&
              again.draws.size() == snapshot.draws.size(),
          "what was restored is not what was saved");
  }

  void LoadNonsense() {
    ++counts_["refused load"];
    const PolicyState before = engine_->policy_state();
    const std::vector<const std::byte*> columns(options_.field_bytes.size() + 2);
    try {
      engine_->Load({{"stored", int64_t{options_.share} + 1}}, 1, 1, true, {}, columns);
      throw Violation("an impossible state was loaded");
    } catch (const std::invalid_argument&) {
    }
    Check(engine_->policy_state() == before, "a refused state has changed something");
  }

  void Inject() {
    ++counts_["inject"];
    engine_->FailNextStep(std::make_exception_ptr(std::runtime_error(kInjected)));
    injected_ = true;
  }

  void CloseFromOutside() {
    bystander_.Finish();
    ++counts_["close from outside"];
    closing_ = true;
    bystander_.Start([engine = engine_.get()] { engine->Close(); });
  }

  void CloseHere() {
    ++counts_["close"];
    closing_ = true;
    engine_->Close();
    memory_.clear();
  }

  void FreeDone() {
    const uint64_t done = engine_->done();
    while (!memory_.empty() && memory_.front().first <= done) memory_.pop_front();
  }

  // From the first field of samples.
  std::vector<uint64_t> Numbers(const std::vector<std::byte>& column) const {
    std::vector<uint64_t> numbers;
    for (size_t at = 0; at < column.size(); at += options_.field_bytes[0]) {
      numbers.push_back(Samples::NumberOf(column.data() + at));
    }
    return numbers;
  }

  std::vector<uint64_t> StoredNumbers(const std::vector<std::byte>& column) const {
    std::vector<uint64_t> numbers = Numbers(column);
    std::sort(numbers.begin(), numbers.end());
    Check(std::adjacent_find(numbers.begin(), numbers.end()) == numbers.end(), "a sample is stored twice");
    return numbers;
  }

  void CheckRows(const Delivery& delivery) {
    const Staging& staging = engine_->staging(delivery.slot);
    Check(delivery.sizes.size() == options_.draws.size(), "more or fewer draws than configured");
    uint64_t row = staging.front();
    for (size_t draw = 0; draw < delivery.sizes.size(); ++draw) {
      Check(delivery.sizes[draw] <= std::min(options_.draws[draw], options_.share), "a draw is too large");
      in_draw_.clear();
      for (uint32_t i = 0; i < delivery.sizes[draw]; ++i, ++row) {
        const uint64_t number = Samples::NumberOf(staging.field(0) + row * options_.field_bytes[0]);
        Check(origin_.Includes(number, batches_), "a sample is drawn that was not submitted");
        for (size_t field = 0; field < options_.field_bytes.size(); ++field) {
          Check(samples_.Is(number, field, staging.field(field) + row * options_.field_bytes[field]),
                "a sample is torn");
        }
        Check(staging.labels()[row] == Samples::Label(number), "another sample's label");
        Check(staging.tasks()[row] == Samples::Task(number), "another sample's task");
        Check(staging.ranks()[row] == options_.rank, "another rank");
        Check(staging.weights()[row] > 0, "a weight that is none");
        Check(std::find(in_draw_.begin(), in_draw_.end(), number) == in_draw_.end(), "a sample twice in a draw");
        in_draw_.push_back(number);
        ++rows_checked_;
      }
    }
  }

  std::mt19937_64 random_;
  EngineOptions options_;
  Samples samples_{{}};
  std::deque<std::pair<uint64_t, std::unique_ptr<BatchMemory>>> memory_;  // by step
  EngineHandle engine_;
  Bystander bystander_;
  Origin origin_;
  std::unique_ptr<Saved> saved_;
  uint64_t batches_ = 1;
  uint64_t pending_ = 0;
  bool started_ = false;
  bool closing_ = false;
  bool injected_ = false;
  uint64_t observed_ = 0;  // with the bystander
  std::atomic<uint64_t> idled_{0};
  std::vector<uint64_t> in_draw_;
  std::map<std::string, uint64_t> counts_;
  uint64_t engines_ = 0;
  uint64_t rows_checked_ = 0;
};

int Run(uint64_t operations, uint64_t seed) {
  const auto start = std::chrono::steady_clock::now();
  uint64_t operation = 0;
  try {
    Stress stress(seed);
    for (; operation < operations; ++operation) stress.Operate();
    stress.Report();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "violation at operation %llu, seed %llu: %s\n", static_cast<unsigned long long>(operation),
                 static_cast<unsigned long long>(seed), error.what());
    return 1;
  }
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  std::printf("%llu operations in %.1f s: %.0f per second\n", static_cast<unsigned long long>(operations),
              elapsed.count(), static_cast<double>(operations) / elapsed.count());
  return 0;
}

}  // namespace
}  // namespace reprise

int main(int count, char** arguments) {
  if (count < 2 || count > 3) {
    std::fprintf(stderr, "usage: engine_stress OPERATIONS [SEED]\n");
    return 2;
  }
  return reprise::Run(std::strtoull(arguments[1], nullptr, 10),
                      count > 2 ? std::strtoull(arguments[2], nullptr, 10) : 1);
}
