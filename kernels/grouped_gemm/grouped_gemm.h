// Grouped matrix products of the expert MLP, bf16 in, fp32 accumulation (sm_90a: TMA and wgmma).
//
// Rows are expert-major: expert e owns rows [offsets[e], offsets[e + 1]); the counts stay on the
// device and are read by the kernel itself, so no launch depends on them. Experts may be empty and
// counts are arbitrary. offsets[experts] <= max_rows; rows past it are neither computed nor
// written. `offsets == nullptr` means one expert that owns all max_rows rows: a plain matrix
// product.
//
// Weights are as in the checkpoint: w1 [experts, 2 * ffn, hidden], gate rows first, then up rows;
// w2 [experts, hidden, ffn]. With y1 = silu(gate) * up and the routing weight p of a row taken
// before the down projection (exact, as there is no bias), the block needs z and x alone in the
// backward:
//   z  = x w1^T                     GroupedUpProjection      h = p * y1
//   y  = h w2^T                     GroupedLinear            a token's output is the sum of its
//   rows dh = dy w2                      GroupedDownGrad          dz, h again, dp = sum(dh * y1) dx
//   = dz w1                      GroupedLinearGrad dw2 (+)= dy^T h, dw1 (+)= dz^T x
//   GroupedWeightGrad
// The memory layout, saved set and epilogues follow SonicMoE (arXiv:2512.14080); the tile schedule,
// which shares weight tiles inside a cluster only where both row tiles have the same expert, is
// that of DeepGEMM.
//
// All dims (hidden, ffn, n, k, m) are multiples of 8, pointers are 16-byte aligned, experts <= 512.
// Every reduction has a fixed order: results are the same bit for bit on every run.
// `num_sms` limits the grid (0: the whole device), for kernels that run beside.
// Allocates nothing, asynchronous on `stream`, captures in a graph. cudaErrorInvalidValue for an
// unsupported shape, cudaErrorNotSupported where the driver has no tensor maps, else the launch
// error.
#ifndef SWITCHYARD_KERNELS_GROUPED_GEMM_GROUPED_GEMM_H_
#define SWITCHYARD_KERNELS_GROUPED_GEMM_GROUPED_GEMM_H_

#include "kernels/common/dtype.h"
#include "kernels/common/launch.h"

namespace switchyard::kernels {

// Columns of ffn whose contribution to dp one tile sums; GroupedDownGradParams::dp_partial.
constexpr int kDownGradColumns = 256;

// z = x w1^T rounded to bf16; h = p * silu(z_gate) * z_up from the rounded z, as the backward sees
// it.
struct GroupedUpProjectionParams {
  const Bf16* x;            // in   [max_rows, hidden]
  const Bf16* w1;           // in   [experts, 2 * ffn, hidden]
  const float* row_weight;  // in   [max_rows], p; null: 1
  Bf16* z;                  // out  [max_rows, 2 * ffn]; null: not written
  Bf16* h;                  // out  [max_rows, ffn]
  const int32_t* offsets;   // in   [experts + 1]
  int64_t max_rows;
  int experts, hidden, ffn;
  int num_sms;
};
cudaError_t GroupedUpProjection(const GroupedUpProjectionParams& p, cudaStream_t stream);

// out[r, :] = a[r, :] b[e]^T for the expert e of row r.
struct GroupedLinearParams {
  const Bf16* a;           // in   [max_rows, k]
  const Bf16* b;           // in   [experts, n, k]
  Bf16* out;               // out  [max_rows, n]
  const int32_t* offsets;  // in   [experts + 1]
  int64_t max_rows;
  int experts, k, n;
  int num_sms;
};
cudaError_t GroupedLinear(const GroupedLinearParams& p, cudaStream_t stream);

// out[r, :] = a[r, :] b[e]: the gradient of GroupedLinear's input. b is read as it lies,
// untransposed.
struct GroupedLinearGradParams {
  const Bf16* a;           // in   [max_rows, k]
  const Bf16* b;           // in   [experts, k, n]
  Bf16* out;               // out  [max_rows, n]
  const int32_t* offsets;  // in   [experts + 1]
  int64_t max_rows;
  int experts, k, n;
  int num_sms;
};
cudaError_t GroupedLinearGrad(const GroupedLinearGradParams& p, cudaStream_t stream);

// partial[s, r, :] = a[r, part s of k] b[part s of k, :], fp32: a plain product with so long a
// reduction and so few rows that tiles of whole reductions would leave the card idle (the loss
// head's dh). The caller adds the splits in order. cudaErrorInvalidValue when k has too few blocks
// of 64 for `splits`.
struct LinearGradSplitParams {
  const Bf16* a;   // in   [rows, k]
  const Bf16* b;   // in   [k, n]
  float* partial;  // out  [splits, rows, n]
  int64_t rows;
  int k, n, splits;
  int num_sms;
};
cudaError_t LinearGradSplit(const LinearGradSplitParams& p, cudaStream_t stream);

// From dy, the gradient of a row's output: dh = dy w2, and with y1 from z
//   dp = sum over ffn of dh * y1,   d_y1 = p * dh,
//   dz_gate = d_y1 * up * silu'(gate),   dz_up = d_y1 * silu(gate),   h = p * y1.
struct GroupedDownGradParams {
  const Bf16* dy;           // in   [max_rows, hidden]
  const Bf16* w2;           // in   [experts, hidden, ffn]
  const Bf16* z;            // in   [max_rows, 2 * ffn]
  const float* row_weight;  // in   [max_rows], p; null: 1
  Bf16* dz;                 // out  [max_rows, 2 * ffn]
  Bf16* h;                  // out  [max_rows, ffn]; null: not written
  float* dp_partial;  // out  [CeilDiv(ffn, kDownGradColumns), max_rows]; dp is the sum over dim
                      //      0 in order; null: not written
  const int32_t* offsets;  // in   [experts + 1]
  int64_t max_rows;
  int experts, hidden, ffn;
  int num_sms;
};
cudaError_t GroupedDownGrad(const GroupedDownGradParams& p, cudaStream_t stream);

// out[e] = a_e^T b_e (+ out[e] when `accumulate`), over the rows of expert e; an expert without
// rows gives zeros. fp32 accumulation inside; Out is float or Bf16 (then accumulating rounds each
// time).
template <class Out>
struct GroupedWeightGradParams {
  const Bf16* a;           // in      [max_rows, m]
  const Bf16* b;           // in      [max_rows, n]
  Out* out;                // in out  [experts, m, n]
  const int32_t* offsets;  // in      [experts + 1]
  int64_t max_rows;
  int experts, m, n;
  bool accumulate;
  int num_sms;
};
cudaError_t GroupedWeightGrad(const GroupedWeightGradParams<float>& p, cudaStream_t stream);
cudaError_t GroupedWeightGrad(const GroupedWeightGradParams<Bf16>& p, cudaStream_t stream);

}  // namespace switchyard::kernels

#endif  // SWITCHYARD_KERNELS_GROUPED_GEMM_GROUPED_GEMM_H_
