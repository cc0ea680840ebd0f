// A job small enough to train in a second: a random Qwen3-MoE and a predictable token file.
#ifndef SWITCHYARD_TESTS_PARALLEL_TINY_JOB_H_
#define SWITCHYARD_TESTS_PARALLEL_TINY_JOB_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/json.h"
#include "worker/link/messages.h"

namespace switchyard {

// A folder that is removed at the end of the test.
class TempFolder {
 public:
  TempFolder();
  ~TempFolder();
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

struct Gang {
  int world = 1, replicate = 1, ep = 1;
};

// What the tests vary. 44 training rows, 8 a step: the sixth step of an epoch holds 4, so that on 4
// ranks two of them have nothing to do.
struct TinyJob {
  Gang gang;
  std::string folder;   // holds model/, train.tok, validation.tok (see MakeTinyData)
  std::string job_dir;  // of this run
  std::string resume_from;
  int64_t max_steps = 14;
  int64_t every_steps = 0;
  int64_t val_every_steps = 0;
  std::string dtype = "float32";
  std::string moment_dtype = "float32";
  double lr = 1e-2;
  bool reshard_after_forward = true;
  int64_t master_port = 0;
  std::string device = "cpu";  // "cuda": rank r on the GPU r % the number there is
  int64_t local_batch_size = 2;
  std::string gradient_dtype = "float32";
  bool exact_master = true;
  bool deterministic = false;
  std::string activation_memory = "ACTIVATION_MEMORY_LEAN";
};

// Writes the model's config and both token files. `for_kernels`: with sizes that the kernels of
// worker/trainer/ops take in bfloat16 (head_dim 128, all else multiples of 8).
void MakeTinyData(const std::string& folder, bool for_kernels = false);

ConfigFrame MakeFrame(const TinyJob& job, int rank);

// What rank 0 said.
struct RunReport {
  std::vector<StepFrame> steps;
  std::vector<ValidationFrame> validations;
  std::vector<CheckpointFrame> checkpoints;
  std::vector<std::string> phases;
  std::vector<PlanFrame> plans;
  bool stopped = false;
  int64_t done_step = -1;

  void Add(const RankFrame& frame);
  std::vector<double> Losses() const;
};

// Runs all ranks as threads, on GPUs each with a stream of its own. `on_step` is called by rank 0
// after each step frame; returning true asks it to stop with a checkpoint. Throws what a rank
// throws.
RunReport RunInThreads(const TinyJob& job,
                       const std::function<bool(const StepFrame&)>& on_step = nullptr);

// The weights of a checkpoint: the bytes of its model.safetensors.
std::string WeightBytes(const std::string& checkpoint_folder);

}  // namespace switchyard

#endif  // SWITCHYARD_TESTS_PARALLEL_TINY_JOB_H_
