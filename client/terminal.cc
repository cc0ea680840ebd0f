#include "client/terminal.h"

#include <utility>

namespace switchyard {

void Interrupt::Trigger() {
  absl::MutexLock lock(&mu_);
  triggered_ = true;
  // Under the lock, so that SetHandler(nullptr) waits for it. Handlers only cancel a call.
  if (handler_) handler_();
}

bool Interrupt::triggered() const {
  absl::MutexLock lock(&mu_);
  return triggered_;
}

bool Interrupt::WaitFor(absl::Duration timeout) const {
  absl::MutexLock lock(&mu_);
  return mu_.AwaitWithTimeout(absl::Condition(&triggered_), timeout);
}

void Interrupt::SetHandler(std::function<void()> handler) {
  absl::MutexLock lock(&mu_);
  handler_ = std::move(handler);
  if (triggered_ && handler_) handler_();
}

}  // namespace switchyard
