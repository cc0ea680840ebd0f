#include "worker/trainer/ops/permute.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>

#include <cstring>

namespace switchyard::ops {
namespace {

template <typename T>
void SumCopies(const T* rows, const int64_t* row_of_copy, int64_t tokens, int64_t top_k,
               int64_t hidden, T* out) {
  using Wide = std::conditional_t<std::is_same_v<T, double>, double, float>;
  std::vector<Wide> sum(hidden);
  for (int64_t t = 0; t < tokens; ++t) {
    std::fill(sum.begin(), sum.end(), Wide{0});
    for (int64_t k = 0; k < top_k; ++k) {
      const T* row = rows + row_of_copy[t * top_k + k] * hidden;
      for (int64_t h = 0; h < hidden; ++h) sum[h] += static_cast<Wide>(row[h]);
    }
    for (int64_t h = 0; h < hidden; ++h) out[t * hidden + h] = static_cast<T>(sum[h]);
  }
}

}  // namespace

Permutation MakePermutation(const at::Tensor& ids_TK, int64_t num_experts) {
  TORCH_CHECK(ids_TK.dim() == 2 && ids_TK.scalar_type() == at::kLong && ids_TK.is_cpu(),
              "permute: ids must be int64 [tokens, top_k] on the CPU, got ", ids_TK.scalar_type(),
              " ", ids_TK.sizes(), " on ", ids_TK.device());
  const at::Tensor ids = ids_TK.contiguous();
  const int64_t* id = ids.const_data_ptr<int64_t>();
  const int64_t copies = ids.numel();

  Permutation out;
  out.top_k = ids_TK.size(1);
  out.rows_per_expert.assign(num_experts, 0);
  for (int64_t c = 0; c < copies; ++c) {
    TORCH_CHECK(id[c] >= 0 && id[c] < num_experts, "permute: expert ", id[c], " of ", num_experts);
    ++out.rows_per_expert[id[c]];
  }
  std::vector<int64_t> next(num_experts, 0);
  for (int64_t e = 1; e < num_experts; ++e) next[e] = next[e - 1] + out.rows_per_expert[e - 1];
  out.copy_of_row_N = at::empty({copies}, ids.options());
  out.row_of_copy_N = at::empty({copies}, ids.options());
  int64_t* copy_of_row = out.copy_of_row_N.mutable_data_ptr<int64_t>();
  int64_t* row_of_copy = out.row_of_copy_N.mutable_data_ptr<int64_t>();
  for (int64_t c = 0; c < copies; ++c) {
    const int64_t row = next[id[c]]++;
    copy_of_row[row] = c;
    row_of_copy[c] = row;
  }
  return out;
}

at::Tensor PermuteRows(const at::Tensor& x_TH, const Permutation& permutation) {
  const int64_t rows = permutation.copy_of_row_N.numel();
  TORCH_CHECK(x_TH.dim() == 2 && x_TH.size(0) * permutation.top_k == rows, "permute: x must be [",
              rows / permutation.top_k, ", hidden], got ", x_TH.sizes());
  const at::Tensor x = x_TH.contiguous();
  at::Tensor out_NH = at::empty({rows, x.size(1)}, x.options());
  const size_t row_bytes = x.size(1) * x.element_size();
  const char* from = static_cast<const char*>(x.const_data_ptr());
  char* to = static_cast<char*>(out_NH.mutable_data_ptr());
  const int64_t* copy_of_row = permutation.copy_of_row_N.const_data_ptr<int64_t>();
  for (int64_t n = 0; n < rows; ++n) {
    std::memcpy(to + n * row_bytes, from + copy_of_row[n] / permutation.top_k * row_bytes,
                row_bytes);
  }
  return out_NH;
}

at::Tensor UnpermuteSum(const at::Tensor& rows_NH, const Permutation& permutation) {
  const int64_t copies = permutation.row_of_copy_N.numel();
  TORCH_CHECK(rows_NH.dim() == 2 && rows_NH.size(0) == copies, "unpermute: rows must be [", copies,
              ", hidden], got ", rows_NH.sizes());
  const at::Tensor rows = rows_NH.contiguous();
  const int64_t tokens = copies / permutation.top_k;
  at::Tensor out_TH = at::empty({tokens, rows.size(1)}, rows.options());
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, rows.scalar_type(), "UnpermuteSum", [&] {
    SumCopies(rows.const_data_ptr<scalar_t>(), permutation.row_of_copy_N.const_data_ptr<int64_t>(),
              tokens, permutation.top_k, rows.size(1), out_TH.mutable_data_ptr<scalar_t>());
  });
  return out_TH;
}

}  // namespace switchyard::ops
