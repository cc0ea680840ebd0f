// A listening socket whose connections are accepted here and given to gRPC.
//
// gRPC 1.51 stops accepting for good at the first accept() that fails for want of descriptors. Here
// a connection that would take one of the last descriptors is closed at once instead (the client
// sees UNAVAILABLE and tries again), so that the database, logs and checkpoints always find some;
// when even accept() finds none, it is tried again. Connections wait in the kernel meanwhile.
#ifndef SWITCHYARD_SERVER_API_LISTENER_H_
#define SWITCHYARD_SERVER_API_LISTENER_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/fd.h"
#include "base/thread.h"

namespace switchyard {

class Listener {
 public:
  // Binds every address that `address`, "host:port", stands for ("[::1]:7070"; localhost may be
  // two); port 0 chooses a free one. Connections queue up until Start.
  // Errors: InvalidArgument: no such host or port; Unavailable: in use, or not of this machine.
  static absl::StatusOr<std::unique_ptr<Listener>> Open(const std::string& address);
  ~Listener() { Stop(); }

  int port() const { return port_; }

  // Gives every connection (non-blocking, close-on-exec) with the socket it came through to `take`,
  // which owns it from then on. Called on the listener's thread. Once.
  void Start(std::function<void(int listener, UniqueFd connection)> take);
  // No call of `take` after this. Idempotent.
  void Stop();

  // Descriptors below the process's limit that connections must leave to everything else.
  static int64_t ReservedDescriptors(int64_t limit);

 private:
  Listener() = default;
  void Loop(const StopToken& stop);
  // False: no descriptor is free at all.
  bool AcceptFrom(int listener);

  int port_ = 0;
  std::vector<UniqueFd> sockets_;
  UniqueFd wake_;  // an eventfd; becomes readable at Stop
  std::function<void(int, UniqueFd)> take_;
  int64_t refused_ = 0;  // since the last one that was taken
  Thread thread_;
};

// Raises this process's limit of open files to what it may have at most. For main.
void RaiseDescriptorLimit();

}  // namespace switchyard

#endif  // SWITCHYARD_SERVER_API_LISTENER_H_
