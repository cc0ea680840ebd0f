#include "server/api/listener.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace switchyard {
namespace {

using testing::HasSubstr;

UniqueFd Connect(int port) {
  UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  EXPECT_EQ(::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  return fd;
}

// Whether the other side has closed it; waits for that or for a byte.
bool IsClosed(const UniqueFd& fd) {
  char byte;
  return ::recv(fd.get(), &byte, 1, 0) <= 0;
}

// Keeps what it is given, after a byte of greeting.
class Taker {
 public:
  explicit Taker(Listener& listener) {
    listener.Start([this](int, UniqueFd connection) {
      EXPECT_EQ(::send(connection.get(), "!", 1, 0), 1);
      absl::MutexLock lock(&mu_);
      taken_.push_back(std::move(connection));
    });
  }
  void DropAll() {
    absl::MutexLock lock(&mu_);
    taken_.clear();
  }

 private:
  absl::Mutex mu_;
  std::vector<UniqueFd> taken_ ABSL_GUARDED_BY(mu_);
};

TEST(ListenerTest, AFreePortIsChosenAndHeldAlone) {
  const auto listener = Listener::Open("127.0.0.1:0");
  ASSERT_THAT(listener, IsOk());
  const std::string address = absl::StrCat("127.0.0.1:", (*listener)->port());
  EXPECT_THAT(Listener::Open(address),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr(address)));
}

TEST(ListenerTest, AnAddressThatIsNoneIsRefused) {
  for (const char* address : {"7070", "127.0.0.1", ":7070", "127.0.0.1:70700", "127.0.0.1:x"}) {
    EXPECT_THAT(Listener::Open(address), StatusIs(absl::StatusCode::kInvalidArgument)) << address;
  }
}

// gRPC's own listener would accept nothing any more after this.
TEST(ListenerTest, ConnectionsBeyondTheReserveAreClosedAndLaterOnesTaken) {
  auto listener = Listener::Open("127.0.0.1:0");
  ASSERT_THAT(listener, IsOk());
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  {
    Taker taker(**listener);
    std::vector<UniqueFd> clients;
    // Room for some connections below the reserve.
    const UniqueFd probe(::open("/dev/null", O_RDONLY | O_CLOEXEC));
    const rlimit tight{static_cast<rlim_t>(probe.get() + 1 + 32), before.rlim_max};
    ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &tight), 0);
    int closed = 0;
    // Each pair takes two numbers of this process, the client's end one of them.
    for (int i = 0; i < 16 && closed == 0; ++i) {
      clients.push_back(Connect((*listener)->port()));
      if (IsClosed(clients.back())) ++closed;
    }
    EXPECT_EQ(closed, 1);
    // What the reserve is for.
    EXPECT_TRUE(UniqueFd(::open("/dev/null", O_RDONLY | O_CLOEXEC)).valid());
    taker.DropAll();
    clients.clear();
    EXPECT_FALSE(IsClosed(Connect((*listener)->port())));
    (*listener)->Stop();
  }
  EXPECT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
}

}  // namespace
}  // namespace switchyard
