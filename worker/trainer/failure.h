// Why a rank gives up, as an exception that main turns into an error frame.
#ifndef SWITCHYARD_WORKER_TRAINER_FAILURE_H_
#define SWITCHYARD_WORKER_TRAINER_FAILURE_H_

#include <exception>
#include <stdexcept>
#include <string>
#include <utility>

#include "worker/link/messages.h"
#include "worker/trainer/checkpoint/or_throw.h"

namespace switchyard {

class TrainError : public std::runtime_error {
 public:
  TrainError(FailureReason reason, const std::string& message)
      : std::runtime_error(message), reason_(reason) {}
  FailureReason reason() const { return reason_; }

 private:
  FailureReason reason_;
};

// The reason for a Status met while doing something whose faults are usually `usual`: a full disk
// or a failing one is that, whatever was being read or written.
FailureReason ReasonOf(const absl::Status& status, FailureReason usual);

// Runs `action`; a StatusError becomes a TrainError that blames `usual`, or the storage.
template <typename Action>
auto Blame(FailureReason usual, const Action& action) -> decltype(action()) {
  try {
    return action();
  } catch (const StatusError& e) {
    throw TrainError(ReasonOf(e.status(), usual), e.what());
  }
}

// Any exception of the trainer as reason and message, without torch's stack traces. `step` is 0.
ErrorFrame DescribeFailure(const std::exception& error);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_FAILURE_H_
