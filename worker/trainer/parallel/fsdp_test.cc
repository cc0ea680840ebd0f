// The sharded store over several meshes: what is gathered, and what the ranks' gradients sum to.
#include "worker/trainer/parallel/fsdp.h"

#include <ATen/ATen.h>

#include <string>
#include <vector>

#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/trainer/parallel/agree.h"
#include "worker/trainer/parallel/in_process_comm.h"

namespace switchyard {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;

struct MeshCase {
  int world, replicate, ep;
};

std::string CaseName(const testing::TestParamInfo<MeshCase>& info) {
  return std::to_string(info.param.world) + "Ranks" + std::to_string(info.param.replicate) +
         "Replicas" + std::to_string(info.param.ep) + "Ep";
}

// Sizes that need padding; 3 elements are fewer than one slice.
std::vector<BucketLayout> Layouts() {
  std::vector<BucketLayout> layouts(3);
  layouts[0] = {.name = "dense", .kind = BucketKind::kDense, .numel = 101, .slots = {}};
  layouts[1] = {.name = "experts", .kind = BucketKind::kExpert, .numel = 70, .slots = {}};
  layouts[2] = {.name = "tiny", .kind = BucketKind::kDense, .numel = 3, .slots = {}};
  return layouts;
}

// Bucket b of the ranks with this ep_rank, as it should look gathered.
at::Tensor Whole(int bucket, int ep_rank) {
  const BucketLayout layout = Layouts()[bucket];
  const int owner = layout.kind == BucketKind::kExpert ? ep_rank : 0;
  return at::arange(layout.numel, at::kFloat) + 1000.0 * (bucket + 1) + 5000.0 * owner;
}

void FillWeights(ShardedParameterStore& store, int ep_rank) {
  for (int b = 0; b < store.num_buckets(); ++b) {
    const ShardRange range = store.shard_range(b);
    store.weight_shard(b).copy_(Whole(b, ep_rank).narrow(0, range.begin, range.numel()));
  }
}

class FsdpTest : public testing::TestWithParam<MeshCase> {
 protected:
  void Run(bool reshard,
           const std::function<void(ShardedParameterStore&, const Mesh&, const Comms&)>& body) {
    const MeshCase c = GetParam();
    RunInProcess(c.world, absl::Seconds(30), [&](int rank, InProcessWorld& world) {
      const Mesh mesh = MakeMesh(c.world, rank, c.replicate, c.ep, 0).value();
      const Comms comms = world.MakeComms(mesh);
      FsdpOptions options;
      options.reshard_after_forward = reshard;
      ShardedParameterStore store(Layouts(), mesh, comms, options);
      FillWeights(store, mesh.ep_rank());
      body(store, mesh, comms);
    });
  }
};

INSTANTIATE_TEST_SUITE_P(Meshes, FsdpTest,
                         testing::Values(MeshCase{1, 1, 1}, MeshCase{2, 1, 1}, MeshCase{2, 1, 2},
                                         MeshCase{4, 1, 2}, MeshCase{4, 2, 2}, MeshCase{4, 4, 1}),
                         CaseName);

TEST_P(FsdpTest, AcquireGathersTheWholeBucket) {
  Run(true, [](ShardedParameterStore& store, const Mesh& mesh, const Comms&) {
    for (int b = 0; b < store.num_buckets(); ++b) {
      store.Prefetch(b);
      ASSERT_TRUE(at::equal(store.Acquire(b), Whole(b, mesh.ep_rank())));
      ASSERT_TRUE(at::equal(store.Acquire(b), Whole(b, mesh.ep_rank()))) << "nested";
      store.Release(b);
      store.Release(b);
    }
    ASSERT_EQ(store.gathered_bytes(), 0);
  });
}

TEST_P(FsdpTest, AtMostTwoPrefetchedBucketsAreOnTheirWay) {
  Run(true, [](ShardedParameterStore& store, const Mesh& mesh, const Comms& comms) {
    const std::vector<Axis> axes = {Axis::kDpShard, Axis::kExpertShard, Axis::kDpShard};
    int64_t expected = 0;
    int cut = 0;
    for (int b = 0; b < store.num_buckets(); ++b) {
      store.Prefetch(b);
      const int shards = comms[axes[b]].size();
      if (shards > 1 && ++cut <= 2) {
        expected += static_cast<int64_t>(store.weight_slice(b).nbytes()) * shards;
      }
    }
    ASSERT_EQ(store.gathered_bytes(), expected);
    ASSERT_TRUE(at::equal(store.Acquire(0), Whole(0, 0)));
    store.Prefetch(2);  // there is room again
    ASSERT_EQ(store.gathered_bytes() > 0, mesh.dp_shard_size() > 1);
    store.Release(0);
    for (int b = 1; b < store.num_buckets(); ++b) {
      ASSERT_TRUE(at::equal(store.Acquire(b), Whole(b, mesh.ep_rank())));
      store.Release(b);
    }
    ASSERT_EQ(store.gathered_bytes(), 0);
  });
}

TEST_P(FsdpTest, WithoutReshardingBucketsStayUntilTheWeightsChange) {
  Run(false, [](ShardedParameterStore& store, const Mesh& mesh, const Comms&) {
    store.Acquire(0);
    store.Release(0);
    ASSERT_EQ(store.gathered_bytes() > 0, mesh.dp_shard_size() > 1);
    store.weight_shard(0).add_(1);
    store.WeightsChanged();
    ASSERT_EQ(store.gathered_bytes(), 0);
    ASSERT_TRUE(at::equal(store.Acquire(0), Whole(0, 0) + 1));
    store.Release(0);
  });
}

TEST_P(FsdpTest, GradientsSumOverMicrobatchesAndTheRanksThatShareThem) {
  Run(true, [](ShardedParameterStore& store, const Mesh& mesh, const Comms&) {
    for (int step = 0; step < 2; ++step) {
      for (int m = 0; m < 2; ++m) {
        store.BeginMicrobatch(m == 0, m == 1);
        for (int b = store.num_buckets() - 1; b >= 0; --b) {
          if (mesh.rank == 0 && m == 1) continue;  // rank 0's second micro-batch is empty
          const GradientBuffer gradient = store.Gradient(b);
          ASSERT_EQ(gradient.accumulate, m == 1) << "only the first of a step overwrites";
          const at::Tensor add =
              at::arange(gradient.flat.numel(), at::kFloat) * double(mesh.rank + 1);
          if (gradient.accumulate) {
            gradient.flat.add_(add);
          } else {
            gradient.flat.copy_(add);
          }
        }
        for (int b = store.num_buckets() - 1; b >= 0; --b) store.GradientDone(b);
      }
      store.FinishGradients();
      for (int b = 0; b < store.num_buckets(); ++b) {
        double factor = 0;
        for (int r = 0; r < mesh.world_size; ++r) {
          const bool shares =
              store.layout(b).kind == BucketKind::kDense || r % mesh.ep_size == mesh.ep_rank();
          if (shares) factor += (r + 1) * (r == 0 ? 1 : 2);
        }
        const ShardRange range = store.shard_range(b);
        ASSERT_TRUE(at::equal(store.gradient_shard(b),
                              at::arange(range.begin, range.end, at::kFloat) * factor))
            << store.layout(b).name << " step " << step;
      }
      store.WeightsChanged();
    }
  });
}

TEST(ShardOfTest, SlicesCoverEveryElementOnce) {
  for (int64_t numel : {1, 3, 16, 17, 100, 101}) {
    for (int shards = 1; shards <= 5; ++shards) {
      int64_t next = 0;
      for (int s = 0; s < shards; ++s) {
        const ShardRange range = ShardOf(numel, shards, s);
        ASSERT_EQ(range.begin, next);
        ASSERT_GE(range.end, range.begin);
        next = range.end;
      }
      ASSERT_EQ(next, numel);
    }
  }
}

TEST(FsdpAloneTest, OneRankComputesOnItsSliceWithoutACopy) {
  RunInProcess(1, absl::Seconds(30), [](int rank, InProcessWorld& world) {
    const Mesh mesh = MakeMesh(1, rank, 1, 1, 0).value();
    const Comms comms = world.MakeComms(mesh);
    ShardedParameterStore store(Layouts(), mesh, comms, {});
    ASSERT_EQ(store.Acquire(0).data_ptr(), store.weight_shard(0).data_ptr());
    store.BeginMicrobatch(true, true);
    const void* buffer = store.Gradient(0).flat.data_ptr();
    store.GradientDone(0);
    ASSERT_EQ(store.gradient_shard(0).data_ptr(), buffer);
  });
}

TEST(FsdpAloneTest, ReleasingTooOftenIsABug) {
  RunInProcess(1, absl::Seconds(30), [](int rank, InProcessWorld& world) {
    const Mesh mesh = MakeMesh(1, rank, 1, 1, 0).value();
    const Comms comms = world.MakeComms(mesh);
    ShardedParameterStore store(Layouts(), mesh, comms, {});
    EXPECT_THAT([&] { store.Release(1); },
                ThrowsMessage<c10::Error>(HasSubstr("experts released more often")));
  });
}

TEST(AgreeTest, AnyRankStopsAllAndAClosedLinkForbidsTheCheckpoint) {
  struct Row {
    StopRequest zero, one, agreed;
  };
  const Row rows[] = {
      {{false, false}, {false, false}, {false, false}},
      {{true, true}, {false, false}, {true, true}},
      {{false, false}, {true, false}, {true, false}},
      {{true, true}, {true, false}, {true, false}},
      {{true, true}, {true, true}, {true, true}},
  };
  for (const Row& row : rows) {
    RunInProcess(2, absl::Seconds(30), [&](int rank, InProcessWorld& world) {
      const Comms comms = world.MakeComms(MakeMesh(2, rank, 1, 1, 0).value());
      const StopRequest agreed = AgreeOnStop(comms[Axis::kWorld], rank == 0 ? row.zero : row.one);
      ASSERT_EQ(agreed.stop, row.agreed.stop);
      ASSERT_EQ(agreed.checkpoint, row.agreed.checkpoint);
    });
  }
}

}  // namespace
}  // namespace switchyard
