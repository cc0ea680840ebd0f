// Fills a rank's shards from a model or checkpoint folder, reading only the bytes it holds.
#ifndef SWITCHYARD_WORKER_TRAINER_CHECKPOINT_READER_H_
#define SWITCHYARD_WORKER_TRAINER_CHECKPOINT_READER_H_

#include <string>
#include <vector>

#include "worker/trainer/checkpoint/hf_model.h"
#include "worker/trainer/checkpoint/manifest.h"
#include "worker/trainer/checkpoint/shards.h"
#include "worker/trainer/parallel/comm.h"

namespace switchyard {

// All functions throw StatusError (or_throw.h), on all ranks together: on those that found
// something wrong with the folder with its Status, on the others Aborted; Internal "bug: ..." for
// shards that contradict each other. `model` is the buckets with all experts, `shards` this rank's;
// `world` is the whole gang, every rank of which must call.

// Checks that the writers' ranges of all ranks hold every element of every tensor exactly once.
void CheckCoverage(const std::vector<BucketLayout>& model, const std::vector<BucketShard>& shards,
                   Comm& world);

// Weights from a Hugging Face folder, ours or another's. Widening is exact. Narrowing to bf16 keeps
// the rest in the remainder where there is one (it is set to 0 where nothing was lost), and rounds
// to nearest even where there is none. The result is what the trainer saves with later.
WeightSource LoadWeights(const std::string& folder, const std::vector<BucketLayout>& model,
                         const std::vector<BucketShard>& shards, Comm& world);

struct LoadedCheckpoint {
  Manifest manifest;
  TrainState state;
  WeightSource source;
};

// Weights, fp32 masters, moments and state from a committed checkpoint of ours, written by any
// number of ranks. Checks the sizes and checksums of all files, those of tensors while it reads
// them: what the shards hold after an error is undefined. Restores the same bits that were saved,
// unless a dtype of the shards is narrower than it was then. Errors: NotFound: no manifest, or
// saved without optimizer; DataLoss: a file is not what was written.
LoadedCheckpoint LoadCheckpoint(const std::string& folder, const std::vector<BucketLayout>& model,
                                const std::vector<BucketShard>& shards, Comm& world);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_CHECKPOINT_READER_H_
