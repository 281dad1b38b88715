#include "slab.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "test_child.h"

namespace reprise {
namespace {

namespace fs = std::filesystem;

uint64_t ResidentBytes(const Slab& slab) {
  const auto page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  std::vector<unsigned char> pages(slab.size() / page);
  EXPECT_EQ(mincore(slab.data(), slab.size(), pages.data()), 0);
  return page * static_cast<uint64_t>(
                    std::count_if(pages.begin(), pages.end(), [](unsigned char present) { return present & 1; }));
}

bool IsZero(const Slab& slab) {
  return std::all_of(slab.data(), slab.data() + slab.size(), [](std::byte byte) { return byte == std::byte{0}; });
}

// What a refusal says.
template <typename Make>
std::string Refusal(Make make) {
  try {
    make();
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "not refused";
}

std::set<fs::path> Names(const fs::path& folder) {
  std::set<fs::path> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.insert(entry.path());
  return names;
}

class SlabFile : public testing::Test {
 protected:
  SlabFile() {
    std::string name = testing::TempDir() + "/slab-XXXXXX";
    folder_ = mkdtemp(name.data());
  }
  ~SlabFile() override { fs::remove_all(folder_); }

  std::string folder_;
};

TEST(SlabAnonymous, IsZeroedAndAtLeastAsLargeAsAskedFor) {
  for (const uint64_t bytes : {0ull, 1ull, 4096ull, 5000ull, 2ull << 20, (4ull << 20) + 1}) {
    const Slab slab = Slab::Anonymous(bytes);
    EXPECT_GE(slab.size(), bytes);
    EXPECT_TRUE(IsZero(slab)) << bytes;
    std::fill_n(slab.data(), slab.size(), std::byte{7});
    EXPECT_EQ(slab.data()[slab.size() - 1], std::byte{7});
  }
}

TEST(SlabAnonymous, CapacityThatNobodyTouchesCostsNoMemory) {
  constexpr uint64_t kHugePage = uint64_t{2} << 20;
  const Slab slab = Slab::Anonymous(uint64_t{1} << 30);
  EXPECT_EQ(ResidentBytes(slab), 0u);
  slab.data()[300 << 20] = std::byte{1};
  EXPECT_GT(ResidentBytes(slab), 0u);
  EXPECT_LE(ResidentBytes(slab), kHugePage);
}

TEST(SlabAnonymous, LargeOnesStartWhereAHugePageCan) {
  for (int repeat = 0; repeat < 4; ++repeat) {
    const Slab slab = Slab::Anonymous(5 << 20);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(slab.data()) % (2 << 20), 0u);
  }
}

TEST(SlabAnonymous, MoreThanThereIsOfAddressesIsRefusedWithTheNumber) {
  const std::string refusal = Refusal([] { Slab::Anonymous(uint64_t{1} << 60); });
  EXPECT_NE(refusal.find("1152921504606846976 bytes refused"), std::string::npos) << refusal;
}

TEST(Slab, MovingHandsTheMemoryOverAndGivesBackWhatWasThere) {
  Slab source = Slab::Anonymous(4096);
  std::byte* const data = source.data();
  data[5] = std::byte{9};
  Slab target = Slab::Anonymous(8 << 20);
  std::byte* const replaced = target.data();
  const uint64_t replaced_bytes = target.size();
  target = std::move(source);
  EXPECT_EQ(target.data(), data);
  EXPECT_EQ(target.data()[5], std::byte{9});
  source = Slab();
  unsigned char page;
  EXPECT_EQ(mincore(replaced + replaced_bytes / 2, 1, &page), -1) << "still mapped";

  const Slab last(std::move(target));
  EXPECT_EQ(last.data(), data);
  EXPECT_EQ(target.data(), nullptr);
  EXPECT_EQ(target.size(), 0u);
}

TEST(Slab, ForkedChildrenDoNotHaveIt) {
  const Slab hidden = Slab::Anonymous(1 << 16);
  const Slab inherited = Slab::Anonymous(1 << 16);
  hidden.HideFromChildren();
  const pid_t child = fork();
  if (child == 0) {
    unsigned char page[16];
    const bool hides = mincore(hidden.data(), 4096, page) == -1;
    _exit(hides && mincore(inherited.data(), 4096, page) == 0 ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  hidden.data()[0] = std::byte{1};
}

TEST(SlabShared, IsZeroedAndAtLeastAsLargeAsAskedFor) {
  for (const uint64_t bytes : {0ull, 1ull, 4096ull, 5000ull, 2ull << 20, (4ull << 20) + 1}) {
    const Slab slab = Slab::Shared(bytes);
    EXPECT_GE(slab.size(), bytes);
    EXPECT_TRUE(IsZero(slab)) << bytes;
    std::fill_n(slab.data(), slab.size(), std::byte{7});
    EXPECT_EQ(slab.data()[slab.size() - 1], std::byte{7});
  }
}

TEST(SlabShared, CapacityThatNobodyTouchesCostsNoMemoryAlsoWhereItIsMappedAgain) {
  constexpr uint64_t kHugePage = uint64_t{2} << 20;
  const Slab slab = Slab::Shared(uint64_t{1} << 30);
  const Slab again = Slab::OfProcess(getpid(), slab.descriptor(), slab.size());
  EXPECT_EQ(ResidentBytes(slab), 0u);
  slab.data()[300 << 20] = std::byte{1};
  for (const Slab* mapped : {&slab, &again}) {
    EXPECT_GT(ResidentBytes(*mapped), 0u);
    EXPECT_LE(ResidentBytes(*mapped), kHugePage);
  }
}

TEST(SlabShared, MoreThanAFileMayHaveIsRefusedWithTheNumber) {
  const std::string refusal = Refusal([] { Slab::Shared(uint64_t{1} << 62); });
  EXPECT_NE(refusal.find("4611686018427387904 bytes refused"), std::string::npos) << refusal;
}

TEST(SlabShared, HasNoNameAndLeavesNoDescriptorOrMapping) {
  const size_t descriptors = NumDescriptors();
  const std::set<fs::path> names = Names("/dev/shm");
  EXPECT_EQ(NumSharedMappings(), 0u);
  {
    Slab slab = Slab::Shared(5000);
    const Slab again = Slab::OfProcess(getpid(), slab.descriptor(), slab.size());
    EXPECT_EQ(again.descriptor(), -1);
    EXPECT_EQ(NumDescriptors(), descriptors + 1) << "a mapping needs none";
    EXPECT_EQ(NumSharedMappings(), 2u) << "the counter is of no use";
    EXPECT_EQ(Names("/dev/shm"), names);
    const Slab moved(std::move(slab));
    EXPECT_EQ(slab.descriptor(), -1);
    EXPECT_GE(moved.descriptor(), 0);
  }
  EXPECT_EQ(NumDescriptors(), descriptors);
  EXPECT_EQ(NumSharedMappings(), 0u);
  EXPECT_EQ(Names("/dev/shm"), names);
}

// A slab of each kind that others can map.
class SlabOfProcess : public testing::TestWithParam<bool> {
 protected:
  static Slab Make(uint64_t bytes) { return GetParam() ? Slab::File(testing::TempDir(), bytes) : Slab::Shared(bytes); }
};

INSTANTIATE_TEST_SUITE_P(Kinds, SlabOfProcess, testing::Bool(),
                         [](const auto& info) { return std::string(info.param ? "File" : "Shared"); });

TEST_P(SlabOfProcess, IsTheSameMemoryBothWays) {
  const Slab slab = Make(3 << 20);
  slab.data()[5] = std::byte{1};
  const Slab again = Slab::OfProcess(getpid(), slab.descriptor(), slab.size());
  ASSERT_NE(again.data(), slab.data());
  EXPECT_EQ(again.size(), slab.size());
  EXPECT_EQ(again.data()[5], std::byte{1});
  for (const uint64_t at : {uint64_t{0}, uint64_t{5}, slab.size() - 1}) {
    slab.data()[at] = std::byte{9};
    EXPECT_EQ(again.data()[at], std::byte{9});
  }
}

TEST_P(SlabOfProcess, StaysReadableWhenTheOwnersIsGone) {
  Slab slab = Make(20'000);
  slab.data()[19'999] = std::byte{4};
  const Slab again = Slab::OfProcess(getpid(), slab.descriptor(), slab.size());
  slab = Slab();
  EXPECT_EQ(again.data()[19'999], std::byte{4});
}

TEST_P(SlabOfProcess, CannotBeWrittenTo) {
  const Slab slab = Make(4096);
  const Slab again = Slab::OfProcess(getpid(), slab.descriptor(), slab.size());
  const pid_t child = fork();
  if (child == 0) {
    signal(SIGSEGV, [](int) { _exit(7); });
    *const_cast<volatile std::byte*>(again.data()) = std::byte{1};
    _exit(0);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 7);
  EXPECT_EQ(slab.data()[0], std::byte{0});
}

TEST_P(SlabOfProcess, IsFoundInAnotherProcessAndOutlivesItsEnd) {
  for (const bool is_killed : {false, true}) {
    Child child([](const Link& parent) {
      const Slab slab = Make(9000);
      slab.data()[8999] = std::byte{3};
      parent.Send(slab.descriptor());
      parent.Send(slab.size());
      parent.Receive<bool>();  // mapped
      slab.data()[0] = std::byte{6};
      parent.Send(true);
      parent.Receive<bool>();
    });
    const pid_t number = child.number();
    const int descriptor = child.link().Receive<int>();
    const Slab mapped = Slab::OfProcess(number, descriptor, child.link().Receive<uint64_t>());
    EXPECT_EQ(mapped.data()[8999], std::byte{3});
    EXPECT_EQ(mapped.data()[0], std::byte{0});
    child.link().Send(true);
    child.link().Receive<bool>();
    EXPECT_EQ(mapped.data()[0], std::byte{6});
    if (is_killed) {
      child.Kill();
    } else {
      child.link().Send(true);
    }
    EXPECT_EQ(child.Collect(), is_killed ? SIGKILL : 0);
    EXPECT_EQ(mapped.data()[0], std::byte{6});
    EXPECT_EQ(mapped.data()[8999], std::byte{3});
    const std::string refusal = Refusal([&] { Slab::OfProcess(number, descriptor, 4096); });
    const std::string who = "shared memory of process " + std::to_string(number);
    EXPECT_NE(refusal.find(who + ": 4096 bytes refused (No such file or directory)"), std::string::npos) << refusal;
  }
}

TEST(SlabOfProcessRefusal, OfAProcessThatEndedAndIsNotCollectedYet) {
  Child child([](const Link& parent) {
    const Slab slab = Slab::Shared(4096);
    parent.Send(slab.descriptor());
    parent.Receive<bool>();
  });
  const auto descriptor = child.link().Receive<int>();
  EXPECT_EQ(Slab::OfProcess(child.number(), descriptor, 4096).size(), 4096u);
  child.link().Send(true);
  siginfo_t info;
  ASSERT_EQ(waitid(P_PID, static_cast<id_t>(child.number()), &info, WEXITED | WNOWAIT), 0);
  const std::string refusal = Refusal([&] { Slab::OfProcess(child.number(), descriptor, 4096); });
  EXPECT_NE(refusal.find("4096 bytes refused ("), std::string::npos) << refusal;
  EXPECT_EQ(child.Collect(), 0);
}

TEST(SlabOfProcessRefusal, OfADescriptorThatIsNotOneOfASlabOfThatSize) {
  const Slab slab = Slab::Shared(8192);
  const size_t before = NumDescriptors();
  const std::string who = "shared memory of process " + std::to_string(getpid()) + ": ";
  const std::string larger = Refusal([&] { Slab::OfProcess(getpid(), slab.descriptor(), slab.size() + 1); });
  EXPECT_NE(larger.find(who + "8193 bytes refused (No such process)"), std::string::npos) << larger;
  const std::string missing = Refusal([&] { Slab::OfProcess(getpid(), 100'000, 8192); });
  EXPECT_NE(missing.find(who + "8192 bytes refused (No such file or directory)"), std::string::npos) << missing;
  const std::string of_anonymous =
      Refusal([&] { Slab::OfProcess(getpid(), Slab::Anonymous(8192).descriptor(), 8192); });
  EXPECT_NE(of_anonymous.find(who + "8192 bytes refused"), std::string::npos) << of_anonymous;
  EXPECT_EQ(NumDescriptors(), before);
}

TEST(SlabOfProcessRefusal, OfWhatIsNoFile) {
  const Deadline deadline(60);
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  close(ends[1]);
  EXPECT_THROW(Slab::OfProcess(getpid(), ends[0], 4096), std::runtime_error);
  close(ends[0]);
}

TEST_F(SlabFile, InAFolderLeavesNothingThere) {
  const Slab slab = Slab::File(folder_, 300'000);
  EXPECT_TRUE(fs::is_empty(folder_));
  EXPECT_GE(slab.size(), 300'000u);
  EXPECT_TRUE(IsZero(slab));
  std::fill_n(slab.data(), slab.size(), std::byte{3});
  EXPECT_EQ(std::count(slab.data(), slab.data() + slab.size(), std::byte{3}), static_cast<int64_t>(slab.size()));
}

TEST_F(SlabFile, UnderANameLeavesTheNameFree) {
  const std::string name = folder_ + "/samples";
  const Slab slab = Slab::File(name, 5000);
  EXPECT_TRUE(fs::is_empty(folder_));
  const Slab other = Slab::File(name, 5000);
  slab.data()[0] = std::byte{1};
  EXPECT_EQ(other.data()[0], std::byte{0}) << "two files under one name are one file";
}

TEST_F(SlabFile, NoDescriptorStaysOpenAfterIt) {
  const size_t before = NumDescriptors();
  {
    const Slab named = Slab::File(folder_ + "/samples", 5000);
    Slab unnamed = Slab::File(folder_, 5000);
    EXPECT_THROW(Slab::File(folder_ + "/missing/samples", 5000), std::runtime_error);
    EXPECT_EQ(NumDescriptors(), before + 2) << "others map a file by its descriptor";
    const Slab moved(std::move(unnamed));
    EXPECT_EQ(NumDescriptors(), before + 2);
  }
  EXPECT_EQ(NumDescriptors(), before);
}

TEST_F(SlabFile, AFileThatIsThereIsRefusedAndLeftAlone) {
  const std::string name = folder_ + "/notes";
  std::ofstream(name) << "mine";
  const std::string refusal = Refusal([&] { Slab::File(name, 8192); });
  EXPECT_NE(refusal.find(name + ": 8192 bytes refused (File exists)"), std::string::npos) << refusal;
  std::string contents;
  std::ifstream(name) >> contents;
  EXPECT_EQ(contents, "mine");
}

TEST_F(SlabFile, AMissingFolderIsRefusedByName) {
  const std::string name = folder_ + "/missing/samples";
  const std::string refusal = Refusal([&] { Slab::File(name, 4096); });
  EXPECT_NE(refusal.find(name + ": 4096 bytes refused (No such file or directory)"), std::string::npos) << refusal;
}

TEST_F(SlabFile, MoreThanMayBeWrittenIsRefusedAtOnceWithTheNumber) {
  const auto handler = signal(SIGXFSZ, SIG_IGN);
  rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const rlimit lower{1 << 20, before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &lower), 0);
  const std::string in_folder = Refusal([&] { Slab::File(folder_, 8 << 20); });
  const std::string named = Refusal([&] { Slab::File(folder_ + "/samples", 8 << 20); });
  setrlimit(RLIMIT_FSIZE, &before);
  signal(SIGXFSZ, handler);
  EXPECT_NE(in_folder.find(folder_ + ": 8388608 bytes refused (File too large)"), std::string::npos) << in_folder;
  EXPECT_NE(named.find("8388608 bytes refused (File too large)"), std::string::npos) << named;
  EXPECT_TRUE(fs::is_empty(folder_));
}

TEST_F(SlabFile, AskingForWhatIsReadSoonLeavesItAsItIs) {
  const Slab memory = Slab::Anonymous(20'000);
  const Slab file = Slab::File(folder_, 20'000);
  for (const Slab* slab : {&memory, &file}) {
    for (uint64_t i = 0; i < slab->size(); ++i) slab->data()[i] = static_cast<std::byte>(i % 251);
    slab->WillRead(slab->data() + 1, 1);
    slab->WillRead(slab->data() + 4095, 9000);
    slab->WillRead(slab->data() + slab->size() - 1, 1);
    for (uint64_t i = 0; i < slab->size(); ++i) ASSERT_EQ(slab->data()[i], static_cast<std::byte>(i % 251));
  }
}

}  // namespace
}  // namespace reprise
