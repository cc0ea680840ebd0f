// Built with exceptions: prometheus-cpp reports a taken address by one.
#include <exception>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/listener_waker.h"
#include "prometheus/exposer.h"
#include "worker/agent/metrics.h"

namespace switchyard {

MetricsServer::MetricsServer(std::string listen, std::unique_ptr<prometheus::Exposer> exposer,
                             int port)
    : listen_(std::move(listen)), exposer_(std::move(exposer)), port_(port) {}
MetricsServer::~MetricsServer() {
  const ListenerWaker waker(listen_, port_);  // else the next line takes up to 2 s
  exposer_.reset();
}

absl::StatusOr<std::unique_ptr<MetricsServer>> MetricsServer::Start(
    const std::string& listen, const std::shared_ptr<AgentMetrics>& metrics) {
  try {
    auto exposer = std::make_unique<prometheus::Exposer>(listen, /*num_threads=*/2);
    exposer->RegisterCollectable(metrics);
    const std::vector<int> ports = exposer->GetListeningPorts();
    return std::unique_ptr<MetricsServer>(
        new MetricsServer(listen, std::move(exposer), ports.empty() ? 0 : ports[0]));
  } catch (const std::exception& e) {
    return absl::UnavailableError(
        absl::StrCat("serve metrics on ", listen, ": ", e.what(), " (is the port taken?)"));
  }
}

}  // namespace switchyard
