// The CUDA path against a fake driver whose streams are slow and really asynchronous (fake_cuda.cc).
#include "cuda.h"

#include <dlfcn.h>
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <memory>
#include <set>
#include <stdexcept>
#include <vector>

#include "engine.h"

namespace reprise {
namespace {

constexpr uint64_t kBytes = 96;  // of the one field
constexpr uint64_t kRows = 6;
constexpr uint32_t kDraws = 5;

// The fake library's own handle, and a stream of the caller's beside the engine's.
class CudaTest : public testing::Test {
 protected:
  CudaTest() : library_(dlopen(FAKE_CUDA_LIBRARY, RTLD_NOW)) {
    if (!library_) throw std::runtime_error(dlerror());
    Call<int(unsigned)>("cuInit")(0);
    void* context;
    Call<int(void**, int)>("cuDevicePrimaryCtxRetain")(&context, 0);
    Call<int(void*)>("cuCtxPushCurrent_v2")(context);
    Call<int(void**, unsigned)>("cuStreamCreate")(&stream_, 0);
  }
  ~CudaTest() override {
    Call<int(void*)>("cuStreamDestroy_v2")(stream_);
    void* context;
    Call<int(void**)>("cuCtxPopCurrent_v2")(&context);
  }

  template <typename Signature>
  Signature* Call(const char* name) const {
    return reinterpret_cast<Signature*>(dlsym(library_, name));
  }
  // Queue work on the caller's stream.
  void Launch(std::function<void()> work) {
    auto* const argument = new std::function<void()>(std::move(work));
    Call<void(void*, void (*)(void*), void*)>("fakeLaunch")(
        stream_,
        [](void* raw) {
          const std::unique_ptr<std::function<void()>> owned(static_cast<std::function<void()>*>(raw));
          (*owned)();
        },
        argument);
  }
  void Synchronize() { Call<int(void*)>("cuStreamSynchronize")(stream_); }
  uint64_t UnpinnedCopies() const { return Call<uint64_t()>("fakeUnpinnedCopies")(); }
  uint64_t PinnedRanges() const { return Call<uint64_t()>("fakePinnedRanges")(); }

  EngineOptions Options() const {
    EngineOptions options;
    options.field_bytes = {kBytes};
    options.share = 40;
    options.policy = "reservoir";
    options.draws = {kDraws};
    options.cuda_device = 0;
    options.cuda_library = FAKE_CUDA_LIBRARY;
    return options;
  }

  void* library_;
  void* stream_ = nullptr;
};

// Columns of one staging slot "on the device".
struct DeviceRows {
  std::vector<std::byte> field = std::vector<std::byte>(kDraws * kBytes);
  std::vector<int64_t> labels = std::vector<int64_t>(kDraws), tasks = labels, ranks = labels;
  std::vector<float> weights = std::vector<float>(kDraws);

