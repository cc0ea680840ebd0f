// Collectives over one group of ranks, whatever carries them: C10dComm (Gloo or NCCL process
// groups) or InProcessComm (ranks as threads of one process; a test seam, never a product mode).
#ifndef SWITCHYARD_WORKER_TRAINER_PARALLEL_COMM_H_
#define SWITCHYARD_WORKER_TRAINER_PARALLEL_COMM_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace switchyard {

// Every member is collective: all ranks of the group call the same ones in the same order, from one
// thread each. Blocking on the CPU; on CUDA ordered after and before the current stream's work.
// Sums run in rank order, so results are the same bits on every rank and in every run.
// Errors: CommError (comm_error.h): a timeout or a lost peer; it names collective, group and rank.
class Comm {
 public:
  virtual ~Comm() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  // In place, any dtype that adds. size() == 1 returns at once, as in all of these.
  virtual void AllReduceSum(at::Tensor& tensor) = 0;
  virtual void AllReduceMax(at::Tensor& tensor) = 0;
  // out [size * n] = the ranks' `in` [n], in rank order. 1-D contiguous; same dtype.
  virtual void AllGather(at::Tensor& out, const at::Tensor& in) = 0;
  // out [n] = this rank's part of the sum over ranks of `in` [size * n].
  virtual void ReduceScatterSum(at::Tensor& out, const at::Tensor& in) = 0;
  // Rows of dim 0: the first send_rows[0] rows of `in` go to rank 0, the next to rank 1, ...;
  // `out` receives recv_rows[r] rows from rank r, in rank order. Rows may be of any shape; 0 rows
  // are fine.
  virtual void AllToAll(at::Tensor& out, const at::Tensor& in,
                        const std::vector<int64_t>& recv_rows,
                        const std::vector<int64_t>& send_rows) = 0;
  virtual void Broadcast(at::Tensor& tensor, int root) = 0;
  virtual void Barrier() = 0;
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_PARALLEL_COMM_H_
