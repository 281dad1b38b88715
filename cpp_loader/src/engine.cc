#include "engine.h"

#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <random>
#include <stdexcept>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace reprise {
namespace {

using Clock = Timed::Clock;

// How often a blocked caller looks whether there is something to copy before it sleeps: about as long as planning
// takes, the only pause between two jobs of a step. Sleeping and being woken takes longer.
constexpr int kLooks = 200;

// While steps keep coming, the engine thread looks for the next one by itself instead of being woken: waking a thread
// on a sleeping core costs the caller up to 20 microseconds, in a virtual machine most of a Submit. It sleeps through
// the first kSleepShare of the usual time between two steps, then looks every kLookShare of it; once kGiveUp of them
// have passed without a step, or where steps are long anyway, it sleeps until woken.
constexpr double kSleepShare = 0.75;
constexpr double kLookShare = 1.0 / 16;
constexpr auto kShortestNap = std::chrono::microseconds(50);
constexpr auto kLongestNap = std::chrono::milliseconds(1);
constexpr int kGiveUp = 4;
constexpr auto kLongStep = std::chrono::milliseconds(500);

void Relax() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

uint64_t Token() {
  std::random_device source;
  return uint64_t{source()} << 32 | source();
}

EngineOptions Checked(EngineOptions options) {
  if (options.field_bytes.empty()) throw std::invalid_argument("an engine needs at least one field");
  if (options.rank >= options.world_size) {
    throw std::invalid_argument("rank " + std::to_string(options.rank) + " is not below world size " +
                                std::to_string(options.world_size));
  }
  if (options.threads < 1) throw std::invalid_argument("an engine needs at least one thread");
  return options;
}

Slab SlabFor(const EngineOptions& options, const Layout& layout) {
  const uint64_t bytes = Shard::Bytes(layout, options.share);
  Slab slab = !options.storage.empty() ? Slab::File(options.storage, bytes)
              : options.exchanges      ? Slab::Shared(bytes)
                                       : Slab::Anonymous(bytes);
  slab.HideFromChildren();
  return slab;
}

std::unique_ptr<Peers> PeersFor(const EngineOptions& options, const Layout& layout, const Shard& shard) {
  if (!options.exchanges) return nullptr;
  shard.counters().SetToken(Token());
  const std::chrono::nanoseconds limit(static_cast<int64_t>(options.limit_s * 1e9));
  std::unique_ptr<Network> network;
  if (options.network) {
    NetworkOptions with = *options.network;
    with.rank = options.rank;
    with.world_size = options.world_size;
    with.limit = limit;
    with.may_pin = options.storage.empty();  // a file is there because memory is not
    network = std::make_unique<Network>(std::move(with), layout, shard);
  }
  return std::make_unique<Peers>(options.rank, layout, shard, options.deterministic, limit, std::move(network));
}

}  // namespace

Engine::Engine(EngineOptions options)
    : options_(Checked(std::move(options))),
      layout_(options_.field_bytes),
      words_(options_.seed, options_.rank),
      process_(getpid()),
      cuda_(options_.cuda_device < 0
                ? nullptr
                : std::make_unique<Cuda>(options_.cuda_device, kHostCopy + 1, options_.cuda_library)),
      draw_rows_(std::accumulate(options_.draws.begin(), options_.draws.end(), uint64_t{0})),
      slab_(SlabFor(options_, layout_)),
      shard_(slab_, layout_, options_.share),
      policy_(MakePolicy(options_.policy, options_.share)),
      planner_(options_.draws, options_.world_size),
      team_(options_.threads - 1),
      peers_(PeersFor(options_, layout_, shard_)),
      fetcher_(options_.rank, layout_, slab_, shard_, peers_.get(), team_) {
  for (uint32_t slot = 0; slot < kSlots; ++slot) {
    staging_[slot] = std::make_unique<Staging>(layout_, 0, draw_rows_, options_.rank);
    sizes_[slot].assign(options_.draws.size(), 0);
  }
  if (cuda_) {
    for (const auto& staging : staging_) cuda_->Pin(staging->memory()->data(), staging->memory()->size());
    try {
      cuda_->Pin(slab_.data(), slab_.size());
    } catch (const std::runtime_error& error) {
      not_pinned_ = error.what();  // copies from the device then take a detour
    }
  }
  const SignalsBlocked blocked;
  thread_ = std::thread([this] { Loop(); });
  pthread_setname_np(thread_.native_handle(), "reprise-engine");
}

