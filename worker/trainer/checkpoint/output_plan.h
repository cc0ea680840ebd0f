// Which file every tensor of a checkpoint goes to, at which byte. Every rank computes the same plan
// and writes its parts of it. Torch-free and pure.
#ifndef SWITCHYARD_WORKER_TRAINER_CHECKPOINT_OUTPUT_PLAN_H_
#define SWITCHYARD_WORKER_TRAINER_CHECKPOINT_OUTPUT_PLAN_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/trainer/checkpoint/hf_model.h"
#include "worker/trainer/checkpoint/safetensors.h"
#include "worker/trainer/checkpoint/tensor_files.h"
#include "worker/trainer/parallel/bucket_layout.h"

namespace switchyard {

struct CheckpointFormat {
  TensorDtype weight_dtype = TensorDtype::kF32;  // of the weights in training: F32 or BF16
  int64_t max_shard_bytes = 5'000'000'000;       // of the tensors in one file
  bool save_optimizer = false;
  TensorDtype moment_dtype = TensorDtype::kF32;  // F32 or BF16
};

// One set of files: `files.files` have the layouts of `layouts`. files.folder is empty.
struct FileSet {
  TensorFiles files;
  std::vector<SafetensorsLayout> layouts;
};

struct CheckpointPlan {
  FileSet weights;
  FileSet optimizer;       // no files without save_optimizer
  std::string index_json;  // of model.safetensors.index.json; empty: one file, no index
  TensorDtype dtype = TensorDtype::kF32;  // that config.json states: most of the weights' bytes
};

// Transformers' rule: tensors in order; one larger than the limit gets a file of its own, at once;
// a new file is begun when the next tensor would not fit.
std::vector<std::vector<TensorSpec>> SplitIntoShards(const std::vector<TensorSpec>& tensors,
                                                     int64_t max_shard_bytes);

// Weights in the order of `model`, whatever the files of the source look like: a job that was
// resumed writes the same files as one that was not. Each keeps the dtype it has in `source`, but
// F16 becomes the dtype of training, which it cannot hold exactly; so does everything without a
// source (random_init). Optimizer: for each tensor <name>.exp_avg, <name>.exp_avg_sq (moment dtype)
// and, where the weights' file holds BF16, <name>.remainder (I16), so that the fp32 master is
// restored exactly whatever the dtype of training is. Errors: InvalidArgument: max_shard_bytes < 1,
// a slot that `source` lacks, or as LayOutSafetensors.
absl::StatusOr<CheckpointPlan> PlanCheckpoint(const std::vector<BucketLayout>& model,
                                              const WeightSource* source,
                                              const CheckpointFormat& format);

// Finds the optimizer tensors of `model` in a checkpoint of ours: `file_names` are the manifest's.
// `weights` is the same folder's source. Errors: NotFound: saved without optimizer.
// InvalidArgument: missing or unexpected tensors, wrong shapes or dtypes, with names.
absl::StatusOr<TensorFiles> ResolveOptimizer(const std::string& folder,
                                             const std::vector<std::string>& file_names,
                                             const WeightSource& weights,
                                             const std::vector<BucketLayout>& model);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_CHECKPOINT_OUTPUT_PLAN_H_
