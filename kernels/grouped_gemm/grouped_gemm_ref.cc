#include "kernels/grouped_gemm/grouped_gemm_ref.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace switchyard::kernels {
namespace {

// Calls body(expert, first_row, end_row) for every expert, empty ones too.
template <class Body>
void ForEachExpert(const int32_t* offsets, int experts, int64_t max_rows, const Body& body) {
  if (offsets == nullptr) {
    body(0, int64_t{0}, max_rows);
    return;
  }
  for (int e = 0; e < experts; ++e) body(e, int64_t{offsets[e]}, int64_t{offsets[e + 1]});
}

float Sigmoid(float x) { return 1.f / (1.f + std::exp(-x)); }

// sum over k of a[i * a_stride] * b[i * b_stride]
float Dot(const Bf16* a, int64_t a_stride, const Bf16* b, int64_t b_stride, int64_t k) {
  float sum = 0.f;
  for (int64_t i = 0; i < k; ++i) sum += ToFloat(a[i * a_stride]) * ToFloat(b[i * b_stride]);
  return sum;
}

template <class Out>
void WeightGrad(const GroupedWeightGradParams<Out>& p) {
  ForEachExpert(p.offsets, p.experts, p.max_rows, [&](int e, int64_t begin, int64_t end) {
    std::vector<float> sum(static_cast<size_t>(p.m) * p.n, 0.f);
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t i = 0; i < p.m; ++i) {
        const float a = ToFloat(p.a[row * p.m + i]);
        for (int64_t j = 0; j < p.n; ++j) sum[i * p.n + j] += a * ToFloat(p.b[row * p.n + j]);
      }
    }
    Out* out = p.out + int64_t{e} * p.m * p.n;
    for (size_t i = 0; i < sum.size(); ++i) {
      const Out product = FromFloat<Out>(sum[i]);
      out[i] = p.accumulate ? FromFloat<Out>(ToFloat(out[i]) + ToFloat(product)) : product;
    }
  });
}

}  // namespace

void GroupedUpProjectionRef(const GroupedUpProjectionParams& p) {
  ForEachExpert(p.offsets, p.experts, p.max_rows, [&](int e, int64_t begin, int64_t end) {
    const Bf16* w = p.w1 + int64_t{e} * 2 * p.ffn * p.hidden;
    for (int64_t row = begin; row < end; ++row) {
      const Bf16* x = p.x + row * p.hidden;
      const float weight = p.row_weight != nullptr ? p.row_weight[row] : 1.f;
      for (int64_t i = 0; i < p.ffn; ++i) {
        const float gate = RoundBf16(Dot(x, 1, w + i * p.hidden, 1, p.hidden));
        const float up = RoundBf16(Dot(x, 1, w + (p.ffn + i) * p.hidden, 1, p.hidden));
        if (p.z != nullptr) {
          p.z[row * 2 * p.ffn + i] = ToBf16(gate);
          p.z[row * 2 * p.ffn + p.ffn + i] = ToBf16(up);
        }
        p.h[row * p.ffn + i] = ToBf16(weight * gate * Sigmoid(gate) * up);
      }
    }
  });
}

void GroupedLinearRef(const GroupedLinearParams& p) {
  ForEachExpert(p.offsets, p.experts, p.max_rows, [&](int e, int64_t begin, int64_t end) {
    const Bf16* b = p.b + int64_t{e} * p.n * p.k;
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t j = 0; j < p.n; ++j) {
        p.out[row * p.n + j] = ToBf16(Dot(p.a + row * p.k, 1, b + j * p.k, 1, p.k));
      }
    }
  });
}

void GroupedLinearGradRef(const GroupedLinearGradParams& p) {
  ForEachExpert(p.offsets, p.experts, p.max_rows, [&](int e, int64_t begin, int64_t end) {
    const Bf16* b = p.b + int64_t{e} * p.k * p.n;
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t j = 0; j < p.n; ++j) {
        p.out[row * p.n + j] = ToBf16(Dot(p.a + row * p.k, 1, b + j, p.n, p.k));
      }
    }
  });
}

void LinearGradSplitRef(const LinearGradSplitParams& p) {
  const int64_t part = CeilDiv(CeilDiv(p.k, p.splits), 64) * 64;
  for (int64_t s = 0; s < p.splits; ++s) {
    const int64_t begin = s * part;
    const int64_t size = std::min<int64_t>(p.k - begin, part);
    for (int64_t row = 0; row < p.rows; ++row) {
      for (int64_t j = 0; j < p.n; ++j) {
        p.partial[(s * p.rows + row) * p.n + j] =
            Dot(p.a + row * p.k + begin, 1, p.b + begin * p.n + j, p.n, size);
      }
    }
  }
}

void GroupedDownGradRef(const GroupedDownGradParams& p) {
  ForEachExpert(p.offsets, p.experts, p.max_rows, [&](int e, int64_t begin, int64_t end) {
    const Bf16* w = p.w2 + int64_t{e} * p.hidden * p.ffn;
    for (int64_t row = begin; row < end; ++row) {
      const float weight = p.row_weight != nullptr ? p.row_weight[row] : 1.f;
      const Bf16* z = p.z + row * 2 * p.ffn;
      Bf16* dz = p.dz + row * 2 * p.ffn;
      std::vector<float> dp(CeilDiv(p.ffn, kDownGradColumns), 0.f);
      for (int64_t i = 0; i < p.ffn; ++i) {
        const float dh = Dot(p.dy + row * p.hidden, 1, w + i, p.ffn, p.hidden);
        const float gate = ToFloat(z[i]);
        const float up = ToFloat(z[p.ffn + i]);
        const float sigmoid = Sigmoid(gate);
        const float y1 = gate * sigmoid * up;
        dp[i / kDownGradColumns] += dh * y1;
        const float dy1 = weight * dh;
        dz[i] = ToBf16(dy1 * up * sigmoid * (1.f + gate * (1.f - sigmoid)));
        dz[p.ffn + i] = ToBf16(dy1 * gate * sigmoid);
        if (p.h != nullptr) p.h[row * p.ffn + i] = ToBf16(weight * y1);
      }
      if (p.dp_partial == nullptr) continue;
      for (size_t t = 0; t < dp.size(); ++t) p.dp_partial[t * p.max_rows + row] = dp[t];
    }
  });
}

void GroupedWeightGradRef(const GroupedWeightGradParams<float>& p) { WeightGrad(p); }
void GroupedWeightGradRef(const GroupedWeightGradParams<Bf16>& p) { WeightGrad(p); }

}  // namespace switchyard::kernels
