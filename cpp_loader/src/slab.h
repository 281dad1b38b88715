// Where bytes live: one contiguous region of memory, touched only when written to.
//
// Two kinds: anonymous memory, in huge pages where the kernel gives them, and a file for capacities beyond RAM. Used
// for the samples of a rank and for the staging rows of draws. Not for what lies where inside (layout.h).
// Movable owner of its mapping; data() may be used from any thread, moving and destroying may not race with that.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace reprise {

class Slab {
 public:
  // Zeroed memory that costs nothing until it is touched. Throws std::runtime_error with the numbers when refused.
  static Slab Anonymous(uint64_t bytes);

  // A file on the disk of `path`: in it, if it is a folder, else under that name, which must be free. The file has no
  // name once this returns, so nothing is left behind by any exit after that. Its space is taken at once: a full
  // disk is an error here, not a crash later (on file systems that copy on write it may still be one). Throws
  // std::runtime_error naming path, bytes and reason.
  static Slab File(const std::string& path, uint64_t bytes);

  Slab() = default;
  Slab(Slab&& other) noexcept;
  Slab& operator=(Slab&& other) noexcept;
  ~Slab();

  std::byte* data() const { return data_; }
  uint64_t size() const { return size_; }

  // Forked children do not inherit the memory: copy-on-write would double it in a process that forks data loaders.
  void HideFromChildren() const;

  // Tell the kernel that these bytes are read soon, so that several disk reads are under way together. No-op in memory.
  void WillRead(const std::byte* begin, uint64_t bytes) const;

 private:
  Slab(std::byte* data, uint64_t size, bool on_disk) : data_(data), size_(size), on_disk_(on_disk) {}

  std::byte* data_ = nullptr;
  uint64_t size_ = 0;  // a whole number of pages
  bool on_disk_ = false;
};

}  // namespace reprise
