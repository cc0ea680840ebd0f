// Writes a checkpoint folder in Hugging Face format, every rank its own byte ranges.
#ifndef SWITCHYARD_WORKER_TRAINER_CHECKPOINT_WRITER_H_
#define SWITCHYARD_WORKER_TRAINER_CHECKPOINT_WRITER_H_

#include <cstdint>
#include <string>
#include <vector>

#include "worker/trainer/checkpoint/manifest.h"
#include "worker/trainer/checkpoint/output_plan.h"
#include "worker/trainer/checkpoint/shards.h"
#include "worker/trainer/parallel/comm.h"

namespace switchyard {

struct SaveRequest {
  std::string folder;         // <job_dir>/staging/<attempt>/step-<n>; an old one is removed first
  std::string source_folder;  // config.json and side files come from here
  Manifest manifest;          // all but `files`
  TrainState state;
};

// Collective over `world`. Returns, on every rank, the crc32c of manifest.json. Then all files and
// their folders are durable. Each file is read back for its checksum, by one rank each.
//   rank 0: folder, side files, config, index, state, empty files with their headers
//   all:    their ranges, fsync | checksums of files rank, rank + world, ... | rank 0: manifest
// Ranks agree after each part, so a full disk is an error on all ranks and hangs none.
// Errors: StatusError with what the file system said, on the rank it happened to; Aborted on the
// others. "bug:" for shards that do not cover the model.
uint32_t SaveCheckpoint(const SaveRequest& request, const CheckpointPlan& plan,
                        const std::vector<BucketLayout>& model,
                        const std::vector<BucketShard>& shards, Comm& world);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_CHECKPOINT_WRITER_H_
