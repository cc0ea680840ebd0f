// Saved layout x wanted layout -> byte ranges. A checkpoint holds whole named tensors; a rank holds
// a range of a flat bucket. Both are row-major, so their overlap is a list of contiguous ranges,
// whatever the two world sizes are. The same list serves reading and writing. Pure, torch-free.
#ifndef SWITCHYARD_WORKER_TRAINER_CHECKPOINT_RESHARD_H_
#define SWITCHYARD_WORKER_TRAINER_CHECKPOINT_RESHARD_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "worker/trainer/checkpoint/tensor_files.h"
#include "worker/trainer/parallel/bucket_layout.h"

namespace switchyard {

// `count` elements at [shard_begin, shard_begin + count) of the rank's shard.
struct CopyRange {
  int slot = 0;  // index into the bucket's slots
  int file = 0;
  TensorDtype dtype = TensorDtype::kF32;  // in the file
  uint64_t offset = 0;                    // bytes from the start of the file
  int64_t shard_begin = 0;
  int64_t count = 0;
};

// Ranges for elements [begin, end) of the bucket, ascending; padding past the bucket has none. The
// tensor of a slot is looked up as its name followed by `suffix` (".exp_avg"); one that is absent
// is skipped when `optional`. Errors: InvalidArgument: an absent tensor, or one with another number
// of elements than its slot.
absl::StatusOr<std::vector<CopyRange>> Reshard(const TensorFiles& saved, absl::string_view suffix,
                                               bool optional, const BucketLayout& bucket,
                                               int64_t begin, int64_t end);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_CHECKPOINT_RESHARD_H_
