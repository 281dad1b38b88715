// The rows that a draw is delivered in: one contiguous column per field and four more, in memory of their own.
//
//        front rows            draw rows
//   [ ... | new samples ] [ draw 0 | draw 1 | ... ]
//
// Draws start at row front(), the new samples of a batch end there, so that both together are contiguous whatever the
// size of the batch: the representatives are in place before anybody knows how many new samples come.
// The engine writes draw rows, the caller front rows; who may touch a slot when is the engine's business (engine.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "layout.h"
#include "slab.h"

namespace reprise {

class Staging {
 public:
  // front, rows: rows before and after the start of the draws. Front rows are born with weight 1 and the own rank.
  // Throws std::runtime_error with the numbers when the memory is refused.
  Staging(const Layout& layout, uint64_t front, uint64_t rows, int64_t rank);

  uint64_t front() const { return front_; }
  // Column of a field, or of what comes with every sample: labels, tasks and ranks are int64, weights float.
  std::byte* field(size_t index) const { return columns_[index]; }
  int64_t* labels() const { return reinterpret_cast<int64_t*>(columns_[num_fields_]); }
  int64_t* tasks() const { return reinterpret_cast<int64_t*>(columns_[num_fields_ + 1]); }
  int64_t* ranks() const { return reinterpret_cast<int64_t*>(columns_[num_fields_ + 2]); }
  float* weights() const { return reinterpret_cast<float*>(columns_[num_fields_ + 3]); }

  // All columns in that order, and their common memory, which lives as long as anybody holds it.
  const std::vector<std::byte*>& columns() const { return columns_; }
  const std::shared_ptr<Slab>& memory() const { return memory_; }

  uint64_t row_bytes(size_t column) const { return row_bytes_[column]; }

  // Take over the draw rows of another staging of the same layout.
  void CopyDraws(const Staging& other, uint64_t rows);

 private:
  size_t num_fields_;
  uint64_t front_;
  std::vector<uint64_t> row_bytes_;  // of each column
  std::shared_ptr<Slab> memory_;
  std::vector<std::byte*> columns_;
};

}  // namespace reprise
