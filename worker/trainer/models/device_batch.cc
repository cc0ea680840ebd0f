#include "worker/trainer/models/device_batch.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace switchyard {
namespace {

constexpr int64_t kIgnored = -100;

const int64_t* Checked(const at::Tensor& ids_T, int64_t tokens) {
  TORCH_CHECK(ids_T.defined() && ids_T.dim() == 1 && ids_T.scalar_type() == at::kLong &&
                  ids_T.is_cpu() && ids_T.is_contiguous() && ids_T.size(0) == tokens,
              "batch: tokens, targets and positions must be int64 [T] of one length on the CPU, ",
              "got ", ids_T.sizes(), " for ", tokens, " tokens");
  return ids_T.const_data_ptr<int64_t>();
}

void CheckId(const char* what, int64_t id, int64_t vocab_size) {
  TORCH_CHECK(id >= 0 && id < vocab_size, "batch: ", what, " ", id,
              " does not fit a vocabulary of ", vocab_size);
}

// Sections of one int32 buffer; each begins at a multiple of 16 bytes.
class Sections {
 public:
  int64_t Add(int64_t size) {
    const int64_t begin = size_;
    size_ += (size + 3) / 4 * 4;
    return begin;
  }
  int64_t size() const { return size_; }

 private:
  int64_t size_ = 0;
};

}  // namespace

DeviceBatch CopyToDevice(const DecoderBatch& batch, int64_t vocab_size, at::Device device) {
  TORCH_CHECK(batch.tokens_T.defined(), "batch: no tokens");
  DeviceBatch out;
  const int64_t tokens = out.num_tokens = batch.tokens_T.numel();
  const int64_t* token = Checked(batch.tokens_T, tokens);
  const int64_t* target = Checked(batch.targets_T, tokens);
  const int64_t* position = Checked(batch.positions_T, tokens);
  TORCH_CHECK(!batch.cu_seqlens.empty() && batch.cu_seqlens.back() == tokens,
              "batch: documents end at ",
              batch.cu_seqlens.empty() ? int64_t{-1} : batch.cu_seqlens.back(), ", there are ",
              tokens, " tokens");
  for (int64_t t = 0; t < tokens; ++t) {
    CheckId("token", token[t], vocab_size);
    if (target[t] != kIgnored) {
      CheckId("target", target[t], vocab_size);
      ++out.supervised;
    }
    TORCH_CHECK(position[t] >= 0 && position[t] < tokens, "batch: position ", position[t], " of ",
                tokens, " tokens");
    out.num_positions = std::max(out.num_positions, position[t] + 1);
  }

  const bool all = out.supervised == tokens;
  Sections sections;
  const int64_t tokens_at = sections.Add(tokens), positions_at = sections.Add(tokens);
  const int64_t ids_at = sections.Add(out.supervised);
  const int64_t rows_at = all ? 0 : sections.Add(out.supervised);
  const at::Tensor host = at::empty(
      {sections.size()},
      at::TensorOptions().dtype(at::kInt).pinned_memory(device.is_cuda() && sections.size() > 0));
  int32_t* to = host.mutable_data_ptr<int32_t>();
  int64_t next = 0;
  for (int64_t t = 0; t < tokens; ++t) {
    to[tokens_at + t] = static_cast<int32_t>(token[t]);
    to[positions_at + t] = static_cast<int32_t>(position[t]);
    if (target[t] == kIgnored) continue;
    to[ids_at + next] = static_cast<int32_t>(target[t]);
    if (!all) to[rows_at + next] = static_cast<int32_t>(t);
    ++next;
  }
  const at::Tensor there = host.to(device, /*non_blocking=*/true);
  out.tokens_T = there.narrow(0, tokens_at, tokens);
  out.positions_T = there.narrow(0, positions_at, tokens);
  out.targets.ids_S = there.narrow(0, ids_at, out.supervised);
  if (!all) out.targets.rows_S = there.narrow(0, rows_at, out.supervised);
  return out;
}

}  // namespace switchyard
