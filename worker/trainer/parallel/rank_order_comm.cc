#include "worker/trainer/parallel/rank_order_comm.h"

#include <ATen/ATen.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "worker/trainer/ops/rank_sum.h"

namespace switchyard {
namespace {

// Smaller all-reduces gather everything and add it up on every rank: one round trip instead of two.
// The order of additions is the same, so the bits are.
constexpr int64_t kGatherReduceNumel = 4096;

at::Tensor Bytes(const at::Tensor& flat) {
  return flat.numel() == 0 ? at::empty({0}, flat.options().dtype(at::kByte)) : flat.view(at::kByte);
}

void CheckFlat(const std::string& where, const char* name, const at::Tensor& tensor) {
  TORCH_CHECK(tensor.dim() == 1 && tensor.is_contiguous(), where, ": ", name,
              " must be 1-D and contiguous, got ", tensor.sizes());
}

}  // namespace

std::string RankOrderComm::Where(const char* collective) const {
  return absl::StrCat(collective, " over ", group_, " on rank ", rank_, " of ", size_);
}

void RankOrderComm::ReduceParts(at::Tensor& chunk, const at::Tensor& parts,
                                Reduction reduction) const {
  if (reduction == Reduction::kMax) {
    chunk.copy_(parts[0]);
    for (int r = 1; r < size_; ++r) at::maximum_out(chunk, chunk, parts[r]);
    return;
  }
  ops::RankSum(parts, chunk);
}

void RankOrderComm::AllReduce(const char* collective, at::Tensor& tensor, Reduction reduction) {
  TORCH_CHECK(tensor.is_contiguous(), Where(collective), ": the tensor must be contiguous");
  if (size_ == 1 || tensor.numel() == 0) return;
  at::Tensor flat = tensor.view({-1});
  const int64_t numel = flat.numel();
  if (numel <= kGatherReduceNumel) {
    at::Tensor parts = at::empty({size_ * numel}, flat.options());
    at::Tensor bytes = Bytes(parts);
    Gather(collective, bytes, Bytes(flat));
    ReduceParts(flat, parts.view({size_, numel}), reduction);
    return;
  }
  // Chunks of equal size, the last ones shorter or empty.
  const int64_t chunk_numel = (numel + size_ - 1) / size_;
  const int64_t item = static_cast<int64_t>(flat.element_size());
  const auto chunk_size = [&](int64_t r) {
    return std::max<int64_t>(0, std::min(chunk_numel, numel - r * chunk_numel));
  };
  const int64_t own = chunk_size(rank_);
  std::vector<int64_t> send_bytes, recv_bytes;
  for (int r = 0; r < size_; ++r) {
    send_bytes.push_back(chunk_size(r) * item);
    recv_bytes.push_back(own * item);
  }
  at::Tensor parts = at::empty({size_ * own}, flat.options());
  at::Tensor parts_bytes = Bytes(parts);
  Exchange(collective, parts_bytes, Bytes(flat), recv_bytes, send_bytes);
  // The gather needs chunks of one size: the tail of the last ones is padding.
  at::Tensor chunk = at::zeros({chunk_numel}, flat.options());
  if (own > 0) {
    at::Tensor sum = chunk.narrow(0, 0, own);
    ReduceParts(sum, parts.view({size_, own}), reduction);
  }
  at::Tensor whole = at::empty({size_ * chunk_numel}, flat.options());
  at::Tensor whole_bytes = Bytes(whole);
  Gather(collective, whole_bytes, Bytes(chunk));
  flat.copy_(whole.narrow(0, 0, numel));
}

void RankOrderComm::AllReduceSum(at::Tensor& tensor) {
  AllReduce("all_reduce_sum", tensor, Reduction::kSum);
}

void RankOrderComm::AllReduceMax(at::Tensor& tensor) {
  AllReduce("all_reduce_max", tensor, Reduction::kMax);
}

void RankOrderComm::AllGather(at::Tensor& out, const at::Tensor& in) {
  CheckFlat(Where("all_gather"), "in", in);
  CheckFlat(Where("all_gather"), "out", out);
  TORCH_CHECK(out.numel() == in.numel() * size_ && out.scalar_type() == in.scalar_type(),
              Where("all_gather"), ": out has ", out.numel(), " ", out.scalar_type(), ", needs ",
              in.numel(), " x ", size_, " ", in.scalar_type());
  if (size_ == 1) {
    if (!out.is_same(in) && out.data_ptr() != in.data_ptr()) out.copy_(in);
    return;
  }
  if (in.numel() == 0) return;
  at::Tensor bytes = Bytes(out);
  Gather("all_gather", bytes, Bytes(in));
}

void RankOrderComm::ReduceScatterSum(at::Tensor& out, const at::Tensor& in) {
  CheckFlat(Where("reduce_scatter_sum"), "in", in);
  CheckFlat(Where("reduce_scatter_sum"), "out", out);
  TORCH_CHECK(in.numel() == out.numel() * size_ && out.scalar_type() == in.scalar_type(),
              Where("reduce_scatter_sum"), ": in has ", in.numel(), " ", in.scalar_type(),
              ", needs ", out.numel(), " x ", size_, " ", out.scalar_type());
  if (size_ == 1) {
    if (out.data_ptr() != in.data_ptr()) out.copy_(in);
    return;
  }
  if (in.numel() == 0) return;
  const std::vector<int64_t> bytes(size_, static_cast<int64_t>(out.nbytes()));
  at::Tensor parts = at::empty_like(in);
  at::Tensor parts_bytes = Bytes(parts);
  Exchange("reduce_scatter_sum", parts_bytes, Bytes(in), bytes, bytes);
  ReduceParts(out, parts.view({size_, out.numel()}), Reduction::kSum);
}

void RankOrderComm::AllToAll(at::Tensor& out, const at::Tensor& in,
                             const std::vector<int64_t>& recv_rows,
                             const std::vector<int64_t>& send_rows) {
  const std::string where = Where("all_to_all");
  TORCH_CHECK(
      static_cast<int>(recv_rows.size()) == size_ && static_cast<int>(send_rows.size()) == size_,
      where, ": ", recv_rows.size(), " and ", send_rows.size(), " counts for ", size_, " ranks");
  TORCH_CHECK(in.is_contiguous() && out.is_contiguous() && in.dim() >= 1 && out.dim() >= 1 &&
                  in.sizes().slice(1) == out.sizes().slice(1) &&
                  in.scalar_type() == out.scalar_type(),
              where, ": rows differ: in ", in.sizes(), " ", in.scalar_type(), ", out ", out.sizes(),
              " ", out.scalar_type());
  int64_t row_bytes = static_cast<int64_t>(in.element_size());
  for (int64_t size : in.sizes().slice(1)) row_bytes *= size;
  std::vector<int64_t> send_bytes, recv_bytes;
  int64_t send_total = 0, recv_total = 0;
  for (int r = 0; r < size_; ++r) {
    send_total += send_rows[r];
    recv_total += recv_rows[r];
    send_bytes.push_back(send_rows[r] * row_bytes);
    recv_bytes.push_back(recv_rows[r] * row_bytes);
  }
  TORCH_CHECK(send_total == in.size(0) && recv_total == out.size(0), where, ": counts add up to ",
              send_total, " and ", recv_total, " rows, tensors hold ", in.size(0), " and ",
              out.size(0));
  if (size_ == 1) {
    if (out.data_ptr() != in.data_ptr()) out.copy_(in);
    return;
  }
  at::Tensor out_bytes = Bytes(out.view({-1}));
  Exchange("all_to_all", out_bytes, Bytes(in.view({-1})), recv_bytes, send_bytes);
}

void RankOrderComm::Broadcast(at::Tensor& tensor, int root) {
  const std::string where = Where("broadcast");
  TORCH_CHECK(root >= 0 && root < size_, where, ": no root ", root);
  TORCH_CHECK(tensor.is_contiguous(), where, ": the tensor must be contiguous");
  if (size_ == 1 || tensor.numel() == 0) return;
  // The root sends one copy to each rank, itself included.
  at::Tensor bytes = Bytes(tensor.view({-1}));
  std::vector<int64_t> recv_bytes(size_, 0), send_bytes(size_, 0);
  recv_bytes[root] = bytes.numel();
  at::Tensor send = at::empty({0}, bytes.options());
  if (rank_ == root) {
    send_bytes.assign(size_, bytes.numel());
    send = bytes.repeat({size_});
  }
  at::Tensor received = at::empty_like(bytes);
  Exchange("broadcast", received, send, recv_bytes, send_bytes);
  bytes.copy_(received);
}

void RankOrderComm::Barrier() {
  if (size_ == 1) return;
  at::Tensor in = at::zeros({1}, at::kByte);
  at::Tensor out = at::empty({size_}, at::kByte);
  Gather("barrier", out, in);
}

}  // namespace switchyard
