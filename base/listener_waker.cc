#include "base/listener_waker.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cstdint>

#include "base/fd.h"

namespace switchyard {
namespace {

constexpr absl::Duration kInterval = absl::Milliseconds(10);

struct Peer {
  sockaddr_storage address = {};
  socklen_t size = 0;
};

// The wildcard addresses reach this machine too.
Peer ParsePeer(const std::string& address, int port) {
  std::string host = address.substr(0, address.rfind(':'));
  if (host.size() > 2 && host.front() == '[') host = host.substr(1, host.size() - 2);
  Peer peer;
  auto* v6 = reinterpret_cast<sockaddr_in6*>(&peer.address);
  if (::inet_pton(AF_INET6, host.c_str(), &v6->sin6_addr) == 1) {
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons(static_cast<uint16_t>(port));
    peer.size = sizeof(sockaddr_in6);
    return peer;
  }
  auto* v4 = reinterpret_cast<sockaddr_in*>(&peer.address);
  if (::inet_pton(AF_INET, host.c_str(), &v4->sin_addr) != 1) {
    v4->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  }
  v4->sin_family = AF_INET;
  v4->sin_port = htons(static_cast<uint16_t>(port));
  peer.size = sizeof(sockaddr_in);
  return peer;
}

// False: nobody listens.
bool Connect(const Peer& peer) {
  const UniqueFd fd(
      ::socket(peer.address.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) return false;
  return ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&peer.address), peer.size) == 0 ||
         errno == EINPROGRESS;
}

}  // namespace

ListenerWaker::ListenerWaker(const std::string& address, int port) {
  thread_ = Thread("listener-waker", [peer = ParsePeer(address, port)](const StopToken& stop) {
    while (Connect(peer) && !stop.WaitForStop(kInterval)) {
    }
  });
}

}  // namespace switchyard
