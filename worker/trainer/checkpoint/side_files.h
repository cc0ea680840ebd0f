// The files beside the weights in a model folder: config.json, tokenizer and others. Torch-free.
#ifndef SWITCHYARD_WORKER_TRAINER_CHECKPOINT_SIDE_FILES_H_
#define SWITCHYARD_WORKER_TRAINER_CHECKPOINT_SIDE_FILES_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "worker/trainer/checkpoint/safetensors.h"

namespace switchyard {

// config.json's text with the values of its top-level "dtype" and "torch_dtype" replaced, where
// they are, by the weights' dtype ("bfloat16"). Every other byte stays: parsing and printing would
// lose what we do not know, and a v4 spelling must not become a v5 one, which older servers
// misread. A config that states no dtype keeps stating none; loaders then take the tensors'.
// Errors: InvalidArgument: not a JSON object.
absl::StatusOr<std::string> PatchConfigDtype(absl::string_view config, TensorDtype dtype);

// The files of `folder` that a checkpoint carries along unchanged, relative, ascending: tokenizer,
// chat template, generation defaults, remote code, licence. Not the model card, which is about
// another model. Errors: as the file system.
absl::StatusOr<std::vector<std::string>> ListSideFiles(const std::string& folder);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_CHECKPOINT_SIDE_FILES_H_
