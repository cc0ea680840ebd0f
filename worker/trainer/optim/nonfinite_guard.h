// Counts steps whose loss or gradient norm is not finite. Pure; the numbers it sees are the same on
// all ranks, so its decisions are.
#ifndef SWITCHYARD_WORKER_TRAINER_OPTIM_NONFINITE_GUARD_H_
#define SWITCHYARD_WORKER_TRAINER_OPTIM_NONFINITE_GUARD_H_

#include <cmath>
#include <cstdint>

namespace switchyard {

class NonfiniteGuard {
 public:
  // The counts of a resumed run go on.
  explicit NonfiniteGuard(int64_t max_in_a_row, int64_t in_a_row = 0, int64_t total = 0)
      : max_in_a_row_(max_in_a_row), in_a_row_(in_a_row), total_(total) {}

  // True: update the weights. False: skip this step.
  bool Allow(double loss, double grad_norm) {
    if (std::isfinite(loss) && std::isfinite(grad_norm)) {
      in_a_row_ = 0;
      return true;
    }
    ++in_a_row_;
    ++total_;
    return false;
  }
  // Too many in a row: the job must stop.
  bool Exhausted() const { return in_a_row_ >= max_in_a_row_; }

  int64_t in_a_row() const { return in_a_row_; }
  int64_t total() const { return total_; }

 private:
  int64_t max_in_a_row_;
  int64_t in_a_row_;
  int64_t total_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_OPTIM_NONFINITE_GUARD_H_
