// Collectives and the sharded store on GPUs, where every rank has a stream of its own and ranks are
// late by turns: memory is overwritten and given back as soon as its owner may do so, so that a
// missing wait shows as wrong values. Ranks share the GPUs there are.
#include <ATen/ATen.h>
#include <ATen/cuda/Sleep.h>
#include <c10/core/StreamGuard.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>

#include <functional>
#include <random>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "worker/trainer/parallel/fsdp.h"
#include "worker/trainer/parallel/in_process_comm.h"

namespace switchyard {
namespace {

constexpr int kWorld = 4;
constexpr int kMaxCycles = 400'000;  // about 0.2 ms

// Holds the current stream up for a while, by the rank's own dice.
class Delays {
 public:
  explicit Delays(int rank) : random_(static_cast<uint32_t>(rank + 1)) {}
  void Maybe() {
    if (random_() % 3 == 0) at::cuda::sleep(static_cast<int64_t>(random_() % kMaxCycles));
  }

 private:
  std::minstd_rand random_;
};

at::Device DeviceOf(int rank) {
  return at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(rank % c10::cuda::device_count()));
}

class StreamsCudaTest : public testing::Test {
 protected:
  void SetUp() override {
    if (c10::cuda::device_count() == 0) GTEST_SKIP() << "no GPU";
  }
  static void RunRanks(
      const std::function<void(int rank, at::Device device, InProcessWorld& world)>& body) {
    RunInProcess(kWorld, absl::Seconds(60), [&](int rank, InProcessWorld& world) {
      const at::Device device = DeviceOf(rank);
      const c10::StreamGuard guard(
          c10::cuda::getStreamFromPool(/*isHighPriority=*/false, device.index()));
      body(rank, device, world);
      c10::cuda::getCurrentCUDAStream(device.index()).synchronize();
    });
  }
};

// Different for each rank and round; exact in bfloat16 sums of kWorld ranks.
at::Tensor Values(int rank, int round, int64_t numel, at::TensorOptions options) {
  return at::arange(numel, options.dtype(at::kFloat))
      .remainder(17)
      .add(rank * 3 + round % 11)
      .to(options);
}

TEST_F(StreamsCudaTest, CollectivesWaitForLateRanksAndFreeTheirInputsInTime) {
  RunRanks([](int rank, at::Device device, InProcessWorld& world) {
    const Comms comms = world.MakeComms(MakeMesh(kWorld, rank, 1, 1, 0).value());
    Comm& comm = comms[Axis::kWorld];
    Delays delays(rank);
    constexpr int64_t kNumel = 1 << 16;
    at::Tensor wrong = at::zeros({}, at::device(device).dtype(at::kLong));
    for (int round = 0; round < 100; ++round) {
      const at::ScalarType type = round % 2 == 0 ? at::kFloat : at::kBFloat16;
      const at::TensorOptions options = at::device(device).dtype(type);
      at::Tensor sum = at::zeros({kNumel}, options.dtype(at::kFloat));
      for (int r = 0; r < kWorld; ++r) sum.add_(Values(r, round, kNumel, options));

      delays.Maybe();
      at::Tensor reduced = Values(rank, round, kNumel, options);
      comm.AllReduceSum(reduced);
      wrong.add_(reduced.to(at::kFloat).ne(sum).sum());
      reduced.fill_(-1);

      at::Tensor gathered = at::empty({kNumel * kWorld}, options);
      {
        at::Tensor mine = Values(rank, round, kNumel, options);
        delays.Maybe();
        comm.AllGather(gathered, mine);
        mine.fill_(-2);
      }
      for (int r = 0; r < kWorld; ++r) {
        wrong.add_(
            gathered.narrow(0, r * kNumel, kNumel).ne(Values(r, round, kNumel, options)).sum());
      }

      at::Tensor part = at::empty({kNumel / kWorld}, options);
      {
        at::Tensor mine = Values(rank, round, kNumel, options);
        delays.Maybe();
        comm.ReduceScatterSum(part, mine);
        mine.fill_(-3);
      }
      wrong.add_(
          part.to(at::kFloat).ne(sum.narrow(0, rank * (kNumel / kWorld), kNumel / kWorld)).sum());
    }
    ASSERT_EQ(wrong.item<int64_t>(), 0) << "rank " << rank;
  });
}

std::vector<BucketLayout> Layouts() {
  std::vector<BucketLayout> layouts;
  for (int layer = 0; layer < 6; ++layer) {
    layouts.push_back({.name = "dense " + std::to_string(layer),
                       .kind = BucketKind::kDense,
                       .numel = 300'001 + layer,
                       .slots = {}});
    layouts.push_back({.name = "experts " + std::to_string(layer),
                       .kind = BucketKind::kExpert,
                       .numel = 500'003 + layer,
                       .slots = {}});
  }
  return layouts;
}

at::Tensor WholeBucket(const BucketLayout& layout, int bucket, int owner,
                       at::TensorOptions options) {
  return Values(layout.kind == BucketKind::kExpert ? owner : 0, bucket, layout.numel, options);
}

// As a model uses the store: layer by layer forward and backward with the next layer prefetched,
// short-lived tensors in between that reuse memory at once.
void RunStore(int rank, at::Device device, InProcessWorld& world, bool reshard) {
  const Mesh mesh = MakeMesh(kWorld, rank, 1, 2, 0).value();
  const Comms comms = world.MakeComms(mesh);
  FsdpOptions options;
  options.device = device;
  options.weight_dtype = at::kBFloat16;
  options.reshard_after_forward = reshard;
  ShardedParameterStore store(Layouts(), mesh, comms, options);
  const int buckets = store.num_buckets();
  const at::TensorOptions bf16 = at::device(device).dtype(at::kBFloat16);
  for (int b = 0; b < buckets; ++b) {
    const ShardRange range = store.shard_range(b);
    store.weight_shard(b).copy_(WholeBucket(store.layout(b), b, mesh.ep_rank(), bf16)
                                    .narrow(0, range.begin, range.numel()));
  }
  Delays delays(rank);
  at::Tensor wrong = at::zeros({}, at::device(device).dtype(at::kLong));
  const auto use = [&](int b, int step) {
    const at::Tensor weights = store.Acquire(b);
    delays.Maybe();
    wrong.add_(
        weights.ne(WholeBucket(store.layout(b), b, mesh.ep_rank(), bf16) + double(step)).sum());
    store.Release(b);
    at::empty({store.layout(b).numel}, bf16).fill_(-1);
  };
  constexpr int kSteps = 6, kMicrobatches = 2;
  for (int step = 0; step < kSteps; ++step) {
    for (int m = 0; m < kMicrobatches; ++m) {
      store.BeginMicrobatch(m == 0, m + 1 == kMicrobatches);
      for (int b = 0; b < buckets; b += 2) {
        for (int next : {b + 2, b + 3}) {
          if (next < buckets) store.Prefetch(next);
        }
        use(b, step);
        use(b + 1, step);
      }
      for (int b = buckets - 2; b >= 0; b -= 2) {
        for (int next : {b - 2, b - 1}) {
          if (next >= 0) store.Prefetch(next);
        }
        for (int bucket : {b + 1, b}) {
          use(bucket, step);
          const GradientBuffer gradient = store.Gradient(bucket);
          const at::Tensor mine =
              Values(rank, step + bucket, gradient.flat.numel(), gradient.flat.options());
          if (gradient.accumulate) {
            gradient.flat.add_(mine);
          } else {
            gradient.flat.copy_(mine);
          }
          store.GradientDone(bucket);
        }
      }
    }
    store.FinishGradients();
    for (int b = 0; b < buckets; ++b) {
      const ShardRange range = store.shard_range(b);
      at::Tensor sum = at::zeros({store.layout(b).numel}, bf16.dtype(at::kFloat));
      for (int r = 0; r < kWorld; ++r) {
        const bool shares =
            store.layout(b).kind == BucketKind::kDense || r % mesh.ep_size == mesh.ep_rank();
        if (shares) sum.add_(Values(r, step + b, sum.numel(), sum.options()), kMicrobatches);
      }
      wrong.add_(store.gradient_shard(b).ne(sum.narrow(0, range.begin, range.numel())).sum());
      store.weight_shard(b).add_(1);
    }
    store.WeightsChanged();
  }
  ASSERT_EQ(wrong.item<int64_t>(), 0) << "rank " << rank;
}

TEST_F(StreamsCudaTest, AStoreThatGathersAndReducesAheadGivesEveryBucketWhole) {
  for (bool reshard : {true, false}) {
    RunRanks([reshard](int rank, at::Device device, InProcessWorld& world) {
      RunStore(rank, device, world, reshard);
    });
  }
}

}  // namespace
}  // namespace switchyard
