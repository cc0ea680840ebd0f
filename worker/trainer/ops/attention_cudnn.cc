// The only file that includes cudnn-frontend, whose headers are large.
//
// cuDNN sees documents as a batch [B, heads, L, d], whose element 0 of document b lies at a ragged
// offset from the tensor's start; its strides describe the inside of a document. B and L are
// buckets (attention_buckets.h): documents beyond the last have length 0.
#include <ATen/ATen.h>
#include <ATen/cudnn/Handle.h>
#include <c10/cuda/CUDAGuard.h>
#include <cudnn_frontend.h>

#include <array>
#include <bit>
#include <map>
#include <memory>
#include <unordered_map>
#include <utility>

#include "worker/trainer/ops/attention_buckets.h"
#include "worker/trainer/ops/attention_cuda.h"

namespace switchyard::ops::on_cuda {
namespace {

namespace fe = cudnn_frontend;
using fe::graph::Tensor_attributes;
using TensorPtr = std::shared_ptr<Tensor_attributes>;

// Names of a graph's tensors. Those of the offsets follow kOffsets, one per distinct stride.
enum Uid : int64_t { kQ = 1, kK, kV, kO, kStats, kDo, kDq, kDk, kDv, kLengths, kOffsets };

// Everything a plan depends on.
struct Key {
  bool backward;
  int64_t device, heads, kv_heads, head_dim;
  int64_t documents, length;  // buckets
  int64_t tokens;             // bucket; 0 in the forward, which needs none
  int64_t q_stride, k_stride, v_stride, o_stride, do_stride;  // elements between tokens
  int64_t window;
  uint64_t scale_bits;
  auto operator<=>(const Key&) const = default;
};

struct Plan {
  fe::graph::Graph graph;
  int64_t workspace_bytes = 0;
  std::map<int64_t, Uid> offsets;  // stride -> the tensor that holds the ragged offsets for it
  std::string refusal;             // not empty: cuDNN has no kernel, the rest is not to be used
};

class Builder {
 public:
  Builder(const Key& key, Plan* plan) : key_(key), plan_(plan), graph_(plan->graph) {
    graph_.set_io_data_type(fe::DataType_t::BFLOAT16)
        .set_intermediate_data_type(fe::DataType_t::FLOAT)
        .set_compute_data_type(fe::DataType_t::FLOAT);
    lengths_ = graph_.tensor(Tensor_attributes()
                                 .set_name("lengths")
                                 .set_uid(kLengths)
                                 .set_dim({key.documents, 1, 1, 1})
                                 .set_stride({1, 1, 1, 1})
                                 .set_data_type(fe::DataType_t::INT32));
  }

  void Forward() {
    auto options = fe::graph::SDPA_attributes()
                       .set_name("attention")
                       .set_generate_stats(true)
                       .set_attn_scale(Scale())
                       .set_padding_mask(true)
                       .set_seq_len_q(lengths_)
                       .set_seq_len_kv(lengths_)
                       .set_causal_mask(true);
    if (key_.window > 0) options.set_diagonal_band_left_bound(static_cast<int>(key_.window));
    auto [o, stats] = graph_.sdpa(Input("q", kQ, key_.heads, key_.q_stride),
                                  Input("k", kK, key_.kv_heads, key_.k_stride),
                                  Input("v", kV, key_.kv_heads, key_.v_stride), options);
    Output(o, kO, key_.heads, key_.o_stride);
    DescribeStats(*stats);
    stats->set_output(true).set_uid(kStats).set_data_type(fe::DataType_t::FLOAT);
  }

