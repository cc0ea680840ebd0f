// What all transports of Comm share: sums made of byte exchanges, so that the order of additions is
// ours. A transport only moves bytes; the same ranks then give the same bits over Gloo and
// in-process.
#ifndef SWITCHYARD_WORKER_TRAINER_PARALLEL_RANK_ORDER_COMM_H_
#define SWITCHYARD_WORKER_TRAINER_PARALLEL_RANK_ORDER_COMM_H_

#include <cstdint>
#include <string>
#include <vector>

#include "worker/trainer/parallel/comm.h"

namespace switchyard {

// Sums: every rank gets a chunk of all ranks' inputs, adds it in rank order (16-bit floats in fp32,
// rounded once at the end) and, for all-reduce, gathers the chunks.
class RankOrderComm : public Comm {
 public:
  // `group` names the group in errors: "ep of ranks 0,1".
  RankOrderComm(std::string group, int rank, int size)
      : group_(std::move(group)), rank_(rank), size_(size) {}

  int rank() const final { return rank_; }
  int size() const final { return size_; }
  void AllReduceSum(at::Tensor& tensor) final;
  void AllReduceMax(at::Tensor& tensor) final;
  void AllGather(at::Tensor& out, const at::Tensor& in) final;
  void ReduceScatterSum(at::Tensor& out, const at::Tensor& in) final;
  void AllToAll(at::Tensor& out, const at::Tensor& in, const std::vector<int64_t>& recv_rows,
                const std::vector<int64_t>& send_rows) final;
  void Broadcast(at::Tensor& tensor, int root) final;
  void Barrier() final;

 protected:
  const std::string& group() const { return group_; }
  // "all_reduce_sum over ep of ranks 0,1 on rank 1": the start of every error.
  std::string Where(const char* collective) const;

  // Moves send_bytes[r] bytes of `in` to rank r and recv_bytes[r] bytes from it, both back to back
  // in rank order. Tensors are uint8, 1-D, contiguous; called with size() > 1 only. `collective` is
  // the public member that asked, for errors. Throws on a timeout or a lost peer.
  virtual void Exchange(const char* collective, at::Tensor& out, const at::Tensor& in,
                        const std::vector<int64_t>& recv_bytes,
                        const std::vector<int64_t>& send_bytes) = 0;
  // out [size * n] = the ranks' in [n], bytes.
  virtual void Gather(const char* collective, at::Tensor& out, const at::Tensor& in) = 0;

 private:
  enum class Reduction { kSum, kMax };
  void AllReduce(const char* collective, at::Tensor& tensor, Reduction reduction);
  // chunk [n] = reduction over r of parts [size, n], in ascending r.
  void ReduceParts(at::Tensor& chunk, const at::Tensor& parts, Reduction reduction) const;

  std::string group_;
  int rank_;
  int size_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_PARALLEL_RANK_ORDER_COMM_H_
