// For tests: samples that every byte of them tells apart, and batches of them. Not part of the engine.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "engine.h"

namespace reprise {

// How often to do what shows a defect in any few of so many times: less under sanitizers, which take several times as
// long.
template <typename Count>
constexpr Count Often(Count times) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  return times / 4;
#else
  return times;
#endif
}

// Bytes, label and task of a sample follow from its number alone: batch * kMaxRows + row.
class Samples {
 public:
  static constexpr uint64_t kMaxRows = 64;  // of a batch

  explicit Samples(std::vector<uint64_t> field_bytes) : field_bytes_(std::move(field_bytes)) {}

  const std::vector<uint64_t>& field_bytes() const { return field_bytes_; }

  // More and more classes, as in a sequence of tasks.
  static int64_t Label(uint64_t number) {
    return static_cast<int64_t>(Mix(number) % (2 + number / (40 * kMaxRows) % 11)) - 1;
  }
  // Half of the batches have one task, the others one per row.
  static bool TaskPerRow(uint64_t batch) { return Mix(~batch) & 1; }
  static int64_t Task(uint64_t number) {
    const uint64_t batch = number / kMaxRows;
    return static_cast<int64_t>(Mix(TaskPerRow(batch) ? number + 3 : batch) % 7);
  }

  void Write(uint64_t number, size_t field, std::byte* target) const {
    for (uint64_t at = 0; at < field_bytes_[field]; at += sizeof(uint64_t)) {
      const uint64_t word = Word(number, field, at);
      std::memcpy(target + at, &word, Part(field, at));
    }
  }
  bool Is(uint64_t number, size_t field, const std::byte* found) const {
    for (uint64_t at = 0; at < field_bytes_[field]; at += sizeof(uint64_t)) {
      const uint64_t word = Word(number, field, at);
      if (std::memcmp(found + at, &word, Part(field, at)) != 0) return false;
    }
    return true;
  }
  // Of a sample whose first field has at least 8 bytes.
  static uint64_t NumberOf(const std::byte* first_field) {
    uint64_t number;
    std::memcpy(&number, first_field, sizeof(number));
    return number;
  }

 private:
  static uint64_t Mix(uint64_t value) {
    value = (value ^ value >> 31) * 0x9E3779B97F4A7C15;
    return value ^ value >> 29;
  }
  static uint64_t Word(uint64_t number, size_t field, uint64_t at) {
    return number ^ (at * 0x9E3779B97F4A7C15 + field * 0xD1B54A32D192ED03);
  }
  uint64_t Part(size_t field, uint64_t at) const {
    const uint64_t rest = field_bytes_[field] - at;
    return rest < sizeof(uint64_t) ? rest : sizeof(uint64_t);
  }

  std::vector<uint64_t> field_bytes_;
};

// Memory of one batch, exactly as large as it must be: a sanitizer finds who reads past it, or after it was freed.
class BatchMemory {
 public:
  BatchMemory(const Samples& samples, uint64_t batch, uint64_t rows) : rows_(rows) {
    for (size_t field = 0; field < samples.field_bytes().size(); ++field) {
      const uint64_t bytes = samples.field_bytes()[field];
      fields_.push_back(std::make_unique<std::byte[]>(rows * bytes));
      for (uint64_t row = 0; row < rows; ++row) {
        samples.Write(batch * Samples::kMaxRows + row, field, fields_.back().get() + row * bytes);
      }
    }
    for (uint64_t row = 0; row < rows; ++row) {
      labels_.push_back(Samples::Label(batch * Samples::kMaxRows + row));
      tasks_.push_back(Samples::Task(batch * Samples::kMaxRows + row));
    }
    task_ = Samples::Task(batch * Samples::kMaxRows);
    if (!Samples::TaskPerRow(batch)) tasks_.clear();
  }

  Batch View() const {
    Batch batch;
    for (const auto& field : fields_) batch.fields.push_back(field.get());
    batch.labels = labels_.data();
    batch.tasks = tasks_.empty() ? nullptr : tasks_.data();
    batch.task = task_;
    batch.rows = rows_;
    return batch;
  }

 private:
  uint64_t rows_;
  std::vector<std::unique_ptr<std::byte[]>> fields_;
  std::vector<int64_t> labels_, tasks_;
  int64_t task_ = -1;
};

// Everything that a saved engine consists of, as engine.h hands it out.
struct Snapshot {
  struct Draw {
    std::vector<uint32_t> sizes;
    std::vector<std::vector<std::byte>> columns;  // draw rows
  };

  PolicyState policy;
  uint64_t step, submitted;
  bool started;
  std::vector<Fill> fills;
  std::vector<std::vector<std::byte>> columns;
  std::vector<Draw> draws;

  explicit Snapshot(Engine& engine, const Samples& samples)
      : policy(engine.policy_state()),
        step(engine.step()),
        submitted(engine.submitted()),
        started(engine.started()),
        fills(engine.fills()) {
    const uint64_t stored = engine.stored();
    std::vector<int64_t> slots(stored);
    std::iota(slots.begin(), slots.end(), 0);
    for (size_t column = 0; column < samples.field_bytes().size() + 2; ++column) {
      const bool is_field = column < samples.field_bytes().size();
      columns.emplace_back(stored * (is_field ? samples.field_bytes()[column] : sizeof(int64_t)));
      engine.ReadColumn(column, slots, columns.back().data());
    }
    for (const Delivery& delivery : engine.pending()) {
      const Staging& staging = engine.staging(delivery.slot);
      draws.push_back({delivery.sizes, {}});
      for (size_t column = 0; column < staging.columns().size(); ++column) {
        const std::byte* const rows = staging.columns()[column] + staging.front() * staging.row_bytes(column);
        draws.back().columns.emplace_back(rows, rows + Rows(delivery.sizes) * staging.row_bytes(column));
      }
    }
  }

  void LoadInto(Engine& engine) const {
    std::vector<const std::byte*> pointers;
    for (const auto& column : columns) pointers.push_back(column.data());
    engine.Load(policy, step, submitted, started, fills, pointers);
    for (const Draw& draw : draws) {
      const Staging& staging = engine.staging(engine.AdoptDraw(draw.sizes));
      for (size_t column = 0; column < draw.columns.size(); ++column) {
        std::byte* const rows = staging.columns()[column] + staging.front() * staging.row_bytes(column);
        if (!draw.columns[column].empty()) {
          std::memcpy(rows, draw.columns[column].data(), draw.columns[column].size());
        }
      }
    }
  }

  static uint64_t Rows(const std::vector<uint32_t>& sizes) {
    uint64_t rows = 0;
    for (const uint32_t size : sizes) rows += size;
    return rows;
  }
};

}  // namespace reprise