  void Backward() {
    auto options = fe::graph::SDPA_backward_attributes()
                       .set_name("attention_backward")
                       .set_attn_scale(Scale())
                       .set_padding_mask(true)
                       .set_seq_len_q(lengths_)
                       .set_seq_len_kv(lengths_)
                       .set_causal_mask(true)
                       .set_max_total_seq_len_q(key_.tokens)
                       .set_max_total_seq_len_kv(key_.tokens);
    if (key_.window > 0) options.set_diagonal_band_left_bound(static_cast<int>(key_.window));
    Tensor_attributes stats;
    stats.set_name("stats").set_uid(kStats).set_data_type(fe::DataType_t::FLOAT);
    DescribeStats(stats);
    auto [dq, dk, dv] = graph_.sdpa_backward(
        Input("q", kQ, key_.heads, key_.q_stride), Input("k", kK, key_.kv_heads, key_.k_stride),
        Input("v", kV, key_.kv_heads, key_.v_stride), Input("o", kO, key_.heads, key_.o_stride),
        Input("do", kDo, key_.heads, key_.do_stride), graph_.tensor(stats), options);
    // Dense: the workspace grows with the strides of the gradients.
    Output(dq, kDq, key_.heads, key_.heads * key_.head_dim);
    Output(dk, kDk, key_.kv_heads, key_.kv_heads * key_.head_dim);
    Output(dv, kDv, key_.kv_heads, key_.kv_heads * key_.head_dim);
  }

  void Build(cudnnHandle_t handle) {
    fe::error_t error = graph_.build(handle, {fe::HeurMode_t::A});
    if (error.is_bad()) {
      plan_->refusal = "cuDNN: " + error.get_message();
      return;
    }
    plan_->workspace_bytes = graph_.get_workspace_size();
  }

 private:
  float Scale() const { return static_cast<float>(std::bit_cast<double>(key_.scale_bits)); }

  // The offsets of tensors whose tokens are `stride` elements apart.
  TensorPtr Offsets(int64_t stride) {
    TensorPtr& offsets = offsets_[stride];
    if (offsets == nullptr) {
      const Uid uid = static_cast<Uid>(kOffsets + plan_->offsets.size());
      plan_->offsets[stride] = uid;
      offsets = graph_.tensor(Tensor_attributes()
                                  .set_name("offsets_" + std::to_string(stride))
                                  .set_uid(uid)
                                  .set_dim({key_.documents + 1, 1, 1, 1})
                                  .set_stride({1, 1, 1, 1})
                                  .set_data_type(fe::DataType_t::INT32));
    }
    return offsets;
  }

  void Describe(Tensor_attributes& tensor, int64_t heads, int64_t stride) {
    tensor.set_dim({key_.documents, heads, key_.length, key_.head_dim})
        .set_stride({key_.length * stride, key_.head_dim, stride, 1})
        .set_ragged_offset(Offsets(stride));
  }

  void DescribeStats(Tensor_attributes& stats) {
    stats.set_dim({key_.documents, key_.heads, key_.length, 1})
        .set_stride({key_.length * key_.heads, 1, key_.heads, 1})
        .set_ragged_offset(Offsets(key_.heads));
  }

  TensorPtr Input(const char* name, Uid uid, int64_t heads, int64_t stride) {
    Tensor_attributes tensor;
    tensor.set_name(name).set_uid(uid);
    Describe(tensor, heads, stride);
    return graph_.tensor(tensor);
  }

  void Output(const TensorPtr& tensor, Uid uid, int64_t heads, int64_t stride) {
    tensor->set_output(true).set_uid(uid);
    Describe(*tensor, heads, stride);
  }

