// For tests: a forked process to talk to, and what this process has open. Not part of the engine.
#pragma once

#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstddef>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <type_traits>
#include <utility>

namespace reprise {

inline size_t NumDescriptors() {
  return static_cast<size_t>(std::distance(std::filesystem::directory_iterator("/proc/self/fd"), {}));
}

// Mappings of shared slabs, own and others'.
inline size_t NumSharedMappings() {
  std::ifstream maps("/proc/self/maps");
  size_t count = 0;
  for (std::string line; std::getline(maps, line);) count += line.find("/memfd:reprise") != std::string::npos;
  return count;
}

// Ends the process if a test hangs.
class Deadline {
 public:
  explicit Deadline(unsigned seconds) { alarm(seconds); }
  Deadline(const Deadline&) = delete;
  Deadline& operator=(const Deadline&) = delete;
  ~Deadline() { alarm(0); }
};

// One end of a line between two processes; what is sent is flat.
class Link {
 public:
  explicit Link(int socket) : socket_(socket) {}
  Link(Link&& other) noexcept : socket_(std::exchange(other.socket_, -1)) {}
  Link& operator=(Link&&) = delete;
  ~Link() {
    if (socket_ >= 0) close(socket_);
  }

  template <typename Value>
  void Send(const Value& value) const {
    static_assert(std::is_trivially_copyable_v<Value>);
    EXPECT_EQ(send(socket_, &value, sizeof(value), MSG_NOSIGNAL), static_cast<ssize_t>(sizeof(value)));
  }
  // Zeros, and a failure, if the other end is gone.
  template <typename Value>
  Value Receive() const {
    Value value{};
    EXPECT_EQ(recv(socket_, &value, sizeof(value), MSG_WAITALL), static_cast<ssize_t>(sizeof(value)));
    return value;
  }
  // Whether Receive would return at once.
  bool has_message() const {
    pollfd look{socket_, POLLIN, 0};
    return poll(&look, 1, 0) == 1;
  }

 private:
  int socket_;
};

// A forked process that does its work and ends, successfully if it met no failure. It is killed when nobody collects
// it.
class Child {
 public:
  template <typename Work>
  explicit Child(Work work) : Child(MakeSockets(), std::move(work)) {}
  Child(Child&& other) noexcept : number_(std::exchange(other.number_, -1)), link_(std::move(other.link_)) {}
  Child& operator=(Child&&) = delete;
  ~Child() {
    if (number_ <= 0) return;
    Kill();
    Collect();
  }

  pid_t number() const { return number_; }
  const Link& link() const { return link_; }
  void Kill() const {
    ASSERT_GT(number_, 0) << "would be everybody";
    kill(number_, SIGKILL);
  }
  // Waits for its end and returns its status.
  int Collect() {
    int status = -1;
    EXPECT_EQ(waitpid(number_, &status, 0), number_);
    number_ = -1;
    return status;
  }

 private:
  static constexpr unsigned kLongest = 200;  // seconds: when nobody answers, or the work hangs

  static std::pair<int, int> MakeSockets() {
    int sockets[2] = {-1, -1};
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets), 0);
    return {sockets[0], sockets[1]};
  }

  template <typename Work>
  Child(std::pair<int, int> sockets, Work work)
      : number_(fork()), link_(number_ == 0 ? sockets.second : sockets.first) {
    close(number_ == 0 ? sockets.first : sockets.second);
    EXPECT_GE(number_, 0);
    if (number_ != 0) return;
    alarm(kLongest);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    try {
      work(std::as_const(link_));
    } catch (const std::exception& error) {
      ADD_FAILURE() << error.what();  // and does not go on with the tests
    }
    _exit(testing::Test::HasFailure() ? 1 : 0);
  }

  pid_t number_;
  Link link_;
};

}  // namespace reprise