Engine::~Engine() { Close(); }

PeerAddress Engine::address() const {
  PeerAddress own;
  own.process = process_;
  own.descriptor = slab_.descriptor();
  own.bytes = slab_.size();
  own.token = shard_.counters().token();
  own.share = options_.share;
  if (options_.network) own.network = peers_->network().address();
  return own;
}

std::string Engine::WhySilent(uint32_t rank) {
  const auto hold = HoldContents();
  return peers_->WhySilent(rank);
}

std::string Engine::DescribePeers() const { return peers_ ? peers_->Describe() : ""; }

// ---- the caller's side

uint64_t Engine::Submit(Batch batch) {
  if (batch.fields.size() != layout_.num_fields()) {
    throw std::invalid_argument("a batch has " + std::to_string(batch.fields.size()) + " fields, the engine " +
                                std::to_string(layout_.num_fields()));
  }
  Enqueue(std::move(batch), true);
  return steps_submitted_;
}

void Engine::SubmitDraw(Cuda::Stream stream) {
  Batch batch;
  batch.stream = stream;
  Enqueue(std::move(batch), false);
}

void Engine::Enqueue(Batch batch, bool inserts) {
  if (behind()) Await(sequence_ + 1 - kMaxQueued);
  ThrowIfBroken();
  if (pending_.size() == kSlots - 1) {
    // The queue is worked off in order, so a step that still writes to this slot is over when the new one begins.
    free_.push_back(pending_.front().slot);
    pending_.pop_front();
  }
  const uint32_t slot = free_.back();
  const uint64_t sequence = sequence_ + 1;
  const uint64_t number = steps_submitted_ + inserts;
  // The inputs are ready here, and whoever still reads the slot's last draw has been queued before.
  if (cuda_) cuda_->Record(SubmitEvent(sequence), batch.stream);
  pending_.push_back({sequence, slot});
  bool asleep;
  try {
    const std::lock_guard lock(mutex_);
    const auto now = Clock::now();
    queue_.push_back({std::move(batch), inserts, number, sequence, slot, now});
    // The shorter of two, so that a pause, for an evaluation say, is not taken for a step.
    const auto interval = now - last_queued_;
    period_ = std::min(interval, last_interval_);
    last_interval_ = interval;
    last_queued_ = now;
    // Steps that have become quicker find the engine in a nap as long as the slow ones had.
    asleep = asleep_ || nap_end_ > now + kLongestNap;
  } catch (...) {
    pending_.pop_back();  // a draw that nobody prepares would be waited for without end
    throw;
  }
  free_.pop_back();
  sequence_ = sequence;
  steps_submitted_ = number;
  if (asleep) work_.notify_one();
}

Delivery Engine::Wait(Cuda::Stream stream) {
  if (!started_) {
    ThrowIfBroken();
    started_ = true;
    const auto now = Clock::now();
    wait_time_.Add(now, now);
    return {held_, sizes_[held_]};
  }
  if (pending_.empty()) {
    ThrowIfBroken();
    throw std::runtime_error("wait() called twice without a submit() in between: no draw was asked for");
  }
  const Pending next = pending_.front();
  const auto start = Clock::now();
  Await(next.sequence);
  wait_time_.Add(start, Clock::now());
  pending_.pop_front();
  free_.push_back(held_);
  held_ = next.slot;
  if (cuda_) cuda_->StreamWaits(stream, ReadyEvent(held_));
  return {held_, sizes_[held_]};
}

bool Engine::ready() const { return !started_ || pending_.empty() || Finished(pending_.front().sequence); }

void Engine::Drain() { Await(sequence_); }

void Engine::Await(uint64_t sequence) {
  ThrowIfBroken();
  while (!Finished(sequence) && !broken_.load(std::memory_order_acquire)) {
    if (execution_.try_lock()) {
      const std::lock_guard lock(execution_, std::adopt_lock);
      RunNext();
      continue;
    }
    // A step is under way elsewhere: copy along, sleep only when there is nothing to copy.
    if (CopyAlong([&] { return Finished(sequence); })) continue;
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return Finished(sequence) || failure_ || closing_; });
  }
  ThrowIfBroken();
}

template <typename Done>
bool Engine::CopyAlong(Done done) {
  for (int looks = 0; looks < kLooks; ++looks) {
    if (done()) return true;
    if (team_.Help()) looks = 0;
    Relax();
  }
  return done();
}

