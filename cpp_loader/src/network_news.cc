#include "network_news.h"

#include <algorithm>
#include <utility>

namespace reprise {

namespace {

// For a goodbye to come, from a rank whose connection has broken.
constexpr auto kGoodbye = std::chrono::seconds(1);

}  // namespace

NewsBoard::NewsBoard(uint32_t rank, uint32_t world_size)
    : rank_(rank), world_size_(world_size), ranks_(std::make_unique<Rank[]>(world_size)) {}

void NewsBoard::Learn(const News& news) {
  if (news.rank >= world_size_ || news.rank == rank_) return;
  const std::lock_guard lock(mutex_);
  Counters& counters = ranks_[news.rank].counters;
  const Fill fill = counters.fill();
  bool fresh = false;
  // With the stamp, as it tells which of two fills is the later one. Setting it wakes those who wait.
  if (news.inserted >= counters.inserted() && (news.fill.stored != fill.stored || news.fill.mass != fill.mass)) {
    counters.SetFill(news.fill);
    fresh = true;
  }
  if (news.inserted > counters.inserted()) {
    counters.SetInserted(news.inserted);
    fresh = true;
  }
  if (news.fetched > counters.fetched()) {
    counters.SetFetched(news.fetched);
    fresh = true;
  }
  if ((news.state == Counters::kClosed || news.state == Counters::kBroken) && counters.state() == Counters::kOpen) {
    const auto state = static_cast<Counters::State>(news.state);
    if (ranks_[news.rank].in_doubt) {
      Decide(news.rank, state, "its rehearsal buffer has failed");
    } else {
      counters.SetState(state);
    }
    fresh = true;
  }
  if (fresh) MarkFresh(news.rank);
}

void NewsBoard::Fail(uint32_t rank, Counters::State state, const std::string& reason) {
  const std::lock_guard lock(mutex_);
  Rank& failed = ranks_[rank];
  if (failed.in_doubt || !failed.failed.load(std::memory_order_relaxed)) Decide(rank, state, reason);
}

void NewsBoard::Doubt(uint32_t rank, const std::string& reason) {
  const std::lock_guard lock(mutex_);
  Rank& doubted = ranks_[rank];
  if (doubted.failed.load(std::memory_order_relaxed)) return;
  if (doubted.counters.state() != Counters::kOpen) return Decide(rank, Counters::kBroken, reason);
  doubted.in_doubt = true;
  doubted.judged = Clock::now() + kGoodbye;
  doubted.reason = reason;
  doubted.failed.store(true, std::memory_order_release);
  num_in_doubt_.fetch_add(1, std::memory_order_release);
}

NewsBoard::Clock::time_point NewsBoard::Judge(Clock::time_point now) {
  auto next = Clock::time_point::max();
  if (!any_in_doubt()) return next;
  const std::lock_guard lock(mutex_);
  for (uint32_t rank = 0; rank < world_size_; ++rank) {
    const Rank& doubted = ranks_[rank];
    if (!doubted.in_doubt) continue;
    if (now >= doubted.judged) {
      Decide(rank, Counters::kBroken, doubted.reason);
    } else {
      next = std::min(next, doubted.judged);
    }
  }
  return next;
}

void NewsBoard::Decide(uint32_t rank, Counters::State state, const std::string& reason) {
  Rank& failed = ranks_[rank];
  if (std::exchange(failed.in_doubt, false)) num_in_doubt_.fetch_sub(1, std::memory_order_release);
  if (failed.counters.state() == Counters::kOpen) failed.counters.SetState(state);
  failed.reason = failed.counters.state() == Counters::kClosed ? "closed" : std::string(reason);
  failed.failed.store(true, std::memory_order_release);
  MarkFresh(rank);
}

std::string NewsBoard::failed(uint32_t rank) const {
  const std::lock_guard lock(mutex_);
  return ranks_[rank].reason;
}

std::vector<uint32_t> NewsBoard::Take() {
  const std::lock_guard lock(mutex_);
  for (const uint32_t rank : fresh_) ranks_[rank].fresh = false;
  return std::exchange(fresh_, {});
}

void NewsBoard::MarkFresh(uint32_t rank) {
  if (std::exchange(ranks_[rank].fresh, true)) return;
  fresh_.push_back(rank);
}

News NewsOf(uint32_t rank, const Counters& counters) {
  // The stamps first: a fill may be later than its stamp says, never earlier.
  News news;
  news.rank = rank;
  news.state = counters.state();
  news.fetched = counters.fetched();
  news.inserted = counters.inserted();
  news.fill = counters.fill();
  return news;
}

}  // namespace reprise
