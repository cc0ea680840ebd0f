// A model with random weights and everything a training step needs, assembled as trainer.cc does.
#ifndef SWITCHYARD_TESTS_BENCH_TRAINING_MODEL_H_
#define SWITCHYARD_TESTS_BENCH_TRAINING_MODEL_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tests/bench/options.h"
#include "worker/trainer/models/decoder.h"
#include "worker/trainer/optim/adamw.h"
#include "worker/trainer/optim/grad_clip.h"
#include "worker/trainer/parallel/comms.h"
#include "worker/trainer/parallel/fsdp.h"
#include "worker/trainer/parallel/local_dispatcher.h"
#include "worker/trainer/parallel/mesh.h"
#include "worker/trainer/stats.h"

namespace switchyard::bench {

// One step's worth: one micro-batch.
struct Batch {
  DecoderBatch rows;
  int64_t tokens = 0;
  int64_t supervised = 0;    // of all ranks
  int64_t causal_pairs = 0;  // flops.h
};

// `count` batches of `micro_batch` rows: random ids, a row one document, or the first rows of
// options.data in the loader's order; rank r of `world` gets the r-th rows of each step. Pinned for
// a GPU.
std::vector<Batch> MakeBatches(const Options& options, const ModelConfig& config,
                               int64_t micro_batch, int64_t count, at::Device device, int rank = 0,
                               int world = 1);

// The same rows for one rank: of all ranks, in their order. Random ids only.
std::vector<Batch> MakeJointBatches(const Options& options, const ModelConfig& config,
                                    int64_t micro_batch, int64_t count, at::Device device,
                                    int world);

// One thread, one rank.
class TrainingModel {
 public:
  // Embedding N(0, 1), other matrices N(0, 0.02), norms 1, drawn on the device: as the peers'
  // driver, and with a router that spreads its tokens. The same model whatever the mesh.
  TrainingModel(const ModelConfig& config, StateLayout layout, at::Device device);
  // One rank of several. Borrows `comms` and `dispatcher`.
  TrainingModel(const ModelConfig& config, StateLayout layout, at::Device device, const Mesh& mesh,
                const Comms& comms, TokenDispatcher& dispatcher);

  const ModelConfig& config() const { return config_; }
  StateLayout layout() const { return layout_; }

  // Queues forward and backward of `batch`, marks the timer, then clipping and update, and marks it
  // again. Returns the loss over all ranks' batches (of one size), float64, 0-dim, on the device.
  at::Tensor Step(Decoder& decoder, const Batch& batch, StepTimer& timer);
  // Of the last Step's gradients, all ranks' together, before clipping. Waits for the device.
  double GradientNorm() const { return control_.Read().norm; }
  // The same without an update.
  at::Tensor ForwardBackward(Decoder& decoder, const Batch& batch);

  std::unique_ptr<Decoder> MakeDecoder(ActivationMemory activations);

 private:
  ModelConfig config_;
  StateLayout layout_;
  Mesh mesh_;
  std::optional<Comms> own_comms_;  // of one rank
  std::optional<LocalDispatcher> own_dispatcher_;
  const Comms& comms_;
  TokenDispatcher& dispatcher_;
  ShardedParameterStore store_;
  Adam adam_;
  int64_t updates_ = 0;
  UpdateControl control_;
};

}  // namespace switchyard::bench

#endif  // SWITCHYARD_TESTS_BENCH_TRAINING_MODEL_H_
