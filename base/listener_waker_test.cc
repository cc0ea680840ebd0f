#include "base/listener_waker.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include "base/fd.h"
#include "gtest/gtest.h"

namespace switchyard {
namespace {

TEST(ListenerWakerTest, KeepsConnectingAsLongAsSomebodyAccepts) {
  const UniqueFd listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  ASSERT_EQ(::bind(listener.get(), reinterpret_cast<sockaddr*>(&address), size), 0);
  ASSERT_EQ(::listen(listener.get(), 1), 0);
  ASSERT_EQ(::getsockname(listener.get(), reinterpret_cast<sockaddr*>(&address), &size), 0);

  const ListenerWaker waker("0.0.0.0:0", ntohs(address.sin_port));
  for (int i = 0; i < 3; ++i) {
    const UniqueFd connection(::accept(listener.get(), nullptr, nullptr));
    EXPECT_TRUE(connection.valid());
  }
}

}  // namespace
}  // namespace switchyard
