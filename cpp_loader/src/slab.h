// Where bytes live: one contiguous region of memory, touched only when written to.
//
// Three kinds: anonymous memory, in huge pages where the kernel gives them; memory that other processes of the node can
// map; and a file for capacities beyond RAM, which they can map as well. Neither of the latter two has a name anywhere,
// so nothing is left behind by any exit, kill -9 included. Used for the samples of a rank and for the staging rows of
// draws. Not for what lies where inside (layout.h, shard.h).
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

  // Like Anonymous, for other processes too: OfProcess maps it there, given the descriptor.
  static Slab Shared(uint64_t bytes);

  // A file on the disk of `path`: in it, if it is a folder, else under that name, which must be free. The file has no
  // name once this returns, so nothing is left behind by any exit after that. Its space is taken at once: a full
  // disk is an error here, not a crash later (on file systems that copy on write it may still be one). Throws
  // std::runtime_error naming path, bytes and reason.
  static Slab File(const std::string& path, uint64_t bytes);

  // What is behind a descriptor of another process on this node, to be read only; `bytes` as there. It stays readable
  // when that process ends. Throws std::runtime_error with the reason: gone, of another user, or not visible from here.
  static Slab OfProcess(int64_t process, int descriptor, uint64_t bytes);

  Slab() = default;
  Slab(Slab&& other) noexcept;
  Slab& operator=(Slab&& other) noexcept;
  ~Slab();

  std::byte* data() const { return data_; }
  uint64_t size() const { return size_; }
  // What other processes map it by; -1 for anonymous memory.
  int descriptor() const { return descriptor_; }

  // Forked children do not inherit the memory: copy-on-write would double it in a process that forks data loaders.
  void HideFromChildren() const;

  // Tell the kernel that these bytes are read soon, so that several disk reads are under way together. No-op in memory.
  void WillRead(const std::byte* begin, uint64_t bytes) const;

 private:
  Slab(std::byte* data, uint64_t size, bool on_disk, int descriptor)
      : data_(data), size_(size), on_disk_(on_disk), descriptor_(descriptor) {}

  std::byte* data_ = nullptr;
  uint64_t size_ = 0;  // a whole number of pages
  bool on_disk_ = false;
  int descriptor_ = -1;
};

}  // namespace reprise
