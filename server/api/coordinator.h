// The whole coordinator in one object: what main runs, and what the tests start and stop on the
// same folder.
#ifndef SWITCHYARD_SERVER_API_COORDINATOR_H_
#define SWITCHYARD_SERVER_API_COORDINATOR_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "base/clock.h"
#include "server/config.h"

namespace switchyard {

class Coordinator {
 public:
  // Opens the store, listens, recovers, and then serves. `config` is valid.
  // Errors: as Store::Open; Unavailable: an address cannot be listened on.
  static absl::StatusOr<std::unique_ptr<Coordinator>> Start(const ServerConfig& config,
                                                            Clock& clock);
  // Stops as Stop().
  ~Coordinator();

  // The addresses with their real ports.
  const std::string& listen() const;
  const std::string& agent_listen() const;
  const std::string& metrics_listen() const;

  // Health NOT_SERVING, streams end with UNAVAILABLE, calls in progress get 10 s. Idempotent. A
  // kill at any point is as safe; this is only nicer.
  void Stop();

 private:
  struct Impl;
  explicit Coordinator(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_SERVER_API_COORDINATOR_H_
