#include <ATen/ATen.h>

#include <algorithm>
#include <limits>
#include <numeric>

#include "worker/trainer/ops/attention.h"
#include "worker/trainer/ops/attention_buckets.h"

namespace switchyard::ops {
namespace {

// A document joins a batch when at least this share of its padded row is real. Padding costs time
// in proportion to the square of the length, one more batch costs some dozen small calls.
constexpr int64_t kMinFillPercent = 75;

using Batch = AttentionPlan::Batch;

at::Tensor ToTensor(const std::vector<int64_t>& values) {
  return at::tensor(values, at::TensorOptions().dtype(at::kLong));
}

Batch MakeBatch(const std::vector<int64_t>& cu_seqlens, const std::vector<int64_t>& documents,
                int64_t length) {
  std::vector<int64_t> token_of_slot, padding_slots, tokens, slots;
  for (int64_t document : documents) {
    const int64_t begin = cu_seqlens[document];
    const int64_t size = cu_seqlens[document + 1] - begin;
    for (int64_t i = 0; i < length; ++i) {
      const int64_t slot = static_cast<int64_t>(token_of_slot.size());
      if (i < size) {
        tokens.push_back(begin + i);
        slots.push_back(slot);
      } else {
        padding_slots.push_back(slot);
      }
      token_of_slot.push_back(i < size ? begin + i : begin);
    }
  }
  Batch batch;
  batch.documents = static_cast<int64_t>(documents.size());
  batch.length = length;
  batch.contiguous = padding_slots.empty() &&
                     static_cast<int64_t>(tokens.size()) == cu_seqlens.back() &&
                     std::is_sorted(tokens.begin(), tokens.end());
  if (!batch.contiguous) {
    batch.token_of_slot = ToTensor(token_of_slot);
    batch.padding_slots = ToTensor(padding_slots);
    batch.tokens = ToTensor(tokens);
    batch.slots = ToTensor(slots);
  }
  return batch;
}

std::vector<Batch> MakeBatches(const std::vector<int64_t>& cu_seqlens) {
  const auto length = [&](int64_t i) { return cu_seqlens[i + 1] - cu_seqlens[i]; };
  std::vector<int64_t> order(cu_seqlens.size() - 1);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return length(a) > length(b); });
  std::vector<Batch> batches;
  size_t begin = 0;
  while (begin < order.size() && length(order[begin]) > 0) {
    const int64_t longest = length(order[begin]);
    size_t end = begin + 1;
    while (end < order.size() && length(order[end]) > 0 &&
           100 * length(order[end]) >= kMinFillPercent * longest) {
      ++end;
    }
    batches.push_back(MakeBatch(
        cu_seqlens, std::vector<int64_t>(order.begin() + begin, order.begin() + end), longest));
    begin = end;
  }
  return batches;
}

void CheckFitsInt32(int64_t num_tokens, int64_t stride) {
  TORCH_CHECK(num_tokens * stride <= std::numeric_limits<int32_t>::max(), "attention: ", num_tokens,
              " tokens of ", stride, " elements do not fit 32-bit offsets");
}

// Fills max_documents, max_length, lengths_B and offsets_B1.
void PlaceOnDevice(at::Device device, AttentionPlan& plan) {
  std::vector<int32_t> begins, lengths;
  int64_t longest = 0;
  CheckFitsInt32(plan.num_tokens, 1);
  for (size_t i = 0; i + 1 < plan.cu_seqlens.size(); ++i) {
    const int64_t length = plan.cu_seqlens[i + 1] - plan.cu_seqlens[i];
    if (length == 0) continue;
    longest = std::max(longest, length);
    begins.push_back(static_cast<int32_t>(plan.cu_seqlens[i]));
    lengths.push_back(static_cast<int32_t>(length));
  }
  plan.num_documents = static_cast<int64_t>(lengths.size());
  plan.max_documents = AttentionDocumentsBucket(plan.num_documents);
  plan.max_length = AttentionLengthBucket(longest);
  lengths.resize(plan.max_documents, 0);
  begins.resize(plan.max_documents + 1, static_cast<int32_t>(plan.num_tokens));
  // One copy for both; the lengths first, for alignment.
  const at::TensorOptions options = at::TensorOptions().dtype(at::kInt);
  const at::Tensor host = at::empty({2 * plan.max_documents + 1}, options.pinned_memory(true));
  std::copy(begins.begin(), begins.end(),
            std::copy(lengths.begin(), lengths.end(), host.data_ptr<int32_t>()));
  const at::Tensor both = at::empty(host.sizes(), options.device(device));
  both.copy_(host, /*non_blocking=*/true);
  plan.lengths_B = both.narrow(0, 0, plan.max_documents);
  plan.offsets_B1 = both.narrow(0, plan.max_documents, plan.max_documents + 1);
}

}  // namespace

AttentionPlan MakeAttentionPlan(const std::vector<int64_t>& cu_seqlens, at::Device device,
                                bool deterministic) {
  TORCH_CHECK(!cu_seqlens.empty() && cu_seqlens.front() == 0 &&
                  std::is_sorted(cu_seqlens.begin(), cu_seqlens.end()),
              "attention: cu_seqlens must start at 0 and not descend");
  AttentionPlan plan;
  plan.num_tokens = cu_seqlens.back();
  plan.deterministic = deterministic;
  plan.cu_seqlens = cu_seqlens;
  if (device.is_cpu()) {
    plan.batches = MakeBatches(cu_seqlens);
  } else {
    PlaceOnDevice(device, plan);
  }
  return plan;
}

const at::Tensor& AttentionPlan::ElementOffsets(int64_t stride) const {
  for (const auto& [known, offsets] : element_offsets_) {
    if (known == stride) return offsets;
  }
  CheckFitsInt32(num_tokens, stride);
  return element_offsets_.emplace_back(stride, at::mul(offsets_B1, stride)).second;
}

void AttentionPlan::Assign(const AttentionPlan& next) {
  TORCH_CHECK(max_documents == next.max_documents && max_length == next.max_length,
              "attention: a plan for ", max_documents, " documents of up to ", max_length,
              " tokens cannot take over one for ", next.max_documents, " of up to ",
              next.max_length);
  num_tokens = next.num_tokens;
  num_documents = next.num_documents;
  deterministic = next.deterministic;
  cu_seqlens = next.cu_seqlens;
  batches = next.batches;
  if (!offsets_B1.defined()) return;
  lengths_B.copy_(next.lengths_B, /*non_blocking=*/true);
  offsets_B1.copy_(next.offsets_B1, /*non_blocking=*/true);
  for (auto& [stride, offsets] : element_offsets_) {
    CheckFitsInt32(num_tokens, stride);
    at::mul_out(offsets, offsets_B1, at::scalar_tensor(stride, offsets.options().device(at::kCPU)));
  }
}

}  // namespace switchyard::ops
