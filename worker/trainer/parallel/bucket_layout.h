// How parameters lie in flat buckets. A bucket is gathered, reduced and sharded as one buffer; a
// parameter is a view of it, and every tensor of the published checkpoint is one contiguous range
// of it, row-major, in the checkpoint's own [out, in] order. Reading, writing and resharding are
// therefore arithmetic on ranges. Torch-free plain data.
#ifndef SWITCHYARD_WORKER_TRAINER_PARALLEL_BUCKET_LAYOUT_H_
#define SWITCHYARD_WORKER_TRAINER_PARALLEL_BUCKET_LAYOUT_H_

#include <cstdint>
#include <string>
#include <vector>

namespace switchyard {

// One tensor of the checkpoint inside its bucket.
struct TensorSlot {
  std::string name;            // published name, "model.layers.0.mlp.experts.3.gate_proj.weight"
  std::vector<int64_t> shape;  // published shape
  int64_t offset = 0;          // first element, from the start of the bucket
  int64_t numel = 0;
  bool decay = true;  // weight decay applies (AutoModel and torch: to all parameters)
};

enum class BucketKind {
  kDense,   // the same on all ranks: sharded over the dp_shard axis
  kExpert,  // the experts of this ep rank: sharded over the ranks that hold the same experts
};

struct BucketLayout {
  std::string name;  // "embedding", "layers.3.dense", "layers.3.experts", "head"
  BucketKind kind = BucketKind::kDense;
  int64_t layer = -1;             // -1: embedding, final norm or head
  int64_t numel = 0;              // without padding
  std::vector<TensorSlot> slots;  // ascending offset, back to back
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_PARALLEL_BUCKET_LAYOUT_H_
