// Fully sharded parameters (ZeRO-3, arXiv:1910.02054): each rank owns one equal slice of every flat
// bucket, gathers whole buckets while the model computes with them, and reduces their gradients
// back to slices. Because a parameter is a view of its bucket there is no copy-in and no copy-out.
//
// A dense bucket is cut over the dp_shard axis, an expert bucket over expert_shard; copies along
// dp_replicate hold the same slices. Slices are equal (padded with zeros), so one all-gather and
// one reduce-scatter per bucket do. In a group of one nothing is copied: weights and gradients are
// the slices.
#ifndef SWITCHYARD_WORKER_TRAINER_PARALLEL_FSDP_H_
#define SWITCHYARD_WORKER_TRAINER_PARALLEL_FSDP_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "worker/trainer/parallel/bucket_layout.h"
#include "worker/trainer/parallel/comms.h"
#include "worker/trainer/parallel/mesh.h"
#include "worker/trainer/parallel/parameter_store.h"
#include "worker/trainer/parallel/side_stream.h"

namespace switchyard {

struct FsdpOptions {
  at::ScalarType weight_dtype = at::kFloat;    // kFloat or kBFloat16
  at::ScalarType gradient_dtype = at::kFloat;  // kFloat or kBFloat16; sums over ranks are fp32
  at::Device device = at::kCPU;
  // Drop a gathered bucket when the model releases it; else keep it until the weights change.
  bool reshard_after_forward = true;
};

// Elements [begin, end) of a bucket, padding excluded; may be empty on the last ranks.
struct ShardRange {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t numel() const { return end - begin; }
};

// Where this rank's slice of a bucket lies. Slices are multiples of 16 elements.
ShardRange ShardOf(int64_t bucket_numel, int num_shards, int shard);

// One thread. Gradients accumulate over the micro-batches of a step and are summed over ranks in
// the last one: reduce-scatter over the shard axis, then all-reduce over dp_replicate. Their
// buffers are allocated when the backward first asks for them and freed by WeightsChanged.
//
// On a GPU both run beside the computation, on two streams of their own, and nothing waits on the
// host. Prefetch starts a gather and Acquire makes the current stream wait for it; GradientDone
// starts a reduction and FinishGradients waits. At most two prefetched buckets are on their way at
// a time, and one bucket's whole gradient is being reduced: that bounds the memory to two gathered
// buckets and one gradient more than the computation holds. All memory is the current stream's,
// kept by references until that stream has waited (no record_stream, whose reuse would depend on
// timing). Idea: FSDP2 of PyTorch; there are no copies into and out of the flat buffers here.
//
//   per step:        for each micro-batch: BeginMicrobatch; the model's forward and backward
//                    read gradient_shard, change weight_shard; WeightsChanged
//   without update:  Acquire and Release alone (validation)
class ShardedParameterStore final : public ParameterStore {
 public:
  // Allocates the weight slices, zeroed. Borrows `comms`.
  ShardedParameterStore(std::vector<BucketLayout> layouts, const Mesh& mesh, const Comms& comms,
                        const FsdpOptions& options);

  at::Tensor Acquire(int bucket) override;
  void Release(int bucket) override;
  void Prefetch(int bucket) override;
  GradientBuffer Gradient(int bucket) override;
  void GradientDone(int bucket) override;

  // `first` forgets the gradients of the step before; in the `last` one GradientDone reduces.
  void BeginMicrobatch(bool first, bool last);
  // After the last micro-batch of a step: reduces buckets whose GradientDone was never called, with
  // zeros where the model added nothing. Collective.
  void FinishGradients();
  // The slices hold new weights: what was gathered before is stale.
  void WeightsChanged();

  int num_buckets() const { return static_cast<int>(buckets_.size()); }
  const BucketLayout& layout(int bucket) const { return buckets_[bucket].layout; }
  const std::vector<BucketLayout>& layouts() const { return layouts_; }
  const ShardRange& shard_range(int bucket) const { return buckets_[bucket].range; }
  // Views of this rank's slice, [shard_range.numel()]: weights in weight_dtype, and the step's
  // gradient in gradient_dtype, complete after FinishGradients.
  at::Tensor weight_shard(int bucket) const;
  at::Tensor gradient_shard(int bucket) const;
  // The same with the slice's padding of zeros: a multiple of 16 elements, 32-byte aligned.
  at::Tensor weight_slice(int bucket) const { return buckets_.at(bucket).shard; }
  at::Tensor gradient_slice(int bucket) const;
  // Bytes of gathered copies right now; for tests and the memory report.
  int64_t gathered_bytes() const;

 private:
  struct Bucket {
    BucketLayout layout;
    Comm* shard_comm = nullptr;
    ShardRange range;
    int64_t padded_shard = 0;  // elements of one slice, padding included
    at::Tensor shard;          // [padded_shard]
    at::Tensor gathered;       // [padded_shard * shards]; undefined: not here
    bool arriving = false;     // prefetched, nobody has waited yet
    StreamPoint arrived;
    int users = 0;              // Acquires without Release
    at::Tensor gradient;        // [padded_shard * shards] while accumulating
    at::Tensor gradient_shard;  // [padded_shard], after the reduction
    bool reduced = false;
  };
  void StartGather(Bucket& bucket);
  void AwaitGather(Bucket& bucket);
  void AllocateGradient(Bucket& bucket);
  void StartReduction(int index);
  // Of the one that is on its way, if any.
  void AwaitReduction();

  std::vector<BucketLayout> layouts_;
  std::vector<Bucket> buckets_;
  const Comms& comms_;
  FsdpOptions options_;
  SideStream gathers_;
  SideStream reductions_;
  int num_arriving_ = 0;  // buckets
  int reducing_ = -1;     // bucket whose gradient is being reduced
  StreamPoint reduced_;
  bool last_microbatch_ = false;
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_PARALLEL_FSDP_H_
