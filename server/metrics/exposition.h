// Serves /metrics over HTTP.
#ifndef SWITCHYARD_SERVER_METRICS_EXPOSITION_H_
#define SWITCHYARD_SERVER_METRICS_EXPOSITION_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/metrics/registry.h"

namespace switchyard {

class Exposition {
 public:
  // `address`: host:port; port 0 chooses a free one. `metrics` must outlive the result.
  // Errors: Unavailable: cannot listen there.
  static absl::StatusOr<std::unique_ptr<Exposition>> Start(const std::string& address,
                                                           const Metrics& metrics);
  ~Exposition();
  int port() const { return port_; }

 private:
  struct Impl;
  Exposition();
  std::unique_ptr<Impl> impl_;
  int port_ = 0;
};

}  // namespace switchyard

#endif  // SWITCHYARD_SERVER_METRICS_EXPOSITION_H_
