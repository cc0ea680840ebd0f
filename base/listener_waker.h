// Ends the waits of a server's accepting thread, while that server is being stopped.
//
// civetweb, under prometheus-cpp, looks whether it is to stop only when poll() on its listening
// socket returns: up to 2 s after it was told. A connection makes it return at once.
#ifndef SWITCHYARD_BASE_LISTENER_WAKER_H_
#define SWITCHYARD_BASE_LISTENER_WAKER_H_

#include <string>

#include "base/thread.h"

namespace switchyard {

// Connects to the address, and closes, again and again until it is destroyed or nobody listens
// there any more. The first connection may come too early: before the server was told to stop.
class ListenerWaker {
 public:
  // `address`: host:port; its port is not used, `port` is. A host that is no IP address means
  // loopback.
  ListenerWaker(const std::string& address, int port);

 private:
  Thread thread_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_BASE_LISTENER_WAKER_H_
