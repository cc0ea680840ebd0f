// Where named tensors lie in the safetensors files of one folder. Torch-free plain data.
#ifndef SWITCHYARD_WORKER_TRAINER_CHECKPOINT_TENSOR_FILES_H_
#define SWITCHYARD_WORKER_TRAINER_CHECKPOINT_TENSOR_FILES_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "worker/trainer/checkpoint/safetensors.h"

namespace switchyard {

// A contiguous run of elements, row-major.
struct TensorLocation {
  int file = 0;  // index into TensorFiles::files
  TensorDtype dtype = TensorDtype::kF32;
  uint64_t offset = 0;  // bytes from the start of the file
  int64_t numel = 0;
};

struct TensorFiles {
  std::string folder;
  std::vector<std::string> files;  // relative to the folder
  absl::flat_hash_map<std::string, TensorLocation> at;
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_CHECKPOINT_TENSOR_FILES_H_
