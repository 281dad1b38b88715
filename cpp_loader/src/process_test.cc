#include "process.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <utility>

#include "test_child.h"

namespace reprise {
namespace {

// One that runs until it is told to end.
Child Runner() {
  return Child([](const Link& parent) { parent.Receive<bool>(); });
}

void AwaitEnd(const Child& child) {
  siginfo_t info;
  ASSERT_EQ(waitid(P_PID, static_cast<id_t>(child.number()), &info, WEXITED | WNOWAIT), 0);
}

TEST(Process, ThisOneHasNeverEnded) {
  const size_t before = NumDescriptors();
  Process process(getpid());
  EXPECT_EQ(process.number(), getpid());
  EXPECT_FALSE(process.Ended());
  EXPECT_FALSE(process.Ended());
  EXPECT_EQ(NumDescriptors(), before);
}

TEST(Process, OneThatRunsHasEndedOnceItIsKilledAlsoBeforeAndAfterItIsCollected) {
  const Deadline deadline(60);
  Child child = Runner();
  Process process(child.number());
  EXPECT_EQ(process.number(), child.number());
  for (int look = 0; look < 20; ++look) EXPECT_FALSE(process.Ended());
  child.Kill();
  AwaitEnd(child);
  while (!process.Ended()) usleep(1000);
  EXPECT_EQ(child.Collect(), SIGKILL);
  EXPECT_TRUE(process.Ended());
}

TEST(Process, OneThatStopsForAWhileHasNotEnded) {
  const Deadline deadline(60);
  Child child = Runner();
  Process process(child.number());
  ASSERT_EQ(kill(child.number(), SIGSTOP), 0);
  ASSERT_EQ(waitpid(child.number(), nullptr, WUNTRACED), child.number());
  EXPECT_FALSE(process.Ended());
  ASSERT_EQ(kill(child.number(), SIGCONT), 0);
  child.link().Send(true);
  EXPECT_EQ(child.Collect(), 0);
  while (!process.Ended()) usleep(1000);
}

TEST(Process, OneThatEndedBeforeIsKnownToHave) {
  const Deadline deadline(60);
  Child child = Runner();
  child.link().Send(true);
  AwaitEnd(child);
  Process not_collected(child.number());
  while (!not_collected.Ended()) usleep(1000);
  const pid_t number = child.number();
  EXPECT_EQ(child.Collect(), 0);
  Process collected(number);
  EXPECT_TRUE(collected.Ended());
  EXPECT_TRUE(not_collected.Ended());
}

TEST(Process, AnswersTheSameAfterItIsMovedAndLeavesNoDescriptor) {
  const Deadline deadline(60);
  Child child = Runner();
  const size_t before = NumDescriptors();
  {
    Process process(child.number());
    Process moved(std::move(process));
    EXPECT_EQ(moved.number(), child.number());
    EXPECT_FALSE(moved.Ended());
    EXPECT_LE(NumDescriptors(), before + 1);
    child.Kill();
    AwaitEnd(child);
    while (!moved.Ended()) usleep(1000);
    Process again(std::move(moved));
    EXPECT_TRUE(again.Ended());
  }
  EXPECT_EQ(NumDescriptors(), before);
}

}  // namespace
}  // namespace reprise
