#include "server/api/listener.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/log.h"

namespace switchyard {
namespace {

constexpr int kOne = 1;
// Before accept() is tried again when there was no descriptor.
constexpr absl::Duration kNoDescriptorWait = absl::Milliseconds(100);

int PortOf(int socket) {
  sockaddr_storage bound{};
  socklen_t size = sizeof(bound);
  if (::getsockname(socket, reinterpret_cast<sockaddr*>(&bound), &size) != 0) return 0;
  return ntohs(bound.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6*>(&bound)->sin6_port
                                           : reinterpret_cast<sockaddr_in*>(&bound)->sin_port);
}

void SetPort(sockaddr* address, int port) {
  if (address->sa_family == AF_INET6) {
    reinterpret_cast<sockaddr_in6*>(address)->sin6_port = htons(static_cast<uint16_t>(port));
  } else {
    reinterpret_cast<sockaddr_in*>(address)->sin_port = htons(static_cast<uint16_t>(port));
  }
}

// An invalid descriptor: `*error` is the errno.
UniqueFd BindOne(const addrinfo& info, int* error) {
  UniqueFd fd(::socket(info.ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  // Without SO_REUSEPORT: a second daemon must not share the port.
  if (fd.valid()) {
    ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &kOne, sizeof(kOne));
    ::setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &kOne,
                 sizeof(kOne));  // connections inherit it
  }
  if (!fd.valid() || ::bind(fd.get(), info.ai_addr, info.ai_addrlen) != 0 ||
      ::listen(fd.get(), SOMAXCONN) != 0) {
    *error = errno;
    fd.Reset();
  }
  return fd;
}

}  // namespace

int64_t Listener::ReservedDescriptors(int64_t limit) {
  return std::clamp<int64_t>(limit / 4, 8, 256);
}

absl::StatusOr<std::unique_ptr<Listener>> Listener::Open(const std::string& address) {
  const size_t colon = address.rfind(':');
  std::string host = address.substr(0, colon == std::string::npos ? 0 : colon);
  const std::string port = address.substr(colon == std::string::npos ? 0 : colon + 1);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  }
  int number = 0;
  if (host.empty() || !absl::SimpleAtoi(port, &number) || number < 0 || number > 65535) {
    return absl::InvalidArgumentError(absl::StrCat("listen on '", address, "': want HOST:PORT"));
  }
  addrinfo hints{};
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (const int error = ::getaddrinfo(host.c_str(), port.c_str(), &hints, &found); error != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("listen on ", address, ": ", ::gai_strerror(error)));
  }
  const absl::Cleanup free_found = [found] { ::freeaddrinfo(found); };
  std::unique_ptr<Listener> listener(new Listener());
  listener->wake_.Reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  int error = EADDRNOTAVAIL;
  for (const addrinfo* info = found; info != nullptr; info = info->ai_next) {
    if (info->ai_family != AF_INET && info->ai_family != AF_INET6) continue;
    if (listener->port_ != 0) SetPort(info->ai_addr, listener->port_);
    UniqueFd socket = BindOne(*info, &error);
    if (socket.valid()) {
      listener->port_ = PortOf(socket.get());
      listener->sockets_.push_back(std::move(socket));
    } else if (error == EADDRINUSE) {
      listener->sockets_.clear();
      break;
    }  // else: a machine without IPv6 still names ::1
  }
  if (listener->sockets_.empty() || !listener->wake_.valid()) {
    return absl::UnavailableError(absl::StrCat("listen on ", address, ": ", ::strerror(error)));
  }
  return listener;
}

void Listener::Start(std::function<void(int, UniqueFd)> take) {
  take_ = std::move(take);
  thread_ = Thread("accept", [this](const StopToken& stop) { Loop(stop); });
}

void Listener::Stop() {
  thread_.RequestStop();
  if (wake_.valid()) ::eventfd_write(wake_.get(), 1);
  thread_.StopAndJoin();
}

void Listener::Loop(const StopToken& stop) {
  std::vector<pollfd> polled{{wake_.get(), POLLIN, 0}};
  for (const UniqueFd& socket : sockets_) polled.push_back({socket.get(), POLLIN, 0});
  while (!stop.StopRequested()) {
    if (::poll(polled.data(), polled.size(), -1) < 0) continue;
    for (size_t i = 1; i < polled.size(); ++i) {
      if (polled[i].revents == 0 || stop.StopRequested()) continue;
      if (!AcceptFrom(polled[i].fd)) stop.WaitForStop(kNoDescriptorWait);
    }
  }
}

bool Listener::AcceptFrom(int listener) {
  UniqueFd connection(::accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
  if (!connection.valid()) {
    const bool out = errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM;
    if (out && refused_++ == 0) {
      SY_LOG(ERROR) << "no connection is accepted until descriptors are free: "
                    << ::strerror(errno);
    }
    return !out;  // others: the client is gone again
  }
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  const auto most = static_cast<int64_t>(std::min<rlim_t>(limit.rlim_cur, INT32_MAX));
  // The kernel gives the lowest free number: this high means that nearly all are taken.
  if (connection.get() >= most - ReservedDescriptors(most)) {
    if (refused_++ == 0) {
      SY_LOG(ERROR) << "connections are refused: " << connection.get()
                    << " files are open, the limit is " << most
                    << "; raise it (LimitNOFILE, ulimit -n) if the clients are wanted";
    }
    return true;
  }
  if (refused_ > 0) {
    SY_LOG(INFO) << "connections are accepted again refused=" << std::exchange(refused_, 0);
  }
  take_(listener, std::move(connection));
  return true;
}

void RaiseDescriptorLimit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= limit.rlim_max) return;
  limit.rlim_cur = limit.rlim_max;
  if (::setrlimit(RLIMIT_NOFILE, &limit) != 0) {
    SY_LOG(WARNING) << "raise the limit of open files to " << limit.rlim_max << ": "
                    << ::strerror(errno);
  }
}

}  // namespace switchyard
