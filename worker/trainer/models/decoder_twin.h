// The specification of models/decoder.h (and of its blocks) in plain ATen, for autograd. Used by
// tests only.
#ifndef SWITCHYARD_WORKER_TRAINER_MODELS_DECODER_TWIN_H_
#define SWITCHYARD_WORKER_TRAINER_MODELS_DECODER_TWIN_H_

#include <ATen/ATen.h>

#include <vector>

#include "worker/trainer/models/attention_twin.h"
#include "worker/trainer/models/decoder.h"
#include "worker/trainer/models/mlp_twin.h"
#include "worker/trainer/models/moe_block_twin.h"
#include "worker/trainer/models/parameters.h"
#include "worker/trainer/models/weight_names.h"

namespace switchyard {

struct DecoderTwinOutput {
  at::Tensor logits_TV;
  at::Tensor ce_sum;
  at::Tensor aux;  // without coefficient
};

// `flats`: the buckets of BuildBuckets with all experts, one flat tensor each.
inline DecoderTwinOutput DecoderTwin(const ModelConfig& c, AuxLoss aux_loss,
                                     const std::vector<at::Tensor>& flats,
                                     const DecoderBatch& batch) {
  const std::vector<BucketLayout> buckets = BuildBuckets(c, 0, c.num_experts);
  const double tokens = static_cast<double>(batch.tokens_T.size(0));
  const double experts = static_cast<double>(c.num_experts);
  const at::Tensor embedding_VH = ViewEmbedding(c, flats.front());
  at::Tensor x = at::embedding(embedding_VH, batch.tokens_T, c.pad_token_id);
  std::vector<at::Tensor> shares, probs;  // per MoE layer, mean over the tokens, [E]
  size_t next = 1;
  for (int64_t layer = 0; layer < c.num_layers; ++layer) {
    const LayerParameters w = ViewLayer(c, buckets[next], flats[next]);
    ++next;
    x = x + AttentionTwin(c, layer, w.attention, RmsNormTwin(x, w.input_norm_H, c.rms_norm_eps),
                          batch.positions_T, batch.cu_seqlens);
    const at::Tensor normed = RmsNormTwin(x, w.post_attention_norm_H, c.rms_norm_eps);
    if (c.IsMoeLayer(layer)) {
      const MoeTwinOutput moe =
          MoeTwin(c, w.router_EH, ViewExperts(c, buckets[next], flats[next]), normed);
      ++next;
      shares.push_back(moe.chosen_TE.sum(0) / tokens);
      probs.push_back(moe.probs_TE.sum(0) / tokens);
      x = x + moe.y_TH;
    } else {
      x = x + MlpTwin(w.mlp.gate_up_2FH, w.mlp.down_HF, normed);
    }
  }
  const HeadParameters head = ViewHead(c, buckets.back(), flats.back());
  DecoderTwinOutput out;
  out.logits_TV = at::matmul(RmsNormTwin(x, head.norm_H, c.rms_norm_eps),
                             (c.tie_word_embeddings ? embedding_VH : head.weight_VH).t());
  out.ce_sum = at::nll_loss(at::log_softmax(out.logits_TV, 1), batch.targets_T, {},
                            at::Reduction::Sum, -100);
  out.aux = at::zeros({}, x.options());
  if (aux_loss == AuxLoss::kHf) {
    out.aux = experts * (at::stack(shares).mean(0) * at::stack(probs).mean(0)).sum();
  } else if (aux_loss == AuxLoss::kMegatron) {
    out.aux = experts / static_cast<double>(c.top_k) * (at::stack(shares) * at::stack(probs)).sum();
  }
  return out;
}

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_MODELS_DECODER_TWIN_H_
