// Both transports against plain loops, and against each other bit for bit.
#include "worker/trainer/parallel/comm.h"

#include <ATen/ATen.h>
#include <arpa/inet.h>
#include <sys/socket.h>

#include <functional>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "base/fd.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/trainer/parallel/c10d_comm.h"
#include "worker/trainer/parallel/comm_error.h"
#include "worker/trainer/parallel/in_process_comm.h"

namespace switchyard {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::ThrowsMessage;

constexpr absl::Duration kTimeout = absl::Seconds(30);

int FreePort() {
  UniqueFd fd(socket(AF_INET, SOCK_STREAM, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  EXPECT_EQ(bind(fd.get(), reinterpret_cast<sockaddr*>(&address), size), 0);
  EXPECT_EQ(getsockname(fd.get(), reinterpret_cast<sockaddr*>(&address), &size), 0);
  return ntohs(address.sin_port);
}

enum class Transport { kInProcess, kGloo };

// Runs `body` on ranks that are threads; with kGloo they talk through sockets all the same.
void RunRanks(Transport transport, int world, absl::Duration timeout,
              const std::function<void(Comm& comm)>& body) {
  C10dOptions options;
  options.timeout = timeout;
  if (transport == Transport::kGloo) options.master_port = FreePort();
  RunInProcess(world, timeout, [&](int rank, InProcessWorld& in_process) {
    const Mesh mesh = MakeMesh(world, rank, 1, 1, 0).value();
    const Comms comms =
        transport == Transport::kGloo ? MakeC10dComms(mesh, options) : in_process.MakeComms(mesh);
    body(comms[Axis::kWorld]);
  });
}

at::Tensor Values(int rank, int64_t numel, at::ScalarType type) {
  at::Generator generator = at::detail::createCPUGenerator(1000 + rank);
  return at::randn({numel}, generator, at::kFloat).to(type);
}

at::Tensor RankOrderSum(int world, int64_t numel, at::ScalarType type) {
  const bool half = type == at::kBFloat16;
  at::Tensor sum = Values(0, numel, type).to(half ? at::kFloat : type);
  for (int r = 1; r < world; ++r) sum = sum + Values(r, numel, type);
  return sum.to(type);
}

class CommTest : public testing::TestWithParam<Transport> {};

INSTANTIATE_TEST_SUITE_P(Transports, CommTest,
                         testing::Values(Transport::kInProcess, Transport::kGloo),
                         [](const testing::TestParamInfo<Transport>& info) {
                           return info.param == Transport::kGloo ? "Gloo" : "InProcess";
                         });

TEST_P(CommTest, AllReduceSumAddsInRankOrder) {
  RunRanks(GetParam(), 3, kTimeout, [](Comm& comm) {
    for (int64_t numel : {0, 1, 100, 4097, 10000}) {
      for (at::ScalarType type : {at::kFloat, at::kDouble, at::kBFloat16}) {
        at::Tensor tensor = Values(comm.rank(), numel, type);
        comm.AllReduceSum(tensor);
        ASSERT_TRUE(at::equal(tensor, RankOrderSum(3, numel, type))) << numel << " " << type;
      }
    }
  });
}

TEST_P(CommTest, AllReduceMaxTakesTheLargest) {
  RunRanks(GetParam(), 3, kTimeout, [](Comm& comm) {
    at::Tensor tensor = at::tensor({comm.rank(), 5 - comm.rank(), -1}, at::kLong);
    comm.AllReduceMax(tensor);
    ASSERT_TRUE(at::equal(tensor, at::tensor({2, 5, -1}, at::kLong)));
  });
}

TEST_P(CommTest, AllGatherIsInRankOrder) {
  RunRanks(GetParam(), 3, kTimeout, [](Comm& comm) {
    at::Tensor out = at::empty({6}, at::kInt);
    comm.AllGather(out, at::tensor({comm.rank(), 10 * comm.rank()}, at::kInt));
    ASSERT_TRUE(at::equal(out, at::tensor({0, 0, 1, 10, 2, 20}, at::kInt)));
  });
}

TEST_P(CommTest, ReduceScatterThenAllGatherIsAllReduce) {
  RunRanks(GetParam(), 3, kTimeout, [](Comm& comm) {
    const at::Tensor in = Values(comm.rank(), 3 * 2000, at::kFloat);
    at::Tensor part = at::empty({2000}, at::kFloat);
    comm.ReduceScatterSum(part, in);
    at::Tensor whole = at::empty({3 * 2000}, at::kFloat);
    comm.AllGather(whole, part);
    ASSERT_TRUE(at::equal(whole, RankOrderSum(3, 3 * 2000, at::kFloat)));
  });
}

TEST_P(CommTest, AllToAllMovesRaggedRowsAndNothing) {
  RunRanks(GetParam(), 3, kTimeout, [](Comm& comm) {
    // Rank s sends (s * r) rows to rank r, each row {s, r, index}: rank 0 neither sends nor
    // receives.
    const int me = comm.rank();
    std::vector<int64_t> send, recv;
    std::vector<float> rows, expected;
    for (int r = 0; r < 3; ++r) {
      send.push_back(me * r);
      recv.push_back(r * me);
      for (int i = 0; i < me * r; ++i) {
        rows.insert(rows.end(), {float(me), float(r), float(i)});
        expected.insert(expected.end(), {float(r), float(me), float(i)});
      }
    }
    const int64_t total = std::accumulate(recv.begin(), recv.end(), int64_t{0});
    const at::Tensor in = at::tensor(rows).view({-1, 3});
    at::Tensor out = at::full({total, 3}, -1.0f);
    comm.AllToAll(out, in, recv, send);
    ASSERT_TRUE(at::equal(out, at::tensor(expected).view({-1, 3})));
  });
}

TEST_P(CommTest, BroadcastCopiesTheRootsBits) {
  RunRanks(GetParam(), 3, kTimeout, [](Comm& comm) {
    at::Tensor tensor = Values(comm.rank(), 33, at::kBFloat16);
    comm.Broadcast(tensor, 2);
    ASSERT_TRUE(at::equal(tensor, Values(2, 33, at::kBFloat16)));
    comm.Barrier();
  });
}

TEST_P(CommTest, ALostPeerIsAnErrorNamingCollectiveGroupAndRank) {
  EXPECT_THAT(
      [&] {
        RunRanks(GetParam(), 2, absl::Seconds(1), [](Comm& comm) {
          if (comm.rank() == 1) return;  // leaves; its sockets close
          at::Tensor tensor = at::ones({3});
          comm.AllReduceSum(tensor);
        });
      },
      ThrowsMessage<CommError>(AllOf(HasSubstr("all_reduce_sum over ranks 0,1 on rank 0 of 2"),
                                     HasSubstr("timed out"))));
}

TEST(InProcessCommTest, AnExceptionOnOneRankEndsTheOthersAtOnce) {
  EXPECT_THAT(
      [] {
        RunInProcess(2, absl::Hours(1), [](int rank, InProcessWorld& world) {
          const Comms comms = world.MakeComms(MakeMesh(2, rank, 1, 1, 0).value());
          TORCH_CHECK(rank == 0, "rank 1 is out of paper");
          comms[Axis::kWorld].Barrier();
        });
      },
      ThrowsMessage<c10::Error>(HasSubstr("rank 1 is out of paper")));
}

TEST(CommsTest, AxesWithTheSameRanksShareOneGroup) {
  RunInProcess(4, kTimeout, [](int rank, InProcessWorld& world) {
    const Comms comms = world.MakeComms(MakeMesh(4, rank, 1, 2, 0).value());
    ASSERT_EQ(&comms[Axis::kWorld], &comms[Axis::kDpShard]);
    ASSERT_NE(&comms[Axis::kEp], &comms[Axis::kExpertShard]);
    ASSERT_EQ(comms[Axis::kEp].size(), 2);
    ASSERT_EQ(comms[Axis::kEp].rank(), rank % 2);
    ASSERT_EQ(comms[Axis::kExpertShard].rank(), rank / 2);
    ASSERT_EQ(comms[Axis::kDpReplicate].size(), 1);
  });
}

}  // namespace
}  // namespace switchyard
