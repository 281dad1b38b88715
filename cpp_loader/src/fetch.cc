#include "fetch.h"

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>

namespace reprise {
namespace {

// A record is being written for about as long as the copy of a batch takes.
constexpr auto kPause = std::chrono::microseconds(20);
// After so many tries the writer may have died in the middle.
constexpr int kTriesBeforeCheck = 50;

}  // namespace

Fetcher::Fetcher(uint32_t rank, const Layout& layout, const Slab& slab, const Shard& own, Peers* peers, CopyTeam& team)
    : rank_(rank), layout_(layout), slab_(slab), own_(own), peers_(peers), team_(team) {}

bool Fetcher::Fetch(const Plan& plan, Fill total, const Staging& staging) {
  // Relative to the mean over everything stored, hence 1 for a uniform history.
  const double scale = static_cast<double>(total.stored) / static_cast<double>(std::max<uint64_t>(total.mass, 1));
  todo_.clear();
  remote_.clear();
  for (uint32_t row = 0; row < plan.slots.size(); ++row) {
    (peers_ && peers_->IsRemote(plan.ranks[row]) ? remote_ : todo_).push_back(row);
  }
  if (!remote_.empty()) Ask(plan, staging);
  const bool copied = CopyAll(plan, scale, staging);
  // Also when a rank on the node is lost: until then answers are written to the staging slot.
  if (!remote_.empty() && !peers_->network().Finish()) return false;
  const uint64_t front = staging.front();
  for (size_t i = 0; i < remote_.size(); ++i) {
    const uint32_t row = remote_[i];
    staging.labels()[front + row] = heads_[i].label;
    staging.tasks()[front + row] = heads_[i].task;
    staging.ranks()[front + row] = plan.ranks[row];
    staging.weights()[front + row] = static_cast<float>(heads_[i].inverse_inclusion * scale);
  }
  return copied;
}

void Fetcher::Ask(const Plan& plan, const Staging& staging) {
  std::sort(remote_.begin(), remote_.end(), [&](uint32_t one, uint32_t other) {
    return std::pair(plan.ranks[one], one) < std::pair(plan.ranks[other], other);
  });
  heads_.resize(remote_.size());
  const News own = peers_->OwnNews();
  for (size_t begin = 0, end; begin < remote_.size(); begin = end) {
    const uint32_t rank = plan.ranks[remote_[begin]];
    slots_.clear();
    for (end = begin; end < remote_.size() && plan.ranks[remote_[end]] == rank; ++end) {
      slots_.push_back(plan.slots[remote_[end]]);
    }
    targets_.assign(1, {reinterpret_cast<std::byte*>(&heads_[begin]), (end - begin) * sizeof(ReplyHead)});
    for (size_t i = begin; i < end; ++i) {
      for (size_t field = 0; field < layout_.num_fields(); ++field) {
        const uint64_t bytes = layout_.field_bytes(field);
        targets_.push_back({staging.field(field) + (staging.front() + remote_[i]) * bytes, bytes});
      }
    }
    peers_->network().Request(rank, slots_, targets_, own);
  }
}

bool Fetcher::CopyAll(const Plan& plan, double scale, const Staging& staging) {
  std::chrono::steady_clock::time_point begin;
  for (int tries = 1;; ++tries) {
    if (!Copy(plan, scale, staging)) return false;
    if (again_.empty()) return true;
    todo_.swap(again_);
    if (tries == 1) begin = std::chrono::steady_clock::now();
    if (tries % kTriesBeforeCheck == 0) {
      const bool too_long = std::chrono::steady_clock::now() - begin > peers_->limit();
      for (const uint32_t row : todo_) {
        if (!peers_->Runs(plan.ranks[row])) return false;
        if (!too_long) continue;
        peers_->GiveUp(plan.ranks[row], "it has begun to write a sample and does not go on");
        return false;
      }
    }
    std::this_thread::sleep_for(kPause);
  }
}

bool Fetcher::Copy(const Plan& plan, double scale, const Staging& staging) {
  const uint64_t front = staging.front();
  versions_.clear();
  pieces_.clear();
  again_.clear();
  const auto shard_of = [&](uint32_t row) { return plan.ranks[row] == rank_ ? &own_ : peers_->Find(plan.ranks[row]); };
  size_t kept = 0;
  for (const uint32_t row : todo_) {
    const Shard* const shard = shard_of(row);
    if (!shard) return false;
    const uint32_t slot = plan.slots[row];
    const uint32_t version = shard->BeginRead(slot);
    if (version % 2) {
      again_.push_back(row);
      continue;
    }
    if (shard == &own_) slab_.WillRead(reinterpret_cast<const std::byte*>(&own_.record(slot)), own_.stride());
    versions_.push_back(version);
    todo_[kept++] = row;
  }
  todo_.resize(kept);
  // Field by field, as rows of a column lie next to each other.
  for (size_t field = 0; field < layout_.num_fields(); ++field) {
    const uint64_t bytes = layout_.field_bytes(field);
    for (const uint32_t row : todo_) {
      const auto* const record = reinterpret_cast<const std::byte*>(&shard_of(row)->record(plan.slots[row]));
      AddPieces(pieces_, staging.field(field) + (front + row) * bytes, record + layout_.field_offset(field), bytes);
    }
  }
  team_.Run(pieces_, Store::kCached);
  for (const uint32_t row : todo_) {
    const Shard& shard = *shard_of(row);
    const RecordHeader& header = shard.record(plan.slots[row]);
    staging.labels()[front + row] = header.label;
    staging.tasks()[front + row] = header.task;
    staging.ranks()[front + row] = plan.ranks[row];
    staging.weights()[front + row] = static_cast<float>(shard.InverseInclusion(header.stratum) * scale);
  }
  if (!peers_) return true;
  Shard::EndReads();
  for (size_t i = 0; i < todo_.size(); ++i) {
    if (!shard_of(todo_[i])->Unchanged(plan.slots[todo_[i]], versions_[i])) again_.push_back(todo_[i]);
  }
  return true;
}

}  // namespace reprise
