#include "kernels/embedding/embedding_ref.h"

#include <map>
#include <vector>

namespace switchyard::kernels {
namespace {

template <class Out>
void Grad(const EmbeddingGradParams<Out>& p) {
  std::map<int32_t, std::vector<float>> sums;
  for (int64_t t = 0; t < p.tokens; ++t) {
    if (p.ids[t] == p.padding_id) continue;
    std::vector<float>& sum = sums[p.ids[t]];
    sum.resize(p.hidden, 0.f);
    for (int i = 0; i < p.hidden; ++i) sum[i] += ToFloat(p.d_out[t * p.hidden + i]);
  }
  for (const auto& [id, sum] : sums) {
    Out* to = p.d_table + int64_t{id} * p.hidden;
    for (int i = 0; i < p.hidden; ++i) to[i] = FromFloat<Out>(ToFloat(to[i]) + sum[i]);
  }
}

}  // namespace

void EmbeddingRef(const EmbeddingParams& p) {
  for (int64_t t = 0; t < p.tokens; ++t) {
    for (int i = 0; i < p.hidden; ++i) {
      p.out[t * p.hidden + i] = p.table[int64_t{p.ids[t]} * p.hidden + i];
    }
  }
}

void EmbeddingGradRef(const EmbeddingGradParams<float>& p) { Grad(p); }
void EmbeddingGradRef(const EmbeddingGradParams<Bf16>& p) { Grad(p); }

}  // namespace switchyard::kernels