void Engine::ThrowIfBroken() {
  if (getpid() != process_) throw std::runtime_error("the rehearsal buffer stays with the process that made it");
  if (!broken_.load(std::memory_order_acquire)) return;
  const std::lock_guard lock(mutex_);
  if (failure_) std::rethrow_exception(failure_);
  throw std::runtime_error("the rehearsal buffer is closed");
}

uint32_t Engine::next_slot() const {
  if (!started_) return held_;
  return pending_.empty() ? free_.back() : pending_.front().slot;
}

void Engine::ReserveFront(uint64_t rows) {
  Drain();
  if (cuda_) throw std::invalid_argument("front rows lie on the device, with the caller");
  std::array<std::unique_ptr<Staging>, kSlots> larger;  // all or none: memory may be refused
  for (auto& staging : larger) staging = std::make_unique<Staging>(layout_, rows, draw_rows_, options_.rank);
  for (uint32_t slot = 0; slot < kSlots; ++slot) {
    const auto count = std::accumulate(sizes_[slot].begin(), sizes_[slot].end(), uint64_t{0});
    larger[slot]->CopyDraws(*staging_[slot], count);
  }
  staging_.swap(larger);
}

void Engine::SetDeviceRows(uint32_t slot, std::vector<Cuda::Address> columns, Cuda::Stream stream) {
  if (!cuda_ || columns.size() != layout_.num_fields() + 4)
    throw std::invalid_argument("wrong number of device columns");
  const auto hold = HoldContents();
  cuda_->WaitForAll();  // nothing may be on its way to where the rows were
  device_rows_[slot] = std::move(columns);
  const bool is_pending =
      std::any_of(pending_.begin(), pending_.end(), [&](const Pending& draw) { return draw.slot == slot; });
  if (!is_pending) return;
  cuda_->Record(SubmitEvent(sequence_), stream);
  cuda_->OwnStreamWaits(SubmitEvent(sequence_));
  CopyToDevice(slot);
}

// ---- running steps

void Engine::Loop() {
  // A batch thread does not push the thread that wakes it off its core: training goes on where cores are scarce.
  const sched_param no_priority{};
  pthread_setschedparam(pthread_self(), SCHED_BATCH, &no_priority);
  std::unique_lock lock(mutex_);
  for (;;) {
    while (!closing_ && (queue_.empty() || failure_)) Rest(lock);
    if (closing_) return;
    lock.unlock();
    const bool mine = execution_.try_lock();
    if (mine) {
      RunNext();
      execution_.unlock();
    } else {
      CopyAlong([] { return false; });
    }
    lock.lock();
    // The caller got in first and will soon be through. Waiting for its lock would make it wake us when it is.
    if (!mine) work_.wait_for(lock, kShortestNap);
  }
}

void Engine::Rest(std::unique_lock<std::mutex>& lock) {
  const auto now = Clock::now();
  const auto quiet = now - last_queued_;
  if (failure_ || period_ > kLongStep || quiet > std::max<Clock::duration>(kGiveUp * period_, kLongestNap)) {
    asleep_ = true;
    work_.wait(lock, [&] { return closing_ || (!queue_.empty() && !failure_); });
    asleep_ = false;
    return;
  }
  const auto share = [&](double part) {
    return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double, Clock::period>(part * period_));
  };
  const auto nap = std::clamp<Clock::duration>(share(kLookShare), kShortestNap, kLongestNap);
  nap_end_ = now + std::max(nap, share(kSleepShare) - quiet);
  work_.wait_until(lock, nap_end_);
  nap_end_ = {};
}

void Engine::RunNext() {
  const Step* step = nullptr;
  std::exception_ptr error;
  {
    const std::lock_guard lock(mutex_);
    if (queue_.empty() || failure_ || closing_) return;
    step = &queue_.front();  // stays where it is: only this function removes entries
    error = std::exchange(injected_, nullptr);
  }
  try {
    if (error) std::rethrow_exception(error);
    if (cuda_) cuda_->OwnStreamWaits(SubmitEvent(step->sequence));
    if (step->inserts) {
      queue_time_.Add(step->queued, Clock::now());
      Insert(*step);
    }
    Deliver(*step);
  } catch (...) {
    error = std::current_exception();
  }
  if (error && peers_) peers_->Leave(Counters::kBroken);
  {
    const std::lock_guard lock(mutex_);
    if (error) {
      failure_ = error;
      broken_.store(true, std::memory_order_release);
    } else {
      done_.store(step->number, std::memory_order_release);
      finished_.store(step->sequence, std::memory_order_release);
      queue_.pop_front();
    }
  }
  changed_.notify_all();
}

