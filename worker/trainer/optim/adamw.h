// Adam and AdamW over sharded parameters (arXiv:1412.6980, arXiv:1711.05101), the maths of
// torch.optim.AdamW in fp32, operation by operation.
//
// The master weight is always an exact fp32. With fp32 weights it is the weight. With bf16 weights
// it is the weight and a 16-bit remainder: master bits = (bf16 bits << 16) + int16(remainder),
// where the bf16 is the master rounded to nearest (halves away from zero); the remainder is the low
// half of the master's bits. That is 4 bytes a parameter, none lost. Without exact_master the bf16
// weight is all there is, rounded stochastically at each update, so that updates smaller than half
// a step of the grid still move it on average.
#ifndef SWITCHYARD_WORKER_TRAINER_OPTIM_ADAMW_H_
#define SWITCHYARD_WORKER_TRAINER_OPTIM_ADAMW_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "worker/trainer/optim/grad_clip.h"
#include "worker/trainer/parallel/fsdp.h"

namespace switchyard {

struct AdamOptions {
  bool decoupled = true;  // AdamW; false: Adam, weight decay is added to the gradient
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0.01;  // of all parameters whose slot says `decay`
  // kFloat, or kBFloat16 with stochastic rounding: which way an element is rounded depends on
  // (seed, update, bucket, ep rank, index in the bucket) alone, never on threads or sharding.
  at::ScalarType moment_dtype = at::kFloat;
  bool exact_master = true;  // of bf16 weights: keep the 16 bits that make them an fp32 master
  uint64_t seed = 0;
};

// State of one bucket's slice, [shard numel] each.
struct AdamState {
  at::Tensor exp_avg;     // moment_dtype
  at::Tensor exp_avg_sq;  // moment_dtype
  at::Tensor remainder;   // int16 with bf16 weights and an exact master, else undefined
};

// One thread. Lives where the store's weights do: on the CPU, or on a GPU, where Step is queued on
// the current stream. Both give the same bits.
class Adam {
 public:
  // Borrows `store`; allocates zeroed state for its slices. A zero remainder means: the master is
  // the bf16 weight as loaded. `ep_rank` tells the random streams of different experts apart.
  Adam(const AdamOptions& options, ShardedParameterStore& store, int ep_rank);

  // Applies update number `update` (from 1) to the store's weights as `control` (grad_clip.h) says;
  // does nothing when it says to skip. The caller then calls store.WeightsChanged().
  void Step(int64_t update, double lr, const UpdateControl& control);

  // For loading and saving: views that may be written in place.
  AdamState state(int bucket) const;
  // Bytes of all state of this rank.
  int64_t state_bytes() const;

 private:
  // A run of one slice's elements with the same decay; the last one reaches to the padding's end.
  struct Run {
    int bucket;
    int64_t begin, end;  // in the bucket
    bool decay;
  };
  AdamOptions options_;
  ShardedParameterStore& store_;
  int ep_rank_;
  std::vector<AdamState> slices_;  // with padding
  std::vector<Run> runs_;
};

// fp32 masters of a slice, bit for bit, and back. For tests and exports of masters.
at::Tensor MasterFromParts(const at::Tensor& weight_bf16, const at::Tensor& remainder);
void PartsFromMaster(const at::Tensor& master, at::Tensor weight_bf16, at::Tensor remainder);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_OPTIM_ADAMW_H_
