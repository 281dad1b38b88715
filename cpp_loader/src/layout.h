// How one sample lies in the slab: a record of fixed size, the same on every rank.
//
//   | version, stratum | label | task | field 0 | field 1 | ...      offsets from the start of the record
//
// Flat and free of pointers, so that a slab means the same wherever it is mapped and one read fetches a whole sample.
// Large records start, like their fields, on cache lines (streaming stores need that), if that costs at most 3 %;
// others are packed to 8 bytes, as lines would cost more than they hold. Immutable, hence usable from any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace reprise {

// Start of every record. `version` is odd while the record is being written and rises by 2 with every write, so that a
// reader that finds the same even version before and after its copy has an untorn sample. 0: never written. `stratum`
// says which entry of the shard's table holds the sample's inverse inclusion (policy.h).
struct RecordHeader {
  uint32_t version;
  uint32_t stratum;
  int64_t label;
  int64_t task;
};

class Layout {
 public:
  // bytes_per_field: bytes of each field of one sample. Throws std::invalid_argument for a field without bytes and for
  // more than any machine addresses.
  explicit Layout(std::span<const uint64_t> bytes_per_field);

  size_t num_fields() const { return bytes_.size(); }
  uint64_t field_bytes(size_t field) const { return bytes_[field]; }
  uint64_t field_offset(size_t field) const { return offsets_[field]; }
  // Distance between records.
  uint64_t stride() const { return stride_; }

 private:
  // Sets offsets and stride for records, and fields that are as long, that start at multiples of `unit`.
  void Place(uint64_t unit);

  std::vector<uint64_t> bytes_;
  std::vector<uint64_t> offsets_;
  uint64_t stride_ = 0;
};

}  // namespace reprise
