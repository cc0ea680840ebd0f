// Raises the errors of torch-free code, which returns Status, as the trainer's exceptions.
#ifndef SWITCHYARD_WORKER_TRAINER_CHECKPOINT_OR_THROW_H_
#define SWITCHYARD_WORKER_TRAINER_CHECKPOINT_OR_THROW_H_

#include <stdexcept>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace switchyard {

// what() is the message, without the code.
class StatusError : public std::runtime_error {
 public:
  explicit StatusError(absl::Status status)
      : std::runtime_error(std::string(status.message())), status_(std::move(status)) {}
  const absl::Status& status() const { return status_; }

 private:
  absl::Status status_;
};

inline void OrThrow(const absl::Status& status) {
  if (!status.ok()) throw StatusError(status);
}

template <typename T>
T OrThrow(absl::StatusOr<T> value) {
  if (!value.ok()) throw StatusError(std::move(value).status());
  return *std::move(value);
}

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_CHECKPOINT_OR_THROW_H_
