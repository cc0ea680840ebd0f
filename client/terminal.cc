#include "client/terminal.h"

#include <utility>

namespace switchyard {

void Interrupt::Trigger() {
  MonitorLock lock(&mu_);
  triggered_ = true;
  // Under the lock, so that SetHandler(nullptr) waits for it. Handlers only cancel a call.
  if (handler_) handler_();
}

bool Interrupt::triggered() const {
  MonitorLock lock(&mu_);
  return triggered_;
}

bool Interrupt::WaitFor(absl::Duration timeout) const {
  MonitorLock lock(&mu_);
  return mu_.AwaitWithTimeout([this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return triggered_; },
                              timeout);
}

void Interrupt::SetHandler(std::function<void()> handler) {
  MonitorLock lock(&mu_);
  handler_ = std::move(handler);
  if (triggered_ && handler_) handler_();
}

}  // namespace switchyard
