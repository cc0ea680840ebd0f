// Ranks as threads that hold TinyModel with known values, for the tests of checkpoints.
#ifndef SWITCHYARD_WORKER_TRAINER_CHECKPOINT_TEST_GANG_H_
#define SWITCHYARD_WORKER_TRAINER_CHECKPOINT_TEST_GANG_H_

#include <ATen/ATen.h>

#include <cstring>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "base/crc32c.h"
#include "worker/trainer/checkpoint/master_bits.h"
#include "worker/trainer/checkpoint/or_throw.h"
#include "worker/trainer/checkpoint/output_plan.h"
#include "worker/trainer/checkpoint/shards.h"
#include "worker/trainer/checkpoint/test_model.h"
#include "worker/trainer/checkpoint/writer.h"
#include "worker/trainer/parallel/fsdp.h"
#include "worker/trainer/parallel/in_process_comm.h"

namespace switchyard {

struct Gang {
  int world_size = 1;
  int dp_replicate_size = 1;
  int ep_size = 1;
};

// Runs body(mesh, world) on every rank.
inline void RunGang(const Gang& gang, const std::function<void(const Mesh&, Comm&)>& body) {
  RunInProcess(gang.world_size, absl::Seconds(60), [&](int rank, InProcessWorld& world) {
    const Mesh mesh =
        OrThrow(MakeMesh(gang.world_size, rank, gang.dp_replicate_size, gang.ep_size, 4));
    const Comms comms = world.MakeComms(mesh);
    body(mesh, comms[Axis::kWorld]);
  });
}

struct Dtypes {
  at::ScalarType weights = at::kFloat;
  bool remainder = false;
  bool moments = false;
  at::ScalarType moment = at::kFloat;
};

// This rank's shards, zeroed, cut as the trainer cuts them.
inline std::vector<BucketShard> MakeShards(const Mesh& mesh, const Dtypes& dtypes) {
  const int64_t per_rank = 4 / mesh.ep_size;
  std::vector<BucketShard> shards;
  for (BucketLayout& layout :
       TinyModel(false, mesh.ep_rank() * per_rank, (mesh.ep_rank() + 1) * per_rank)) {
    const Axis axis = layout.kind == BucketKind::kDense ? Axis::kDpShard : Axis::kExpertShard;
    const ShardRange range = ShardOf(layout.numel, mesh.AxisSize(axis), mesh.AxisRank(axis));
    BucketShard shard;
    shard.layout = std::move(layout);
    shard.begin = range.begin;
    shard.end = range.end;
    shard.weights = at::zeros({range.numel()}, dtypes.weights);
    if (dtypes.remainder) shard.remainder = at::zeros({range.numel()}, at::kShort);
    if (dtypes.moments) {
      shard.exp_avg = at::zeros({range.numel()}, dtypes.moment);
      shard.exp_avg_sq = at::zeros({range.numel()}, dtypes.moment);
    }
    shard.writer = mesh.AxisRank(Axis::kDpReplicate) == 0;
    shards.push_back(std::move(shard));
  }
  return shards;
}

// What element `i` of tensor `name` should be: fp32 with all mantissa bits in use, both signs, and
// some halves between two bf16 numbers.
inline float Value(const std::string& name, int64_t i, int kind) {
  uint64_t x = Crc32c(name) * uint64_t{0x9e3779b97f4a7c15} + static_cast<uint64_t>(i * 4 + kind);
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  x ^= x >> 31;
  const double value = static_cast<double>(x >> 40) / (1 << 24) - 0.5;
  uint32_t bits;
  const float as_float = static_cast<float>(value);
  memcpy(&bits, &as_float, 4);
  if (x % 8 == 0) bits = (bits & 0xffff0000u) | 0x8000u;
  float result;
  memcpy(&result, &bits, 4);
  return result;
}

// fp32 [end - begin] of expected values.
inline at::Tensor Expected(const BucketShard& shard, int kind) {
  at::Tensor out = at::zeros({shard.end - shard.begin}, at::kFloat);
  float* const data = out.data_ptr<float>();
  for (const TensorSlot& slot : shard.layout.slots) {
    for (int64_t i = 0; i < slot.numel; ++i) {
      const int64_t at = slot.offset + i - shard.begin;
      if (at >= 0 && at < shard.end - shard.begin) data[at] = Value(slot.name, i, kind);
    }
  }
  return out;
}

inline void Fill(std::vector<BucketShard>& shards) {
  for (BucketShard& shard : shards) {
    if (shard.remainder.defined()) {
      const MasterParts parts = SplitMaster(Expected(shard, 0));
      shard.weights.copy_(parts.weight);
      shard.remainder.copy_(parts.remainder);
    } else {
      shard.weights.copy_(Expected(shard, 0));
    }
    if (!shard.exp_avg.defined()) continue;
    shard.exp_avg.copy_(Expected(shard, 1));
    shard.exp_avg_sq.copy_(Expected(shard, 2));
  }
}

inline void ExpectSameBits(const at::Tensor& got, const at::Tensor& wanted,
                           const std::string& what) {
  EXPECT_TRUE(got.scalar_type() == wanted.scalar_type() && at::equal(got, wanted)) << what;
}

inline void ExpectFilled(const std::vector<BucketShard>& shards, const Mesh& mesh) {
  for (const BucketShard& shard : shards) {
    const std::string what = absl::StrCat(shard.layout.name, " of rank ", mesh.rank);
    const at::Tensor master =
        shard.remainder.defined() ? JoinMaster(shard.weights, shard.remainder) : shard.weights;
    ExpectSameBits(master, Expected(shard, 0).to(master.scalar_type()), what);
    if (!shard.exp_avg.defined()) continue;
    const at::ScalarType moment = shard.exp_avg.scalar_type();
    ExpectSameBits(shard.exp_avg, Expected(shard, 1).to(moment), what + ", exp_avg");
    ExpectSameBits(shard.exp_avg_sq, Expected(shard, 2).to(moment), what + ", exp_avg_sq");
  }
}

// A folder with what a checkpoint carries along.
inline std::string SourceFolder() {
  const std::string folder = TestFolder("source");
  EXPECT_THAT(ReplaceFile(folder + "/config.json", R"({"torch_dtype": "float16"})"), IsOk());
  EXPECT_THAT(ReplaceFile(folder + "/tokenizer.json", "{}"), IsOk());
  return folder;
}

inline SaveRequest RequestFor(const std::string& folder, const Gang& gang,
                              const std::string& source_folder = SourceFolder()) {
  SaveRequest request;
  request.folder = folder;
  request.source_folder = source_folder;
  request.manifest.job = "projects/p/jobs/j";
  request.manifest.world_size = gang.world_size;
  request.manifest.ep_size = gang.ep_size;
  request.manifest.step = 5;
  request.state.step = 5;
  request.state.seed = 7;
  return request;
}

// Fills shards on a gang and saves them.
inline void SaveFilled(const std::string& folder, const Gang& gang, const Dtypes& dtypes,
                       const CheckpointPlan& plan) {
  const SaveRequest request = RequestFor(folder, gang);
  RunGang(gang, [&](const Mesh& mesh, Comm& world) {
    std::vector<BucketShard> shards = MakeShards(mesh, dtypes);
    Fill(shards);
    SaveCheckpoint(request, plan, shards, world);
  });
}

inline CheckpointPlan PlanFor(const WeightSource* source, const Dtypes& dtypes,
                              int64_t max_shard_bytes) {
  CheckpointFormat format;
  format.weight_dtype = dtypes.weights == at::kFloat ? TensorDtype::kF32 : TensorDtype::kBf16;
  format.moment_dtype = dtypes.moment == at::kFloat ? TensorDtype::kF32 : TensorDtype::kBf16;
  format.save_optimizer = dtypes.moments;
  format.max_shard_bytes = max_shard_bytes;
  return OrThrow(PlanCheckpoint(TinyModel(), source, format));
}

// What `function` throws, as a Status; OK when it does not.
template <typename F>
absl::Status Caught(const F& function) {
  try {
    function();
  } catch (const StatusError& error) {
    return error.status();
  } catch (const std::exception& error) {
    return absl::InternalError(error.what());
  }
  return absl::OkStatus();
}

// What each rank's `body` throws.
inline std::vector<absl::Status> CaughtByRank(const Gang& gang,
                                              const std::function<void(const Mesh&, Comm&)>& body) {
  std::vector<absl::Status> caught(gang.world_size);
  RunGang(gang, [&](const Mesh& mesh, Comm& world) {
    caught[mesh.rank] = Caught([&] { body(mesh, world); });
  });
  return caught;
}

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_CHECKPOINT_TEST_GANG_H_