void Engine::Insert(const Step& step) {
  const auto start = Clock::now();
  const Batch& batch = step.batch;
  const int64_t* all_labels = batch.labels;
  const int64_t* all_tasks = batch.tasks;
  if (batch.labels_on_device || batch.tasks_on_device) {
    const auto fetch = [&](const int64_t* source, std::vector<int64_t>& target) {
      target.resize(batch.rows);
      cuda_->ToHost(reinterpret_cast<std::byte*>(target.data()), reinterpret_cast<Cuda::Address>(source),
                    batch.rows * sizeof(int64_t));
      return target.data();
    };
    if (batch.labels_on_device) all_labels = fetch(batch.labels, host_labels_);
    if (batch.tasks_on_device) all_tasks = fetch(batch.tasks, host_tasks_);
    cuda_->RecordOwn(kHostCopy);
    cuda_->WaitFor(kHostCopy);
  }
  if (peers_) peers_->AwaitReaders();
  // The rows that are offered: all, or a uniform choice in their order.
  const bool chooses = options_.candidates && options_.candidates < batch.rows;
  if (chooses) {
    chooser_.Choose(words_, purpose::kCandidates, step.number, batch.rows, options_.candidates, picked_);
    std::sort(picked_.begin(), picked_.end());
    candidate_labels_.clear();
    for (const uint64_t row : picked_) candidate_labels_.push_back(all_labels[row]);
  }
  const std::span<const int64_t> labels =
      chooses ? std::span<const int64_t>(candidate_labels_) : std::span<const int64_t>(all_labels, batch.rows);
  policy_->Insert(labels, batch.rows, step.number, words_, writes_);
  submitted_ += batch.rows;

  shard_.BeginWrite(writes_);
  policy_->ChangedStrata(strata_);
  shard_.SetStrata(strata_);
  bool from_device = false;
  pieces_.clear();
  for (const Write& write : writes_) {
    const uint64_t row = chooses ? picked_[write.row] : write.row;
    RecordHeader& header = shard_.record(write.slot);
    header.stratum = policy_->Stratum(write.slot);
    header.label = all_labels[row];
    header.task = all_tasks ? all_tasks[row] : batch.task;
    auto* const record = reinterpret_cast<std::byte*>(&header);
    for (size_t field = 0; field < layout_.num_fields(); ++field) {
      const uint64_t bytes = layout_.field_bytes(field);
      std::byte* const target = record + layout_.field_offset(field);
      const std::byte* const source = batch.fields[field] + row * bytes;
      if (!batch.fields_on_device.empty() && batch.fields_on_device[field]) {
        cuda_->ToHost(target, reinterpret_cast<Cuda::Address>(source), bytes);
        from_device = true;
      } else {
        AddPieces(pieces_, target, source, bytes);
      }
    }
  }
  if (from_device) cuda_->RecordOwn(kHostCopy);
  team_.Run(pieces_, Store::kStream);
  if (from_device) cuda_->WaitFor(kHostCopy);
  shard_.EndWrite(writes_);
  if (peers_) peers_->Inserted(step.number, {policy_->stored(), policy_->Mass()});
  insert_time_.Add(start, Clock::now());
}

void Engine::Deliver(const Step& step) {
  if (cuda_) cuda_->WaitFor(ReadyEvent(step.slot));  // the slot's last draw may still be on its way to the device
  for (bool complete = false; !complete;) {
    const auto start = Clock::now();
    Refresh();
    planner_.Make(step.number, words_, plan_);
    const auto planned = Clock::now();
    complete = fetcher_.Fetch(plan_, peers_ ? peers_->total() : Fill{policy_->stored(), policy_->Mass()},
                              *staging_[step.slot]);
    plan_time_.Add(start, planned);
    fetch_time_.Add(planned, Clock::now());
  }
  if (peers_) peers_->Fetched();
  sizes_[step.slot].assign(plan_.sizes.begin(), plan_.sizes.end());
  if (cuda_) CopyToDevice(step.slot);
}

void Engine::Refresh() {
  if (peers_) {
    peers_->Refresh(planner_);
  } else {
    planner_.SetFill(options_.rank, policy_->stored());
  }
}

