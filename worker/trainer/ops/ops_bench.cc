// Attention and dense projections as the trainer calls them, beside the libraries they rest on.
// Each result is compared with another implementation before it is timed.
//   ops_bench [JSON file]
#include <ATen/ATen.h>
#include <c10/cuda/CUDAFunctions.h>

#include <cmath>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "kernels/common/bench.h"
#include "kernels/grouped_gemm/grouped_gemm.h"
#include "worker/trainer/ops/attention.h"
#include "worker/trainer/ops/attention_cuda.h"
#include "worker/trainer/ops/linear.h"

namespace switchyard::ops {
namespace {

using kernels::Bench;
using kernels::BenchRow;

at::TensorOptions Bf16() { return at::TensorOptions(at::kCUDA).dtype(at::kBFloat16); }

at::Tensor Draw(at::IntArrayRef sizes) { return at::randn(sizes, Bf16()); }

// Empty when `got` is `want` but for rounding.
std::string Difference(const at::Tensor& got, const at::Tensor& want, double tolerance = 1e-2) {
  const at::Tensor reference = want.to(at::kFloat);
  const double error = ((got.to(at::kFloat) - reference).norm() / reference.norm()).item<double>();
  return error <= tolerance ? "" : "relative difference " + std::to_string(error);
}

struct Documents {
  std::string name;
  std::vector<int64_t> lengths;
  double sdpa_forward_us, sdpa_backward_us;  // cuDNN's, docs/kernels.md; 0: none
  bool buckets = false;                      // with larger plans too
};

// Lengths drawn from an exponential distribution of that mean, at most 2048, that sum to `total`.
std::vector<int64_t> ChatLengths(int64_t total, double mean) {
  std::vector<int64_t> lengths;
  uint64_t state = 1;
  while (total > 0) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    const double uniform = (static_cast<double>(state >> 11) + 0.5) / 9007199254740992.0;
    const double drawn = std::fmin(2048, 1 - mean * std::log(uniform));
    lengths.push_back(std::min<int64_t>(total, static_cast<int64_t>(drawn)));
    total -= lengths.back();
  }
  return lengths;
}

// Multiplications and additions of the scores that causality leaves, forward.
double AttentionFlops(const std::vector<int64_t>& lengths, int64_t heads, int64_t d) {
  double pairs = 0;
  for (int64_t length : lengths) pairs += static_cast<double>(length) * length / 2;
  return 4 * pairs * heads * d;
}

// `plan` with the sizes of a larger one, as if its documents had fallen into larger buckets.
AttentionPlan Widened(const AttentionPlan& plan, int64_t documents, int64_t length) {
  AttentionPlan wide = plan;
  wide.max_documents = documents;
  wide.max_length = length;
  wide.lengths_B = at::zeros({documents}, plan.lengths_B.options());
  wide.lengths_B.narrow(0, 0, plan.max_documents).copy_(plan.lengths_B);
  wide.offsets_B1 = at::full({documents + 1}, plan.num_tokens, plan.offsets_B1.options());
  wide.offsets_B1.narrow(0, 0, plan.max_documents + 1).copy_(plan.offsets_B1);
  return wide;
}

void BenchAttention(Bench& bench, const Documents& documents) {
  constexpr int64_t kHeads = 32, kKvHeads = 4, kDim = 128;
  std::vector<int64_t> ends = {0};
  for (int64_t length : documents.lengths) ends.push_back(ends.back() + length);
  const int64_t tokens = ends.back();
  const double scale = 1 / std::sqrt(static_cast<double>(kDim));
  const at::Tensor q = Draw({tokens, kHeads, kDim}), k = Draw({tokens, kKvHeads, kDim});
  const at::Tensor v = Draw({tokens, kHeads + 2 * kKvHeads, kDim}).narrow(1, 36, kKvHeads);
  const at::Tensor dout = Draw({tokens, kHeads, kDim});
  const AttentionPlan plan = MakeAttentionPlan(ends, q.device());
  const on_cuda::AttentionInputs in{q, k, v, plan, scale, 0};
  const AttentionOutput flash = on_cuda::FlashAttentionForward(in);
  const AttentionGradients flash_d =
      on_cuda::FlashAttentionBackward(in, dout, flash, /*deterministic=*/true);
  const AttentionOutput out = AttentionForward(q, k, v, plan, scale, 0);
  const AttentionGradients d = AttentionBackward(dout, q, k, v, out, plan, scale, 0);
  bench.Check("attention " + documents.name, Difference(out.out_TNd, flash.out_TNd));
  bench.Check("attention dq " + documents.name, Difference(d.dq_TNd, flash_d.dq_TNd));
  bench.Check("attention dk " + documents.name, Difference(d.dk_TMd, flash_d.dk_TMd));
  bench.Check("attention dv " + documents.name, Difference(d.dv_TMd, flash_d.dv_TMd));
  const double flops = AttentionFlops(documents.lengths, kHeads, kDim);
  BenchRow forward{"attention", documents.name, "bf16", flops, 0, documents.sdpa_forward_us,
                   "cuDNN"};
  bench.Run(forward, [&] { AttentionForward(q, k, v, plan, scale, 0); });
  BenchRow backward{"attention backward",       documents.name, "bf16", 2.5 * flops, 0,
                    documents.sdpa_backward_us, "cuDNN"};
  bench.Run(backward, [&] { AttentionBackward(dout, q, k, v, out, plan, scale, 0); });
  if (documents.buckets) {
    for (const auto& [count, length] :
         {std::pair(256, 8192), std::pair(64, 8192), std::pair(256, 2048), std::pair(1024, 2048)}) {
      const AttentionPlan wide = Widened(MakeAttentionPlan(ends, q.device()), count, length);
      const std::string name =
          documents.name + ", plan " + std::to_string(count) + " x " + std::to_string(length);
      bench.Run({"attention", name, "bf16", flops},
                [&] { AttentionForward(q, k, v, wide, scale, 0); });
      bench.Run({"attention backward", name, "bf16", 2.5 * flops},
                [&] { AttentionBackward(dout, q, k, v, out, wide, scale, 0); });
    }
  }
  bench.Run({"flash", documents.name, "bf16", flops}, [&] { on_cuda::FlashAttentionForward(in); });
  bench.Run({"flash backward", documents.name, "bf16", 2.5 * flops},
            [&] { on_cuda::FlashAttentionBackward(in, dout, flash, /*deterministic=*/false); });
  bench.Run({"deterministic backward", documents.name, "bf16", 2.5 * flops},
            [&] { on_cuda::FlashAttentionBackward(in, dout, out, /*deterministic=*/true); });
}

kernels::Bf16* Pointer(const at::Tensor& x) {
  return reinterpret_cast<kernels::Bf16*>(x.data_ptr());
}

void BenchLinear(Bench& bench, const std::string& name, int64_t rows, int64_t in, int64_t out) {
  const std::string shape =
      name + " " + std::to_string(rows) + " x " + std::to_string(in) + " -> " + std::to_string(out);
  const double flops = 2.0 * rows * in * out;
  const at::Tensor x = Draw({rows, in}), w = Draw({out, in}), dy = Draw({rows, out});
  const int rows_in = static_cast<int>(in), rows_out = static_cast<int>(out);

  // Our grouped kernels, with one group.
  at::Tensor own_y = at::empty({rows, out}, Bf16()), own_dx = at::empty({rows, in}, Bf16());
  const auto own_forward = [&] {
    kernels::GroupedLinear(
        {Pointer(x), Pointer(w), Pointer(own_y), nullptr, rows, 1, rows_in, rows_out, 0}, nullptr);
  };
  const auto own_input = [&] {
    kernels::GroupedLinearGrad(
        {Pointer(dy), Pointer(w), Pointer(own_dx), nullptr, rows, 1, rows_out, rows_in, 0},
        nullptr);
  };
  own_forward();
  own_input();
  bench.Check("linear " + shape, Difference(LinearForward(x, w, {}), own_y));
  bench.Check("linear input " + shape, Difference(LinearBackwardInput(dy, w), own_dx));
  double us = bench.Run({"own kernel", shape, "bf16", flops}, own_forward);
  bench.Run({"linear", shape, "bf16", flops, 0, us, "own"}, [&] { LinearForward(x, w, {}); });
  us = bench.Run({"own kernel, input", shape, "bf16", flops}, own_input);
  bench.Run({"linear input", shape, "bf16", flops, 0, us, "own"},
            [&] { LinearBackwardInput(dy, w); });

  for (const auto& [type, type_name] : {std::pair(at::kBFloat16, std::string("bf16")),
                                        std::pair(at::kFloat, std::string("fp32"))}) {
    const at::Tensor dw = at::empty({out, in}, Bf16().dtype(type));
    const at::Tensor own_dw = at::empty({out, in}, Bf16().dtype(type));
    for (bool accumulate : {false, true}) {
      const auto own_weight = [&] {
        if (type == at::kFloat) {
          kernels::GroupedWeightGrad(
              kernels::GroupedWeightGradParams<float>{Pointer(dy), Pointer(x),
                                                      own_dw.data_ptr<float>(), nullptr, rows, 1,
                                                      rows_out, rows_in, accumulate, 0},
              nullptr);
        } else {
          kernels::GroupedWeightGrad(
              kernels::GroupedWeightGradParams<kernels::Bf16>{Pointer(dy), Pointer(x),
                                                              Pointer(own_dw), nullptr, rows, 1,
                                                              rows_out, rows_in, accumulate, 0},
              nullptr);
        }
      };
      dw.fill_(1);
      own_dw.fill_(1);
      own_weight();
      LinearBackwardWeight(dy, x, dw, accumulate);
      bench.Check("linear weight " + shape, Difference(dw, own_dw));
      const std::string dtype = type_name + (accumulate ? " add" : "");
      us = bench.Run({"own kernel, weight", shape, dtype, flops}, own_weight);
      bench.Run({"linear weight", shape, dtype, flops, 0, us, "own"},
                [&] { LinearBackwardWeight(dy, x, dw, accumulate); });
    }
  }
}

int Main(const std::string& json_file) {
  if (c10::cuda::device_count() == 0) {
    std::fprintf(stderr, "ops_bench: no CUDA device\n");
    return 77;
  }
  at::manual_seed(1);
  Bench bench(json_file);
  for (const Documents& documents :
       {Documents{"2 x 4096", {4096, 4096}, 500, 1630}, Documents{"1 x 8192", {8192}, 940, 3030},
        Documents{"chat, mean 250", ChatLengths(8192, 250), 0, 0, true},
        Documents{"64 x 128", std::vector<int64_t>(64, 128), 80, 520},
        Documents{"8 x 4096", std::vector<int64_t>(8, 4096), 0, 0}}) {
    BenchAttention(bench, documents);
  }
  for (int64_t rows : {8192, 32768}) {
    BenchLinear(bench, "qkv", rows, 2048, 5120);
    BenchLinear(bench, "o", rows, 4096, 2048);
    BenchLinear(bench, "router", rows, 2048, 128);
  }
  return bench.ExitCode();
}

}  // namespace
}  // namespace switchyard::ops

int main(int argc, char** argv) { return switchyard::ops::Main(argc > 1 ? argv[1] : ""); }
