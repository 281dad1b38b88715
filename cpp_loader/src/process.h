// Whether another process of this node still runs. Not for processes on other nodes.
//
// By a descriptor of the process (Linux 5.3 and later), which also knows of one that was killed and not yet collected,
// and never takes a later process with the same number for it; else by /proc, looked at a few times per second only.
// One thread at a time.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>

namespace reprise {

class Process {
 public:
  // A process that runs now, or has just ended. This process itself never has.
  explicit Process(int64_t number);
  Process(Process&& other) noexcept;
  Process& operator=(Process&&) = delete;
  ~Process();

  int64_t number() const { return number_; }
  // within: wait so long for an end. A process that is killed loses its descriptors and memory some time before it
  // counts as ended.
  bool Ended(std::chrono::milliseconds within = {});

 private:
  int64_t number_;
  int descriptor_ = -1;
  bool ended_ = false;
  std::chrono::steady_clock::time_point next_look_{};
};

}  // namespace reprise
