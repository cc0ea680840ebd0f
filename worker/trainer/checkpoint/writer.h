// Writes a checkpoint folder in Hugging Face format, every rank its own byte ranges.
#ifndef SWITCHYARD_WORKER_TRAINER_CHECKPOINT_WRITER_H_
#define SWITCHYARD_WORKER_TRAINER_CHECKPOINT_WRITER_H_

#include <atomic>
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

struct SaveOptions {
  // Buffers of range_writer.h, one each: host memory beside the shards.
  int threads = 1;
  const std::atomic<bool>* cancelled = nullptr;  // gives up early when set
};

// Collective over `gang`, whose ranks hold `shards`, on any device, that cover the plan. Returns,
// on every rank, the crc32c of manifest.json. Then all files and their folders are durable.
//   rank 0: room enough? folder, side files, config, index, state, reserved files with headers
//   all:    their ranges, fsync
//   rank 0: checksums of files from those of what the ranks wrote, manifest
// Ranks agree after each part, so a full disk is an error on all ranks and hangs none. After an
// error that all ranks know, rank 0 removes the folder.
// Errors: StatusError with what the file system said, on the rank it happened to, and for a full
// disk the bytes needed and free; Aborted on the others; Cancelled. "bug:" for shards that do not
// cover the plan. CommError: a rank is lost; the folder stays, without a manifest.
uint32_t SaveCheckpoint(const SaveRequest& request, const CheckpointPlan& plan,
                        const std::vector<BucketShard>& shards, Comm& gang,
                        const SaveOptions& options = {});

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_CHECKPOINT_WRITER_H_
