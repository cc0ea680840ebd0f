// A decoder-only Mixture-of-Experts language model: embedding, blocks, final norm, head and loss,
// with explicit forward and backward. Knows whole buckets of parameters (parallel/parameter_store)
// and token rows (parallel/token_dispatcher), never ranks.
//
// T tokens of one micro-batch, all documents back to back; L MoE layers; E experts.
#ifndef SWITCHYARD_WORKER_TRAINER_MODELS_DECODER_H_
#define SWITCHYARD_WORKER_TRAINER_MODELS_DECODER_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "worker/trainer/models/model_config.h"
#include "worker/trainer/parallel/bucket_layout.h"
#include "worker/trainer/parallel/parameter_store.h"
#include "worker/trainer/parallel/token_dispatcher.h"

namespace switchyard {

// Both definitions are sums over what one micro-batch of one rank routed; see LossSums::aux.
enum class AuxLoss {
  kOff,
  kHf,        // Transformers: all layers' tokens pooled; top_k at balance
  kMegatron,  // Megatron and AutoModel: per layer, 1 at balance, summed over the layers
};

enum class ActivationMemory {
  kLean,           // keep residuals, q/k/v, attention output, router choice, experts' gate and up
  kFullRecompute,  // keep block inputs and the router's choice; compute the rest again
  kOffload,        // as kFullRecompute, with the block inputs in pinned host memory; on the CPU the
                   // same as kFullRecompute
};

struct DecoderOptions {
  AuxLoss aux_loss = AuxLoss::kOff;
  ActivationMemory activation_memory = ActivationMemory::kLean;
  bool deterministic = false;     // on CUDA: attention's backward too gives the same bits each time
  bool router_fp32 = false;       // router logits in fp32 instead of the weights' dtype
  int64_t loss_chunk_tokens = 0;  // tokens whose logits exist at a time; 0: by vocabulary size
};

// One micro-batch, documents back to back. T = 0 (with cu_seqlens {0}) is valid. Tensors are on the
// CPU, pinned or not; the decoder checks them there and copies them to the device of the store's
// buckets without waiting for it.
struct DecoderBatch {
  at::Tensor tokens_T;              // int64
  at::Tensor targets_T;             // int64: the token to predict, or -100
  at::Tensor positions_T;           // int64, from 0 in each document
  std::vector<int64_t> cu_seqlens;  // [documents + 1], 0 first, T last
};

// Tensors are on the device of the store's buckets: read them once per step, not per micro-batch.
struct LossSums {
  at::Tensor ce_sum;           // float64, 0-dim: cross entropy, summed over the supervised tokens
  int64_t supervised = 0;      // their number
  at::Tensor aux;              // float64, 0-dim: aux_scale x auxiliary loss of this micro-batch
  at::Tensor token_copies_LE;  // int64: copies that this rank's tokens sent to each expert (all
                               // experts, not only local ones)
};

// One thread. Collective where the store and the dispatcher are: all ranks make the same calls in
// the same order, also with T = 0. Reduction orders are fixed: the same bits in every run with the
// same number of threads. On CUDA everything is queued on the current stream; in bf16 nothing waits
// for the device.
// Errors (exceptions): a batch whose tensors contradict each other or whose ids are outside the
// vocabulary, with both numbers.
class Decoder {
 public:
  // Borrows `store`, whose buckets are numbered as BuildBuckets numbers them, and `dispatcher`,
  // whose local experts are those of the store's expert buckets. Weights and activations have the
  // dtype of the store's buckets: float32 or bfloat16, or float64 for tests.
  Decoder(const ModelConfig& config, const DecoderOptions& options, ParameterStore& store,
          TokenDispatcher& dispatcher);
  ~Decoder();
  Decoder(const Decoder&) = delete;
  Decoder& operator=(const Decoder&) = delete;

  // Adds to the store's gradient buffers the gradient of
  //     loss_scale * ce_sum + aux_scale * auxiliary loss
  // and calls GradientDone once for every bucket, in the order in which they are finished: head,
  // then layer by layer from the last (experts before dense), then embedding. Where token rows
  // travel a layer's dense bucket is finished while those of the layer before it do.
  //
  // With loss_scale = 1 / supervised tokens of the step, all ranks and micro-batches, and aux_scale
  // = coefficient / (ranks x micro-batches), the sum over all of them is the gradient of the mean
  // cross entropy plus the coefficient times the mean auxiliary loss; the sum of LossSums::aux is
  // the second term.
  LossSums ForwardBackward(const DecoderBatch& batch, double loss_scale, double aux_scale);

  // The sums without gradients; `aux` with scale 1.
  LossSums Evaluate(const DecoderBatch& batch);

  // [T, vocab] in the model's dtype. For tests: it is what the loss never materialises.
  at::Tensor Logits(const DecoderBatch& batch);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_MODELS_DECODER_H_
