// A model with random weights and everything a training step needs, assembled as trainer.cc does.
#ifndef SWITCHYARD_TESTS_BENCH_TRAINING_MODEL_H_
#define SWITCHYARD_TESTS_BENCH_TRAINING_MODEL_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "tests/bench/options.h"
#include "worker/trainer/models/decoder.h"
#include "worker/trainer/optim/adamw.h"
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
  int64_t supervised = 0;
  int64_t causal_pairs = 0;  // flops.h
};

// `count` batches of `micro_batch` rows: random ids, a row one document, or the first rows of
// options.data in the loader's order. Pinned for a GPU.
std::vector<Batch> MakeBatches(const Options& options, const ModelConfig& config,
                               int64_t micro_batch, int64_t count, at::Device device);

// One thread, one rank.
class TrainingModel {
 public:
  // Embedding N(0, 1), other matrices N(0, 0.02), norms 1, drawn on the device: as the peers'
  // driver, and with a router that spreads its tokens.
  TrainingModel(const ModelConfig& config, StateLayout layout, at::Device device);

  const ModelConfig& config() const { return config_; }
  StateLayout layout() const { return layout_; }

  // Queues forward and backward of `batch`, marks the timer, then clipping and update, and marks it
  // again. Returns the loss, float64, 0-dim, on the device.
  at::Tensor Step(Decoder& decoder, const Batch& batch, StepTimer& timer);
  // The same without an update.
  at::Tensor ForwardBackward(Decoder& decoder, const Batch& batch);

  std::unique_ptr<Decoder> MakeDecoder(ActivationMemory activations);

 private:
  ModelConfig config_;
  StateLayout layout_;
  Mesh mesh_;
  Comms comms_;
  ShardedParameterStore store_;
  Adam adam_;
  LocalDispatcher dispatcher_;
  int64_t updates_ = 0;
};

}  // namespace switchyard::bench

#endif  // SWITCHYARD_TESTS_BENCH_TRAINING_MODEL_H_
