// A collective that failed: a timeout or a lost peer.
#ifndef SWITCHYARD_WORKER_TRAINER_PARALLEL_COMM_ERROR_H_
#define SWITCHYARD_WORKER_TRAINER_PARALLEL_COMM_ERROR_H_

#include <stdexcept>

namespace switchyard {

// what() names the collective, the group and this rank. Mostly the echo of a fault on another rank.
class CommError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_PARALLEL_COMM_ERROR_H_
