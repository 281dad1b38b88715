#include "slab.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <utility>

namespace reprise {
namespace {

constexpr uint64_t kHugePage = uint64_t{2} << 20;

uint64_t PageSize() {
  static const auto size = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  return size;
}

uint64_t RoundUp(uint64_t bytes, uint64_t unit) { return (bytes + unit - 1) / unit * unit; }

[[noreturn]] void Refuse(const std::string& what, uint64_t bytes, int error) {
  throw std::runtime_error(what + ": " + std::to_string(bytes) + " bytes refused (" + std::strerror(error) + ")");
}

// Closes on every way out.
class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (fd_ >= 0) close(fd_);
  }
  int get() const { return fd_; }
  int release() { return std::exchange(fd_, -1); }

 private:
  int fd_;
};

int OpenUnnamed(const std::string& path) {
  struct stat status;
  if (stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode)) {
    const int fd = open(path.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd >= 0 || (errno != EOPNOTSUPP && errno != EISDIR && errno != EINVAL)) return fd;
    // File systems without unnamed files (NFS): make one and take its name away.
    std::string name = path + "/reprise-XXXXXX";
    const int named = mkostemp(name.data(), O_CLOEXEC);
    if (named >= 0) unlink(name.c_str());
    return named;
  }
  const int fd = open(path.c_str(), O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0600);
  if (fd >= 0) unlink(path.c_str());
  return fd;
}

}  // namespace

Slab Slab::Anonymous(uint64_t bytes) {
  const uint64_t size = RoundUp(bytes ? bytes : 1, bytes >= kHugePage ? kHugePage : PageSize());
  // More than asked for, so that the start can be moved to a huge-page boundary; what sticks out goes back at once.
  const uint64_t slack = size >= kHugePage ? kHugePage : 0;
  void* const mapped =
      mmap(nullptr, size + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) Refuse("memory of the rehearsal buffer", size, errno);
  auto* data = static_cast<std::byte*>(mapped);
  if (slack) {
    const auto address = reinterpret_cast<uintptr_t>(data);
    const uint64_t before = RoundUp(address, kHugePage) - address;
    if (before) munmap(data, before);
    if (slack - before) munmap(data + before + size, slack - before);
    data += before;
    madvise(data, size, MADV_HUGEPAGE);  // a wish: where the kernel knows no huge pages, plain ones do
  }
  return Slab(data, size, false, -1);
}

Slab Slab::Shared(uint64_t bytes) {
  const uint64_t size = RoundUp(bytes ? bytes : 1, bytes >= kHugePage ? kHugePage : PageSize());
  const std::string what = "shared memory of the rehearsal buffer";
  Descriptor memory(memfd_create("reprise", MFD_CLOEXEC));
  if (memory.get() < 0 || ftruncate(memory.get(), static_cast<off_t>(size)) != 0) Refuse(what, size, errno);
  void* const data = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, memory.get(), 0);
  if (data == MAP_FAILED) Refuse(what, size, errno);
  madvise(data, size, MADV_HUGEPAGE);  // a wish that many systems do not grant to shared memory
  return Slab(static_cast<std::byte*>(data), size, false, memory.release());
}

Slab Slab::OfProcess(int64_t process, int descriptor, uint64_t bytes) {
  const std::string path = "/proc/" + std::to_string(process) + "/fd/" + std::to_string(descriptor);
  const std::string what = "shared memory of process " + std::to_string(process);
  const Descriptor memory(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  struct stat status;
  if (memory.get() < 0 || fstat(memory.get(), &status) != 0) Refuse(what, bytes, errno);
  // Another process may have got the number: what is mapped here must hold what is read later.
  if (static_cast<uint64_t>(status.st_size) < bytes) Refuse(what, bytes, ESRCH);
  void* const data = mmap(nullptr, bytes, PROT_READ, MAP_SHARED, memory.get(), 0);
  if (data == MAP_FAILED) Refuse(what, bytes, errno);
  return Slab(static_cast<std::byte*>(data), bytes, false, -1);
}

Slab Slab::File(const std::string& path, uint64_t bytes) {
  const uint64_t size = RoundUp(bytes ? bytes : 1, PageSize());
  const std::string what = "storage file:" + path;
  Descriptor file(OpenUnnamed(path));
  if (file.get() < 0) Refuse(what, size, errno);
  int error;
  do {
    error = posix_fallocate(file.get(), 0, static_cast<off_t>(size));
  } while (error == EINTR);
  if (error) Refuse(what, size, error);
  void* const data = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0);
  if (data == MAP_FAILED) Refuse(what, size, errno);
  return Slab(static_cast<std::byte*>(data), size, true, file.release());
}

Slab::Slab(Slab&& other) noexcept { *this = std::move(other); }

Slab& Slab::operator=(Slab&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(on_disk_, other.on_disk_);
  std::swap(descriptor_, other.descriptor_);
  return *this;
}

Slab::~Slab() {
  if (data_) munmap(data_, size_);
  if (descriptor_ >= 0) close(descriptor_);
}

void Slab::HideFromChildren() const { madvise(data_, size_, MADV_DONTFORK); }

void Slab::WillRead(const std::byte* begin, uint64_t bytes) const {
  if (!on_disk_) return;
  const auto offset = static_cast<uint64_t>(begin - data_) / PageSize() * PageSize();
  madvise(data_ + offset, static_cast<uint64_t>(begin + bytes - data_) - offset, MADV_WILLNEED);
}

}  // namespace reprise
