#include "network_news.h"

#include <utility>

namespace reprise {

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
    counters.SetState(static_cast<Counters::State>(news.state));
    fresh = true;
  }
  if (fresh) MarkFresh(news.rank);
}

void NewsBoard::Fail(uint32_t rank, Counters::State state, const std::string& reason) {
  const std::lock_guard lock(mutex_);
  Rank& failed = ranks_[rank];
  if (failed.failed.load(std::memory_order_relaxed)) return;
  if (failed.counters.state() == Counters::kOpen) failed.counters.SetState(state);
  failed.reason = failed.counters.state() == Counters::kClosed ? "closed" : reason;
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