void Engine::CopyToDevice(uint32_t slot) {
  const Staging& staging = *staging_[slot];
  const auto rows = std::accumulate(sizes_[slot].begin(), sizes_[slot].end(), uint64_t{0});
  const std::vector<Cuda::Address>& targets = device_rows_[slot];
  for (size_t column = 0; rows && column < targets.size(); ++column) {
    const uint64_t bytes = staging.row_bytes(column);
    cuda_->ToDevice(targets[column], staging.columns()[column] + staging.front() * bytes, rows * bytes);
  }
  cuda_->RecordOwn(ReadyEvent(slot));
}

// ---- contents

std::unique_lock<std::mutex> Engine::HoldContents() {
  Drain();
  std::unique_lock lock(execution_);
  ThrowIfBroken();
  return lock;
}

uint32_t Engine::stored() {
  Drain();
  return policy_->stored();
}

uint64_t Engine::submitted() {
  Drain();
  return submitted_;
}

uint64_t Engine::step() {
  Drain();
  return steps_submitted_;
}

uint64_t Engine::mass() {
  Drain();
  return policy_->Mass();
}

std::vector<Fill> Engine::fills() {
  const auto hold = HoldContents();
  if (peers_) {
    if (!peers_->deterministic()) Refresh();
    return peers_->fills();
  }
  std::vector<Fill> fills(options_.world_size);
  fills[options_.rank] = {policy_->stored(), policy_->Mass()};
  return fills;
}

PolicyState Engine::policy_state() {
  Drain();
  return policy_->State();
}

std::vector<int64_t> Engine::labels() {
  const auto hold = HoldContents();
  std::vector<int64_t> labels(policy_->stored());
  for (uint32_t slot = 0; slot < labels.size(); ++slot) labels[slot] = shard_.record(slot).label;
  return labels;
}

std::vector<int64_t> Engine::versions() {
  const auto hold = HoldContents();
  std::vector<int64_t> versions(policy_->stored());
  for (uint32_t slot = 0; slot < versions.size(); ++slot) versions[slot] = shard_.record(slot).version;
  return versions;
}

void Engine::ReadColumn(size_t column, std::span<const int64_t> slots, std::byte* target) {
  const auto hold = HoldContents();
  CopyColumn(shard_, policy_->stored(), column, slots, target);
}

std::vector<Engine::Estate> Engine::Estates() {
  const auto hold = HoldContents();
  std::vector<Estate> estates;
  for (uint32_t rank = 0; peers_ && rank < options_.world_size; ++rank) {
    if (rank == options_.rank) continue;
    const Shard* const shard = peers_->Left(rank);
    Estate estate{rank, shard ? shard->counters().fill() : peers_->held(rank), {}, {}, {}};
    for (uint32_t slot = 0; shard && slot < estate.held.stored; ++slot) {
      const RecordHeader& header = shard->record(slot);
      if (header.version % 2) continue;  // its process has ended while it wrote this one
      estate.slots.push_back(slot);
      estate.versions.push_back(header.version);
      estate.inverse_inclusion.push_back(shard->InverseInclusion(header.stratum));
    }
    estates.push_back(std::move(estate));
  }
  return estates;
}

void Engine::ReadEstate(uint32_t rank, size_t column, std::span<const int64_t> slots, std::byte* target) {
  const auto hold = HoldContents();
  const Shard* const shard = peers_ && rank < options_.world_size ? peers_->Left(rank) : nullptr;
  if (!shard) throw std::invalid_argument("rank " + std::to_string(rank) + " has left no samples here");
  CopyColumn(*shard, shard->counters().fill().stored, column, slots, target);
}

void Engine::CopyColumn(const Shard& shard, uint64_t stored, size_t column, std::span<const int64_t> slots,
                        std::byte* target) const {
  const uint64_t bytes = column < layout_.num_fields() ? layout_.field_bytes(column) : sizeof(int64_t);
  const uint64_t offset = column < layout_.num_fields()    ? layout_.field_offset(column)
                          : column == layout_.num_fields() ? offsetof(RecordHeader, label)
                                                           : offsetof(RecordHeader, task);
  for (const int64_t slot : slots) {
    if (slot < 0 || static_cast<uint64_t>(slot) >= stored) {
      throw std::invalid_argument("no sample in slot " + std::to_string(slot));
    }
    std::memcpy(target, reinterpret_cast<const std::byte*>(&shard.record(static_cast<uint32_t>(slot))) + offset, bytes);
    target += bytes;
  }
}

