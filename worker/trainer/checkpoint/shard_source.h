// What a rank writes of a checkpoint: the byte ranges of its shards and the bytes for them.
#ifndef SWITCHYARD_WORKER_TRAINER_CHECKPOINT_SHARD_SOURCE_H_
#define SWITCHYARD_WORKER_TRAINER_CHECKPOINT_SHARD_SOURCE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/trainer/checkpoint/output_plan.h"
#include "worker/trainer/checkpoint/range_writer.h"
#include "worker/trainer/checkpoint/shards.h"

namespace switchyard {

// The files of a plan that hold tensors: first those of weights, then those of the optimizer.
std::vector<std::string> TensorFileNames(const CheckpointPlan& plan);
std::vector<const SafetensorsLayout*> TensorFileLayouts(const CheckpointPlan& plan);

class ShardSource {
 public:
  // Borrows both arguments. Only shards whose writer this rank is count. Errors: Internal or
  // InvalidArgument, all bugs: moments that the plan wants are undefined, tensors it does not know.
  static absl::StatusOr<ShardSource> Make(const CheckpointPlan& plan,
                                          const std::vector<BucketShard>& shards);

  // Of the files in the order of TensorFileNames.
  const std::vector<FileRange>& ranges() const { return ranges_; }
  // Puts elements, in the dtypes of their files, where the parts say. From a GPU by copies on its
  // current stream, which it waits for. Thread-safe. Errors: Internal: what torch says.
  absl::Status Fill(const std::vector<RangePart>& parts) const;

 private:
  enum class Kind { kWeights, kRemainder, kExpAvg, kExpAvgSq };
  struct Source {
    const BucketShard* shard;
    Kind kind;
    TensorDtype dtype;  // in the file
    int64_t first;      // element of the shard that the range begins with
  };
  absl::Status Add(const FileSet& files, int first_file, const BucketShard& shard, Kind kind);
  // Elements [first, first + n) of the shard as the file holds them, on the shard's device.
  static at::Tensor Encode(const Source& source, int64_t first, int64_t n);

  std::vector<FileRange> ranges_;
  std::vector<Source> sources_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_CHECKPOINT_SHARD_SOURCE_H_
