// A model folder in Hugging Face format: which file holds which tensor. Torch-free.
#ifndef SWITCHYARD_WORKER_TRAINER_CHECKPOINT_HF_MODEL_H_
#define SWITCHYARD_WORKER_TRAINER_CHECKPOINT_HF_MODEL_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/trainer/checkpoint/tensor_files.h"
#include "worker/trainer/parallel/bucket_layout.h"

namespace switchyard {

struct HfTensor : TensorSpec {
  int file = 0;         // index into HfModel::files
  uint64_t offset = 0;  // bytes from the start of the file
};

// The tensors of a folder as they are: model.safetensors, or the files that
// model.safetensors.index.json names and no others.
struct HfModel {
  std::string folder;
  std::vector<std::string> files;  // ascending
  std::vector<HfTensor> tensors;   // by file, then offset
};

// Errors: NotFound: neither file exists, or a file of the index is missing. InvalidArgument: a
// broken index or file (safetensors.h), an indexed tensor that its file lacks, a tensor that two
// files hold or that the index does not list. Messages name the file and the tensor.
absl::StatusOr<HfModel> OpenHfModel(const std::string& folder);

// Where each tensor that a model needs lies in its source, by published name. May be a part of a
// fused tensor.
using WeightSource = TensorFiles;

// Matches the folder with `model`, the buckets that hold all experts. Accepts per-expert tensors
// (experts.<e>.gate_proj.weight, ...) and Transformers v5's fused ones (experts.gate_up_proj [E, 2
// F, H], experts.down_proj [E, H, F]) of a layer. With tied embeddings lm_head.weight may stand for
// the embedding, or beside it with the same bytes. Rotary inv_freq buffers are left out. Errors:
// InvalidArgument, naming tensors and files: missing or unexpected ones (the first three and the
// count), another shape (both), a dtype other than F32, BF16 and F16, a tied head that differs.
absl::StatusOr<WeightSource> ResolveWeights(const HfModel& hf,
                                            const std::vector<BucketLayout>& model);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_CHECKPOINT_HF_MODEL_H_