  const Key& key_;
  Plan* plan_;
  fe::graph::Graph& graph_;
  TensorPtr lengths_;
  std::map<int64_t, TensorPtr> offsets_;
};

// Per thread, as cuDNN's handles are. Entries are few, by the buckets, and stay.
Plan& PlanFor(const Key& key, cudnnHandle_t handle) {
  thread_local std::map<Key, std::unique_ptr<Plan>> plans;
  std::unique_ptr<Plan>& plan = plans[key];
  if (plan == nullptr) {
    plan = std::make_unique<Plan>();
    Builder builder(key, plan.get());
    key.backward ? builder.Backward() : builder.Forward();
    builder.Build(handle);
  }
  return *plan;
}

Key MakeKey(const AttentionInputs& in, bool backward) {
  const AttentionPlan& plan = in.plan;
  Key key{};
  key.backward = backward;
  key.device = in.q_TNd.device().index();
  key.heads = in.q_TNd.size(1);
  key.kv_heads = in.k_TMd.size(1);
  key.head_dim = in.q_TNd.size(2);
  key.documents = plan.max_documents;
  key.length = plan.max_length;
  key.tokens = backward ? AttentionTokensBucket(plan.num_tokens) : 0;
  key.q_stride = in.q_TNd.stride(0);
  key.k_stride = in.k_TMd.stride(0);
  key.v_stride = in.v_TMd.stride(0);
  key.o_stride = key.heads * key.head_dim;
  key.window = in.window >= plan.max_length ? 0 : in.window;
  key.scale_bits = std::bit_cast<uint64_t>(in.scale);
  return key;
}

void Execute(Plan& plan, const AttentionPlan& documents, cudnnHandle_t handle,
             std::unordered_map<int64_t, void*> pointers, const at::Tensor& like) {
  pointers[kLengths] = documents.lengths_B.data_ptr();
  for (const auto& [stride, uid] : plan.offsets) {
    pointers[uid] = documents.ElementOffsets(stride).data_ptr();
  }
  const at::Tensor workspace = at::empty({plan.workspace_bytes}, like.options().dtype(at::kByte));
  fe::error_t error = plan.graph.execute(handle, pointers, workspace.data_ptr());
  TORCH_CHECK(error.is_good(), "attention: cuDNN: ", error.get_message());
}

}  // namespace

std::string CudnnAttentionForward(const AttentionInputs& in, AttentionOutput* out) {
  const c10::cuda::CUDAGuard guard(in.q_TNd.device());
  cudnnHandle_t handle = at::native::getCudnnHandle();
  Plan& plan = PlanFor(MakeKey(in, /*backward=*/false), handle);
  if (!plan.refusal.empty()) return plan.refusal;
  out->out_TNd = at::empty(in.q_TNd.sizes(), in.q_TNd.options());
  out->log_sum_exp_TN =
      at::empty({in.q_TNd.size(0), in.q_TNd.size(1)}, in.q_TNd.options().dtype(at::kFloat));
  Execute(plan, in.plan, handle,
          {{kQ, in.q_TNd.data_ptr()},
           {kK, in.k_TMd.data_ptr()},
           {kV, in.v_TMd.data_ptr()},
           {kO, out->out_TNd.data_ptr()},
           {kStats, out->log_sum_exp_TN.data_ptr()}},
          in.q_TNd);
  return "";
}

std::string CudnnAttentionBackward(const AttentionInputs& given, const at::Tensor& given_dout_TNd,
                                   const AttentionOutput& saved, AttentionGradients* out) {
  const c10::cuda::CUDAGuard guard(given.q_TNd.device());
  // cuDNN 9.19 places its own sums by the offsets of q and k: slices of a wider tensor give wrong
  // gradients, without an error.
  const AttentionInputs in{given.q_TNd.contiguous(),
                           given.k_TMd.contiguous(),
                           given.v_TMd.contiguous(),
                           given.plan,
                           given.scale,
                           given.window};
  const at::Tensor dout_TNd = given_dout_TNd.contiguous();
  cudnnHandle_t handle = at::native::getCudnnHandle();
  Key key = MakeKey(in, /*backward=*/true);
  key.do_stride = dout_TNd.stride(0);
  Plan& plan = PlanFor(key, handle);
  if (!plan.refusal.empty()) return plan.refusal;
  TORCH_CHECK(saved.out_TNd.is_contiguous() && saved.log_sum_exp_TN.is_contiguous(),
              "bug: the backward of cuDNN's attention needs what its forward saved");
  out->dq_TNd = at::empty(in.q_TNd.sizes(), in.q_TNd.options());
  out->dk_TMd = at::empty(in.k_TMd.sizes(), in.k_TMd.options());
  out->dv_TMd = at::empty(in.v_TMd.sizes(), in.v_TMd.options());
  Execute(plan, in.plan, handle,
          {{kQ, in.q_TNd.data_ptr()},
           {kK, in.k_TMd.data_ptr()},
           {kV, in.v_TMd.data_ptr()},
           {kO, saved.out_TNd.data_ptr()},
           {kDo, dout_TNd.data_ptr()},
           {kStats, saved.log_sum_exp_TN.data_ptr()},
           {kDq, out->dq_TNd.data_ptr()},
           {kDk, out->dk_TMd.data_ptr()},
           {kDv, out->dv_TMd.data_ptr()}},
          in.q_TNd);
  return "";
}

}  // namespace switchyard::ops::on_cuda
