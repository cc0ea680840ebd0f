#include "worker/trainer/parallel/fsdp.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <utility>

namespace switchyard {
namespace {

constexpr int kMaxArriving = 2;         // a layer's dense and expert bucket
constexpr int64_t kShardMultiple = 16;  // 16-bit slices start and end at multiples of 32 bytes

int64_t PaddedShard(int64_t numel, int num_shards) {
  const int64_t shard = (numel + num_shards - 1) / num_shards;
  return (shard + kShardMultiple - 1) / kShardMultiple * kShardMultiple;
}

}  // namespace

ShardRange ShardOf(int64_t bucket_numel, int num_shards, int shard) {
  const int64_t padded = PaddedShard(bucket_numel, num_shards);
  return {std::min(bucket_numel, shard * padded), std::min(bucket_numel, (shard + 1) * padded)};
}

ShardedParameterStore::ShardedParameterStore(std::vector<BucketLayout> layouts, const Mesh& mesh,
                                             const Comms& comms, const FsdpOptions& options)
    : layouts_(std::move(layouts)),
      comms_(comms),
      options_(options),
      gathers_(options.device),
      reductions_(options.device) {
  for (const BucketLayout& layout : layouts_) {
    const Axis axis = layout.kind == BucketKind::kDense ? Axis::kDpShard : Axis::kExpertShard;
    Bucket bucket;
    bucket.layout = layout;
    bucket.shard_comm = &comms_[axis];
    TORCH_CHECK(bucket.shard_comm->size() == mesh.AxisSize(axis), "bug: fsdp: bucket ", layout.name,
                " has a group of ", bucket.shard_comm->size(), " ranks, the mesh ",
                mesh.AxisSize(axis));
    bucket.range = ShardOf(layout.numel, bucket.shard_comm->size(), bucket.shard_comm->rank());
    bucket.padded_shard = PaddedShard(layout.numel, bucket.shard_comm->size());
    TORCH_CHECK(options_.gradient_dtype == at::kFloat || options_.gradient_dtype == at::kBFloat16,
                "bug: fsdp: gradients in ", options_.gradient_dtype);
    bucket.shard =
        at::zeros({bucket.padded_shard}, at::device(options.device).dtype(options.weight_dtype));
    buckets_.push_back(std::move(bucket));
  }
}

void ShardedParameterStore::StartGather(Bucket& bucket) {
  if (bucket.gathered.defined()) return;
  if (bucket.shard_comm->size() == 1) {
    bucket.gathered = bucket.shard;
    return;
  }
  bucket.gathered =
      at::empty({bucket.padded_shard * bucket.shard_comm->size()}, bucket.shard.options());
  bucket.arrived =
      gathers_.Run([&] { bucket.shard_comm->AllGather(bucket.gathered, bucket.shard); });
  bucket.arriving = true;
  ++num_arriving_;
}

void ShardedParameterStore::AwaitGather(Bucket& bucket) {
  if (!bucket.arriving) return;
  bucket.arrived.WaitOn(options_.device);
  bucket.arriving = false;
  --num_arriving_;
}

at::Tensor ShardedParameterStore::Acquire(int index) {
  Bucket& bucket = buckets_.at(index);
  StartGather(bucket);
  AwaitGather(bucket);
  ++bucket.users;
  return bucket.gathered.narrow(0, 0, bucket.layout.numel);
}

void ShardedParameterStore::Release(int index) {
  Bucket& bucket = buckets_.at(index);
  TORCH_CHECK(bucket.users > 0, "bug: fsdp: bucket ", bucket.layout.name,
              " released more often than acquired");
  --bucket.users;
  if (bucket.users == 0 && options_.reshard_after_forward) bucket.gathered.reset();
}

// The hint is dropped when enough is on its way: on all ranks alike, since it is counted, not
// timed.
void ShardedParameterStore::Prefetch(int index) {
  if (num_arriving_ < kMaxArriving) StartGather(buckets_.at(index));
}

void ShardedParameterStore::AllocateGradient(Bucket& bucket) {
  bucket.gradient = at::empty({bucket.padded_shard * bucket.shard_comm->size()},
                              bucket.shard.options().dtype(options_.gradient_dtype));
  const int64_t padding = bucket.gradient.numel() - bucket.layout.numel;
  if (padding > 0) bucket.gradient.narrow(0, bucket.layout.numel, padding).zero_();
}

GradientBuffer ShardedParameterStore::Gradient(int index) {
  Bucket& bucket = buckets_.at(index);
  TORCH_CHECK(!bucket.reduced, "bug: fsdp: gradient of ", bucket.layout.name,
              " asked for after it was reduced");
  const bool accumulate = bucket.gradient.defined();
  if (!accumulate) AllocateGradient(bucket);
  return {bucket.gradient.narrow(0, 0, bucket.layout.numel), accumulate};
}

void ShardedParameterStore::GradientDone(int index) {
  if (last_microbatch_ && !buckets_.at(index).reduced) StartReduction(index);
}

void ShardedParameterStore::StartReduction(int index) {
  Bucket& bucket = buckets_[index];
  Comm& replicas = comms_[Axis::kDpReplicate];
  if (!bucket.gradient.defined()) {
    AllocateGradient(bucket);
    bucket.gradient.zero_();
  }
  bucket.reduced = true;
  const bool sharded = bucket.shard_comm->size() > 1;
  bucket.gradient_shard =
      sharded ? at::empty({bucket.padded_shard}, bucket.gradient.options()) : bucket.gradient;
  if (!sharded && replicas.size() == 1) {
    bucket.gradient.reset();
    return;
  }
  AwaitReduction();
  reducing_ = index;
  reduced_ = reductions_.Run([&] {
    if (sharded) bucket.shard_comm->ReduceScatterSum(bucket.gradient_shard, bucket.gradient);
    replicas.AllReduceSum(bucket.gradient_shard);
  });
  if (options_.device.is_cpu()) AwaitReduction();
}

void ShardedParameterStore::AwaitReduction() {
  if (reducing_ < 0) return;
  reduced_.WaitOn(options_.device);
  buckets_[reducing_].gradient.reset();
  reducing_ = -1;
}

void ShardedParameterStore::BeginMicrobatch(bool first, bool last) {
  last_microbatch_ = last;
  if (!first) return;
  for (Bucket& bucket : buckets_) {
    bucket.gradient.reset();
    bucket.gradient_shard.reset();
    bucket.reduced = false;
  }
}

void ShardedParameterStore::FinishGradients() {
  for (int b = 0; b < num_buckets(); ++b) {
    if (!buckets_[b].reduced) StartReduction(b);
  }
  AwaitReduction();
}

void ShardedParameterStore::WeightsChanged() {
  for (Bucket& bucket : buckets_) {
    TORCH_CHECK(bucket.users == 0, "bug: fsdp: weights of ", bucket.layout.name,
                " changed while the model held them");
    AwaitGather(bucket);
    bucket.gathered.reset();
    bucket.gradient_shard.reset();
  }
}

at::Tensor ShardedParameterStore::weight_shard(int index) const {
  const Bucket& bucket = buckets_.at(index);
  return bucket.shard.narrow(0, 0, bucket.range.numel());
}

at::Tensor ShardedParameterStore::gradient_slice(int index) const {
  const Bucket& bucket = buckets_.at(index);
  TORCH_CHECK(bucket.reduced && reducing_ != index && bucket.gradient_shard.defined(),
              "bug: fsdp: gradient of ", bucket.layout.name, " asked for before FinishGradients");
  return bucket.gradient_shard;
}

at::Tensor ShardedParameterStore::gradient_shard(int index) const {
  return gradient_slice(index).narrow(0, 0, buckets_[index].range.numel());
}

int64_t ShardedParameterStore::gathered_bytes() const {
  int64_t bytes = 0;
  for (const Bucket& bucket : buckets_) {
    if (bucket.gathered.defined() && bucket.shard_comm->size() > 1) {
      bytes += static_cast<int64_t>(bucket.gathered.nbytes());
    }
  }
  return bytes;
}

}  // namespace switchyard
