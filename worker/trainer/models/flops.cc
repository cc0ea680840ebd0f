#include "worker/trainer/models/flops.h"

namespace switchyard {

double ForwardFlops(const ModelConfig& c, int64_t tokens, int64_t causal_pairs) {
  const double h = static_cast<double>(c.hidden_size);
  const double q = static_cast<double>(c.num_heads * c.head_dim);
  const double kv = static_cast<double>(c.num_kv_heads * c.head_dim);
  double weights_of_a_token = h * static_cast<double>(c.vocab_size);
  for (int64_t layer = 0; layer < c.num_layers; ++layer) {
    weights_of_a_token += h * (q + 2 * kv) + q * h;
    weights_of_a_token +=
        c.IsMoeLayer(layer)
            ? h * static_cast<double>(c.num_experts + c.top_k * 3 * c.moe_intermediate_size)
            : 3 * h * static_cast<double>(c.intermediate_size);
  }
  // Scores and their product with the values.
  const double of_a_pair = 2 * 2 * q * static_cast<double>(c.num_layers);
  return 2 * weights_of_a_token * static_cast<double>(tokens) +
         of_a_pair * static_cast<double>(causal_pairs);
}

}  // namespace switchyard
