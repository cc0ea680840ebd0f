// Tensors of a bucket, as the modules want them: views of one flat buffer, for weights and for
// gradients alike.
//
// H hidden, P = (heads + 2 kv heads) * head_dim, Q = heads * head_dim, d head_dim, F ffn width,
// E experts, V vocabulary. Weights are [out, in].
#ifndef SWITCHYARD_WORKER_TRAINER_MODELS_PARAMETERS_H_
#define SWITCHYARD_WORKER_TRAINER_MODELS_PARAMETERS_H_

#include <ATen/core/Tensor.h>

#include "worker/trainer/models/model_config.h"
#include "worker/trainer/parallel/bucket_layout.h"

namespace switchyard {

struct AttentionParameters {
  at::Tensor qkv_weight_PH;  // q, k, v rows
  at::Tensor qkv_bias_P;     // undefined without attention_bias
  at::Tensor q_norm_d;
  at::Tensor k_norm_d;
  at::Tensor o_weight_HQ;
  at::Tensor o_bias_H;  // undefined without attention_bias
};

struct MlpParameters {
  at::Tensor gate_up_2FH;  // gate rows, then up rows
  at::Tensor down_HF;
};

// The dense bucket of one layer.
struct LayerParameters {
  at::Tensor input_norm_H;
  AttentionParameters attention;
  at::Tensor post_attention_norm_H;
  at::Tensor router_EH;  // MoE layers
  MlpParameters mlp;     // dense layers
};

// The experts bucket of one layer: this rank's experts.
struct ExpertParameters {
  at::Tensor gate_up_E2FH;
  at::Tensor down_EHF;
};

struct HeadParameters {
  at::Tensor norm_H;
  at::Tensor weight_VH;  // undefined when tied
};

// `flat` is 1-D with at least bucket.numel elements. Errors: "bug:" when the layout is not that of
// BuildBuckets.
LayerParameters ViewLayer(const ModelConfig& config, const BucketLayout& bucket, at::Tensor flat);
ExpertParameters ViewExperts(const ModelConfig& config, const BucketLayout& bucket,
                             at::Tensor flat);
HeadParameters ViewHead(const ModelConfig& config, const BucketLayout& bucket, at::Tensor flat);
at::Tensor ViewEmbedding(const ModelConfig& config, at::Tensor flat);  // [V, H]

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_MODELS_PARAMETERS_H_