  std::vector<Cuda::Address> Addresses() {
    return {reinterpret_cast<Cuda::Address>(field.data()), reinterpret_cast<Cuda::Address>(labels.data()),
            reinterpret_cast<Cuda::Address>(tasks.data()), reinterpret_cast<Cuda::Address>(ranks.data()),
            reinterpret_cast<Cuda::Address>(weights.data())};
  }
};

struct DeviceBatch {
  std::vector<std::byte> field = std::vector<std::byte>(kRows * kBytes);
  std::vector<int64_t> labels = std::vector<int64_t>(kRows), tasks = labels;
};

class WhereBatchesLie : public CudaTest, public testing::WithParamInterface<int> {};

TEST_P(WhereBatchesLie, EveryDrawOnTheDeviceHoldsWholeSamplesInStreamOrder) {
  const bool field_there = GetParam() & 1, labels_there = GetParam() & 2, tasks_there = GetParam() & 4;
  std::vector<DeviceRows> rows(Engine::kSlots);  // must outlive what is copied there
  Engine engine(Options());
  EXPECT_EQ(engine.not_pinned(), "");
  for (uint32_t slot = 0; slot < Engine::kSlots; ++slot) engine.SetDeviceRows(slot, rows[slot].Addresses(), stream_);

  // Two batches take turns: one may be rewritten when the draw after it has been delivered.
  std::vector<DeviceBatch> batches(2);
  constexpr int64_t kSteps = 120;
  int64_t checked = 0;
  std::set<int64_t> drawn;
  for (int64_t step = 0; step < kSteps; ++step) {
    DeviceBatch& batch = batches[static_cast<size_t>(step % 2)];
    const auto fill_labels = [&batch, step] {
      for (size_t row = 0; row < kRows; ++row)
        batch.labels[row] = step * static_cast<int64_t>(kRows) + static_cast<int64_t>(row);
    };
    const auto fill_tasks = [&batch, step] { batch.tasks.assign(kRows, step % 7); };
    const auto fill_field = [&batch, step] {
      for (size_t row = 0; row < kRows; ++row) {
        const auto id = step * static_cast<int64_t>(kRows) + static_cast<int64_t>(row);
        std::memset(batch.field.data() + row * kBytes, static_cast<int>(id % 251), kBytes);
      }
    };
    labels_there ? Launch(fill_labels) : fill_labels();
    tasks_there ? Launch(fill_tasks) : fill_tasks();
    field_there ? Launch(fill_field) : fill_field();

    Batch submitted;
    submitted.fields = {batch.field.data()};
    submitted.labels = batch.labels.data();
    submitted.tasks = batch.tasks.data();
    submitted.rows = kRows;
    submitted.fields_on_device = {field_there};
    submitted.labels_on_device = labels_there;
    submitted.tasks_on_device = tasks_there;
    submitted.stream = stream_;
    engine.Submit(std::move(submitted));

    const Delivery delivery = engine.Wait(stream_);
    Launch([&rows, &checked, &drawn, delivery] {
      const DeviceRows& draw = rows[delivery.slot];
      for (uint32_t i = 0; i < delivery.sizes[0]; ++i) {
        const int64_t id = draw.labels[i];
        EXPECT_EQ(draw.tasks[i], id / static_cast<int64_t>(kRows) % 7);
        EXPECT_EQ(draw.ranks[i], 0);
        EXPECT_FLOAT_EQ(draw.weights[i], 1.0f);
        for (size_t byte = 0; byte < kBytes; ++byte) {
          ASSERT_EQ(static_cast<int64_t>(draw.field[i * kBytes + byte]), id % 251);
        }
        drawn.insert(id);
        ++checked;
      }
    });
  }
  Synchronize();
  EXPECT_EQ(checked, (kSteps - 1) * kDraws);
  EXPECT_GT(drawn.size(), 100u);
  engine.Close();
  EXPECT_EQ(PinnedRanges(), 0u);
}

INSTANTIATE_TEST_SUITE_P(Cuda, WhereBatchesLie, testing::Range(0, 8));

TEST_F(CudaTest, SamplesAndDrawsTravelThroughPinnedMemory) {
  DeviceRows rows;
  Engine engine(Options());
  for (uint32_t slot = 0; slot < Engine::kSlots; ++slot) engine.SetDeviceRows(slot, rows.Addresses(), stream_);
  const uint64_t before = UnpinnedCopies();
  std::vector<std::byte> field(kRows * kBytes);
  const std::vector<int64_t> labels(kRows);
  for (int step = 0; step < 5; ++step) {
    Batch batch;
    batch.fields = {field.data()};
    batch.labels = labels.data();
    batch.rows = kRows;
    batch.fields_on_device = {true};
    batch.stream = stream_;
    engine.Submit(std::move(batch));
    engine.Wait(stream_);
  }
  engine.Drain();
  EXPECT_EQ(UnpinnedCopies(), before);
  EXPECT_EQ(PinnedRanges(), 1u + Engine::kSlots);
}

TEST_F(CudaTest, APendingDrawFollowsItsSlotToNewRows) {
  std::vector<DeviceRows> rows(Engine::kSlots);
  Engine engine(Options());
  std::vector<std::byte> field(kRows * kBytes, std::byte{7});
  const std::vector<int64_t> labels(kRows, 7);
  Batch batch;
  batch.fields = {field.data()};
  batch.labels = labels.data();
  batch.rows = kRows;
  batch.stream = stream_;
  engine.Wait(stream_);
  engine.Submit(std::move(batch));
  engine.Drain();
  for (uint32_t slot = 0; slot < Engine::kSlots; ++slot) engine.SetDeviceRows(slot, rows[slot].Addresses(), stream_);
  const Delivery delivery = engine.Wait(stream_);
  ASSERT_EQ(delivery.sizes, std::vector<uint32_t>{kDraws});
  Synchronize();
  EXPECT_EQ(rows[delivery.slot].labels, std::vector<int64_t>(kDraws, 7));
  EXPECT_EQ(rows[delivery.slot].field, std::vector<std::byte>(kDraws * kBytes, std::byte{7}));
}

TEST_F(CudaTest, AMissingDriverOrDeviceIsSaidInOneLine) {
  EngineOptions options = Options();
  options.cuda_library = "libno_such_driver.so";
  EXPECT_THROW(Engine{options}, std::runtime_error);
  options = Options();
  options.cuda_device = 3;
  try {
    Engine engine(options);
    FAIL();
  } catch (const std::runtime_error& error) {
    EXPECT_STREQ(error.what(), "CUDA: finding the device: a fake error (101)");
  }
}

}  // namespace
}  // namespace reprise
