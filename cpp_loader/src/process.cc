#include "process.h"

#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <string>
#include <thread>
#include <utility>

namespace reprise {
namespace {

constexpr auto kLookEvery = std::chrono::milliseconds(250);

bool RunsByProc(int64_t number) {
  std::ifstream file("/proc/" + std::to_string(number) + "/stat");
  std::string text;
  if (!std::getline(file, text)) return false;
  // "number (name) state": the name may hold anything, brackets too.
  const auto bracket = text.rfind(')');
  const char state = bracket + 2 < text.size() ? text[bracket + 2] : 'X';
  return state != 'Z' && state != 'X';
}

}  // namespace

Process::Process(int64_t number) : number_(number) {
  if (number == getpid()) return;
  descriptor_ = static_cast<int>(syscall(SYS_pidfd_open, static_cast<pid_t>(number), 0));
  ended_ = descriptor_ < 0 && errno == ESRCH;
}

Process::Process(Process&& other) noexcept
    : number_(other.number_),
      descriptor_(std::exchange(other.descriptor_, -1)),
      ended_(other.ended_),
      next_look_(other.next_look_) {}

Process::~Process() {
  if (descriptor_ >= 0) close(descriptor_);
}

bool Process::Ended(std::chrono::milliseconds within) {
  if (ended_ || number_ == getpid()) return ended_;
  if (descriptor_ >= 0) {
    pollfd look{descriptor_, POLLIN, 0};
    ended_ = poll(&look, 1, static_cast<int>(within.count())) == 1;
  } else if (within.count() > 0) {
    const auto end = std::chrono::steady_clock::now() + within;
    while (!(ended_ = !RunsByProc(number_)) && std::chrono::steady_clock::now() < end) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
  } else if (const auto now = std::chrono::steady_clock::now(); now >= next_look_) {
    next_look_ = now + kLookEvery;
    ended_ = !RunsByProc(number_);
  }
  return ended_;
}

}  // namespace reprise
