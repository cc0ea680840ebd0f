#include "worker/trainer/ops/permute.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>

#include <cstring>

#include "worker/trainer/ops/dtype.h"
#include "worker/trainer/ops/on_cuda.h"

namespace switchyard::ops {
namespace {

template <typename T>
void SumCopies(const T* rows, const int32_t* row_of_copy, const T* residual, int64_t tokens,
               int64_t top_k, int64_t hidden, T* out) {
  using Wide = std::conditional_t<std::is_same_v<T, double>, double, float>;
  std::vector<Wide> sum(hidden);
  for (int64_t t = 0; t < tokens; ++t) {
    std::fill(sum.begin(), sum.end(), Wide{0});
    for (int64_t k = 0; k < top_k; ++k) {
      if (row_of_copy[t * top_k + k] < 0) continue;
      const T* row = rows + row_of_copy[t * top_k + k] * hidden;
      for (int64_t h = 0; h < hidden; ++h) sum[h] += static_cast<Wide>(row[h]);
    }
    if (residual != nullptr) {
      for (int64_t h = 0; h < hidden; ++h) sum[h] += static_cast<Wide>(residual[t * hidden + h]);
    }
    for (int64_t h = 0; h < hidden; ++h) out[t * hidden + h] = static_cast<T>(sum[h]);
  }
}

Permutation OnCpu(const at::Tensor& ids_TK, int64_t num_experts) {
  const at::Tensor ids = ids_TK.to(at::kInt).contiguous();
  const int32_t* id = ids.const_data_ptr<int32_t>();
  const int64_t copies = ids.numel();
  Permutation out;
  out.offsets_E1 = at::zeros({num_experts + 1}, at::kInt);
  out.row_of_TK = at::empty({copies}, at::kInt);
  int32_t* offsets = out.offsets_E1.mutable_data_ptr<int32_t>();
  for (int64_t c = 0; c < copies; ++c) {
    TORCH_CHECK(id[c] >= 0 && id[c] < num_experts, "permute: expert ", id[c], " of ", num_experts);
    ++offsets[id[c] + 1];
  }
  for (int64_t e = 0; e < num_experts; ++e) offsets[e + 1] += offsets[e];
  std::vector<int32_t> next(offsets, offsets + num_experts);
  int32_t* row_of = out.row_of_TK.mutable_data_ptr<int32_t>();
  for (int64_t c = 0; c < copies; ++c) row_of[c] = next[id[c]]++;
  return out;
}

// A stable sort, without the host.
Permutation OnDevice(const at::Tensor& ids_TK, int64_t num_experts) {
  const auto [sorted, copy_of_row] =
      at::sort(ids_TK.reshape({-1}).to(at::kInt), /*stable=*/true, 0, /*descending=*/false);
  Permutation out;
  out.row_of_TK = at::empty(copy_of_row.sizes(), sorted.options());
  out.row_of_TK.index_copy_(0, copy_of_row, at::arange(copy_of_row.numel(), sorted.options()));
  out.offsets_E1 = at::searchsorted(sorted, at::arange(num_experts + 1, sorted.options()),
                                    /*out_int32=*/true);
  return out;
}

// Copies without a row go to a row past the last.
at::Tensor RowOrSpare(const RowMap& map) {
  const at::Tensor row_TK = map.row_of_TK.to(at::kLong);
  return row_TK.masked_fill(row_TK.lt(0), map.num_rows);
}

// values [T K, ...] -> [N, ...]
at::Tensor ToRows(const at::Tensor& values, const RowMap& map) {
  std::vector<int64_t> sizes = values.sizes().vec();
  sizes[0] = map.num_rows + 1;
  at::Tensor out = at::empty(sizes, values.options());
  return out.index_copy_(0, RowOrSpare(map), values).narrow(0, 0, map.num_rows);
}

// rows [N, ...] -> [T K, ...], zero for a copy without a row
at::Tensor ToCopies(const at::Tensor& rows, const RowMap& map) {
  std::vector<int64_t> sizes = rows.sizes().vec();
  sizes[0] = 1;
  return at::cat({rows, at::zeros(sizes, rows.options())}).index_select(0, RowOrSpare(map));
}

at::Tensor ScalarsBack(const at::Tensor& scalars_PN, const RowMap& map) {
  at::Tensor sum_N = scalars_PN[0].clone();
  for (int64_t p = 1; p < scalars_PN.size(0); ++p) sum_N.add_(scalars_PN[p]);
  return ToCopies(sum_N, map).view({map.num_tokens, map.top_k});
}

}  // namespace

Permutation MakePermutation(const at::Tensor& ids_TK, int64_t num_experts) {
  TORCH_CHECK(
      ids_TK.dim() == 2 && (ids_TK.scalar_type() == at::kInt || ids_TK.scalar_type() == at::kLong),
      "permute: ids must be int32 or int64 [tokens, top_k], got ", ids_TK.scalar_type(), " ",
      ids_TK.sizes());
  Permutation out = ids_TK.is_cpu() ? OnCpu(ids_TK, num_experts) : OnDevice(ids_TK, num_experts);
  out.num_tokens = ids_TK.size(0);
  out.top_k = ids_TK.size(1);
  out.num_rows = ids_TK.numel();
  return out;
}

std::vector<int64_t> RowsPerExpert(const at::Tensor& offsets_E1) {
  const at::Tensor host = offsets_E1.cpu();
  const int32_t* offsets = host.const_data_ptr<int32_t>();
  std::vector<int64_t> rows(host.numel() - 1);
  for (size_t e = 0; e < rows.size(); ++e) rows[e] = offsets[e + 1] - offsets[e];
  return rows;
}

PermutedRows PermuteRows(const at::Tensor& x_TH, const at::Tensor& scalars_TK, const RowMap& map) {
  const int64_t tokens = map.num_tokens, top_k = map.top_k;
  TORCH_CHECK(x_TH.dim() == 2 && x_TH.size(0) == tokens, "permute: x must be [", tokens,
              ", hidden], got ", x_TH.sizes());
#if defined(SY_CUDA)
  if (on_cuda::ServesPermute(x_TH, map)) return on_cuda::PermuteRows(x_TH, scalars_TK, map);
#endif
  const int64_t copies = tokens * top_k;
  PermutedRows out;
  if (x_TH.is_cpu()) {
    const at::Tensor x = x_TH.contiguous();
    out.rows_NH = at::empty({map.num_rows, x.size(1)}, x.options());
    const size_t row_bytes = x.size(1) * x.element_size();
    const char* from = static_cast<const char*>(x.const_data_ptr());
    char* to = static_cast<char*>(out.rows_NH.mutable_data_ptr());
    const int32_t* row_of = map.row_of_TK.const_data_ptr<int32_t>();
    for (int64_t c = 0; c < copies; ++c) {
      if (row_of[c] < 0) continue;
      std::memcpy(to + row_of[c] * row_bytes, from + c / top_k * row_bytes, row_bytes);
    }
  } else {
    out.rows_NH = ToRows(
        x_TH.unsqueeze(1).expand({tokens, top_k, x_TH.size(1)}).reshape({copies, x_TH.size(1)}),
        map);
  }
  if (scalars_TK.defined()) out.scalars_N = ToRows(scalars_TK.reshape({-1}), map);
  return out;
}

at::Tensor UnpermuteSum(const at::Tensor& rows_NH, const at::Tensor& residual_TH, const RowMap& map,
                        const at::Tensor& scalars_PN, at::Tensor* scalars_TK) {
  const int64_t tokens = map.num_tokens, top_k = map.top_k;
  TORCH_CHECK(rows_NH.dim() == 2 && rows_NH.size(0) == map.num_rows, "unpermute: rows must be [",
              map.num_rows, ", hidden], got ", rows_NH.sizes());
  TORCH_CHECK(!residual_TH.defined() ||
                  (residual_TH.size(0) == tokens && residual_TH.size(1) == rows_NH.size(1)),
              "unpermute: residual ", residual_TH.sizes(), " of ", tokens, " tokens");
#if defined(SY_CUDA)
  if (on_cuda::ServesPermute(rows_NH, map)) {
    return on_cuda::UnpermuteSum(rows_NH, residual_TH, map, scalars_PN, scalars_TK);
  }
#endif
  if (scalars_TK != nullptr) *scalars_TK = ScalarsBack(scalars_PN, map);
  if (rows_NH.is_cpu()) {
    const at::Tensor rows = rows_NH.contiguous();
    const at::Tensor residual = residual_TH.defined() ? residual_TH.contiguous() : at::Tensor();
    at::Tensor out_TH = at::empty({tokens, rows.size(1)}, rows.options());
    AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, rows.scalar_type(), "UnpermuteSum", [&] {
      SumCopies(rows.const_data_ptr<scalar_t>(), map.row_of_TK.const_data_ptr<int32_t>(),
                residual.defined() ? residual.const_data_ptr<scalar_t>() : nullptr, tokens, top_k,
                rows.size(1), out_TH.mutable_data_ptr<scalar_t>());
    });
    return out_TH;
  }
  const at::Tensor copies_TKH = ToCopies(rows_NH, map).view({tokens, top_k, rows_NH.size(1)});
  at::Tensor sum_TH = copies_TKH.select(1, 0).to(AccumulateType(rows_NH), /*non_blocking=*/false,
                                                 /*copy=*/true);
  for (int64_t k = 1; k < top_k; ++k) sum_TH.add_(copies_TKH.select(1, k));
  if (residual_TH.defined()) sum_TH.add_(residual_TH);
  return sum_TH.to(rows_NH.scalar_type());
}

}  // namespace switchyard::ops
