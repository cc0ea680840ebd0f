// The one file of the coordinator that is built with exceptions: prometheus-cpp throws when it
// cannot listen.
#include "server/metrics/exposition.h"

#include <exception>

#include "absl/strings/str_cat.h"
#include "base/listener_waker.h"
#include "prometheus/exposer.h"

namespace switchyard {

struct Exposition::Impl {
  explicit Impl(const std::string& address) : listen(address), exposer(address, 2) {}
  const std::string listen;
  prometheus::Exposer exposer;
};

Exposition::Exposition() = default;
Exposition::~Exposition() {
  if (impl_ == nullptr) return;
  const ListenerWaker waker(impl_->listen, port_);  // else the next line takes up to 2 s
  impl_.reset();
}

absl::StatusOr<std::unique_ptr<Exposition>> Exposition::Start(const std::string& address,
                                                              const Metrics& metrics) {
  std::unique_ptr<Exposition> out(new Exposition);
  try {
    out->impl_ = std::make_unique<Impl>(address);
  } catch (const std::exception& error) {
    return absl::UnavailableError(
        absl::StrCat("listen for /metrics on ", address, ": ", error.what()));
  }
  const std::vector<int> ports = out->impl_->exposer.GetListeningPorts();
  out->port_ = ports.empty() ? 0 : ports[0];
  for (const auto& collectable : metrics.collectables()) {
    out->impl_->exposer.RegisterCollectable(collectable);
  }
  return out;
}

}  // namespace switchyard