void Engine::Load(const PolicyState& policy, uint64_t step, uint64_t submitted, bool started,
                  const std::vector<Fill>& fills, const std::vector<const std::byte*>& columns) {
  if (columns.size() != layout_.num_fields() + 2) throw std::invalid_argument("wrong number of columns to load");
  const auto hold = HoldContents();
  auto loaded = MakePolicy(options_.policy, options_.share);
  loaded->Load(policy);
  if (peers_) peers_->AwaitReaders();
  policy_ = std::move(loaded);
  const auto* const labels = reinterpret_cast<const int64_t*>(columns[layout_.num_fields()]);
  const auto* const tasks = reinterpret_cast<const int64_t*>(columns[layout_.num_fields() + 1]);
  writes_.clear();
  for (uint32_t slot = 0; slot < policy_->stored(); ++slot) writes_.push_back({slot, slot});
  shard_.BeginWrite(writes_);
  policy_->ChangedStrata(strata_);
  shard_.SetStrata(strata_);
  for (uint32_t slot = 0; slot < policy_->stored(); ++slot) {
    RecordHeader& header = shard_.record(slot);
    header.stratum = policy_->Stratum(slot);
    header.label = labels[slot];
    header.task = tasks[slot];
    for (size_t field = 0; field < layout_.num_fields(); ++field) {
      const uint64_t bytes = layout_.field_bytes(field);
      std::memcpy(reinterpret_cast<std::byte*>(&header) + layout_.field_offset(field), columns[field] + slot * bytes,
                  bytes);
    }
  }
  shard_.EndWrite(writes_);
  if (peers_) peers_->Loaded(step, {policy_->stored(), policy_->Mass()}, fills);
  submitted_ = submitted;
  steps_submitted_ = step;
  done_.store(step, std::memory_order_release);
  started_ = started;
  if (!started_) sizes_[held_].assign(options_.draws.size(), 0);
  for (const Pending& dropped : pending_) free_.push_back(dropped.slot);
  pending_.clear();
}

uint32_t Engine::AdoptDraw(std::vector<uint32_t> sizes) {
  Drain();
  if (pending_.size() == kSlots - 1) throw std::invalid_argument("more pending draws than an engine keeps");
  if (sizes.size() != options_.draws.size() ||
      !std::equal(sizes.begin(), sizes.end(), options_.draws.begin(), std::less_equal<>())) {
    throw std::invalid_argument("a pending draw is larger than this engine's draws");
  }
  const uint32_t slot = free_.back();
  free_.pop_back();
  sizes_[slot] = std::move(sizes);
  pending_.push_back({sequence_, slot});  // finished, as everything is after Drain
  return slot;
}

std::vector<Delivery> Engine::pending() {
  Drain();
  std::vector<Delivery> draws;
  for (const Pending& draw : pending_) draws.push_back({draw.slot, sizes_[draw.slot]});
  return draws;
}

std::vector<std::pair<std::string, const Timed*>> Engine::timings() const {
  return {{"queue", &queue_time_},
          {"insert", &insert_time_},
          {"plan", &plan_time_},
          {"fetch", &fetch_time_},
          {"wait", &wait_time_}};
}

// ---- the end

void Engine::Close() noexcept {
  if (getpid() != process_) return;
  const std::lock_guard only(ending_);
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
    broken_.store(true, std::memory_order_release);
  }
  if (peers_ && slab_.data()) peers_->Stop();
  work_.notify_all();
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
  const std::lock_guard lock(execution_);  // a blocked caller may be running a step
  if (cuda_ && slab_.data()) {
    try {
      cuda_->WaitForAll();
      if (not_pinned_.empty()) cuda_->Unpin(slab_.data());
      for (const auto& staging : staging_) cuda_->Unpin(staging->memory()->data());
    } catch (const std::runtime_error&) {
      // The device is gone, at the end of a process for one: nothing is under way any more.
    }
  }
  if (peers_ && slab_.data()) {
    peers_->Linger();
    peers_->Leave(Counters::kClosed);
    peers_->Release();
  }
  shard_ = Shard();
  slab_ = Slab();
}

void EngineDeleter::operator()(Engine* engine) const {
  if (getpid() == engine->process_) delete engine;
}

void Engine::FailNextStep(std::exception_ptr error) {
  const std::lock_guard lock(mutex_);
  injected_ = std::move(error);
}

}  // namespace reprise
