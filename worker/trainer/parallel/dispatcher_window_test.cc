// PushDispatcher between processes, one per GPU, over windows of NCCL. The test itself never
// touches CUDA, so that it can fork.
#include <ATen/ATen.h>
#include <arpa/inet.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <csignal>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/fd.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/trainer/parallel/c10d_comm.h"
#include "worker/trainer/parallel/comm_error.h"
#include "worker/trainer/parallel/dispatcher_choice.h"
#include "worker/trainer/parallel/push_dispatcher_test_support.h"

namespace switchyard {
namespace {

using testing::HasSubstr;

int NumGpus() {
  std::error_code error;
  int gpus = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/dev", error)) {
    const std::string name = entry.path().filename();
    if (name.starts_with("nvidia") && name.size() > 6 && std::isdigit(name[6])) ++gpus;
  }
  return gpus;
}

// Nobody listens there now.
int FreePort() {
  const UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  EXPECT_EQ(bind(fd.get(), reinterpret_cast<sockaddr*>(&address), size), 0);
  EXPECT_EQ(getsockname(fd.get(), reinterpret_cast<sockaddr*>(&address), &size), 0);
  return ntohs(address.sin_port);
}

// How one process ended.
struct Ending {
  int status = 0;    // waitpid's; 0: without a failed expectation
  std::string said;  // what its body returned, or the exception
};

// Runs body(rank, device, mesh, ep) in one process per rank. A body's text comes back.
using Body = std::function<std::string(int rank, at::Device device, const Mesh& mesh, Comm& ep)>;
std::vector<Ending> RunProcesses(int ranks, const Body& body) {
  const int port = FreePort();
  std::vector<pid_t> pids;
  std::vector<UniqueFd> pipes;
  for (int rank = 0; rank < ranks; ++rank) {
    int ends[2];
    EXPECT_EQ(pipe(ends), 0);
    std::fflush(nullptr);
    const pid_t pid = fork();
    if (pid == 0) {
      std::string said;
      int code = 1;
      try {
        const at::Device device(at::kCUDA, static_cast<c10::DeviceIndex>(rank));
        c10::cuda::set_device(device.index());
        const Mesh mesh = MakeMesh(ranks, rank, 1, ranks, 0).value();
        C10dOptions options;
        options.master_port = port;
        options.timeout = absl::Seconds(60);
        options.cuda = true;
        const Comms comms = MakeC10dComms(mesh, options);
        said = body(rank, device, mesh, comms[Axis::kEp]);
        code = testing::Test::HasFailure() ? 1 : 0;
      } catch (const std::exception& e) {
        said = e.what();
      }
      if (write(ends[1], said.data(), said.size()) < 0) code = 2;
      std::fflush(nullptr);
      _exit(code);  // without the destructors of process groups that have lost a member
    }
    close(ends[1]);
    pids.push_back(pid);
    pipes.emplace_back(ends[0]);
  }
  std::vector<Ending> endings(ranks);
  for (int rank = 0; rank < ranks; ++rank) {
    char text[4096];
    for (ssize_t n = 0; (n = read(pipes[rank].get(), text, sizeof(text))) > 0;) {
      endings[rank].said.append(text, n);
    }
    EXPECT_EQ(waitpid(pids[rank], &endings[rank].status, 0), pids[rank]);
  }
  return endings;
}

class DispatcherWindowTest : public testing::Test {
 protected:
  void SetUp() override {
    ranks_ = std::min(NumGpus(), 8);
    if (ranks_ < 2) GTEST_SKIP() << "no GPU pair";
    while (16 % ranks_ != 0) --ranks_;
  }
  int ranks_ = 0;
};

DispatcherNeeds Needs(const PushOptions& options, at::Device device) {
  DispatcherNeeds needs;
  needs.device = device;
  needs.dtype = at::kBFloat16;
  needs.num_experts = options.num_experts;
  needs.top_k = options.top_k;
  needs.hidden = options.hidden;
  needs.max_tokens = options.max_tokens;
  needs.timeout = options.timeout;
  return needs;
}

TEST_F(DispatcherWindowTest, ProcessesPushThroughWindowsWhatCollectivesSend) {
  const std::vector<Ending> endings =
      RunProcesses(ranks_, [this](int rank, at::Device device, const Mesh& mesh, Comm& ep) {
        PushOptions options = SmallPush(ranks_, rank);
        options.hidden = 2048;
        options.max_tokens = 2048;
        const DispatcherChoice choice = ChooseDispatcher(ep, mesh, Needs(options, device));
        EXPECT_EQ(choice.kind, "push");
        CollectiveDispatcher collective(ep, options.num_experts);
        for (int round = 0; round < 12; ++round) {
          const int64_t tokens =
              round % 4 == 0 ? options.max_tokens : 500 * (round % 4) + 37 * rank;
          ExpectSameBits(*choice.dispatcher, collective,
                         DrawLayer(options, tokens, 10 * round + rank, device),
                         absl::StrCat("rank ", rank, " round ", round));
        }
        EXPECT_FALSE(choice.dispatcher->MustRepeat());
        ep.Barrier();
        return choice.reason;
      });
  for (const Ending& ending : endings) {
    EXPECT_EQ(ending.status, 0) << ending.said;
    EXPECT_THAT(ending.said, HasSubstr("a window of NCCL 2.28.9"));
  }
}

TEST_F(DispatcherWindowTest, AKilledRankIsNamedByTheOthersWithinTenSeconds) {
  const std::vector<Ending> endings =
      RunProcesses(ranks_, [this](int rank, at::Device device, const Mesh& mesh, Comm& ep) {
        PushOptions options = SmallPush(ranks_, rank);
        options.timeout = absl::Seconds(3);
        DispatcherChoice choice = ChooseDispatcher(ep, mesh, Needs(options, device));
        const LayerInput in = DrawLayer(options, 200, rank, device);
        std::string said = "nothing happened";
        const absl::Time start = absl::Now();
        try {
          for (int layer = 0; layer < 4; ++layer) {
            const auto plan = choice.dispatcher->Plan(in.by_expert);
            const at::Tensor rows =
                choice.dispatcher->Dispatch(*plan, in.x_TH, in.weights_TK).rows_NH;
            if (rank == 1 && layer == 2) {
              c10::cuda::getCurrentCUDAStream().synchronize();
              raise(SIGKILL);
            }
            choice.dispatcher->Combine(*plan, rows, {});
          }
          c10::cuda::getCurrentCUDAStream().synchronize();
          choice.dispatcher->CheckHealth();
        } catch (const CommError& e) {
          said = e.what();
        }
        choice.dispatcher.reset();  // ends, too, although a rank is gone
        EXPECT_LT(absl::Now() - start, absl::Seconds(10));
        return said;
      });
  for (int rank = 0; rank < ranks_; ++rank) {
    if (rank == 1) {
      EXPECT_TRUE(WIFSIGNALED(endings[rank].status));
      continue;
    }
    EXPECT_EQ(endings[rank].status, 0);
    EXPECT_THAT(endings[rank].said, HasSubstr("sums to combine in MoE layer 2"));
  }
  EXPECT_THAT(endings[0].said,
              testing::AnyOf(HasSubstr("waited 3s for rank 1"), HasSubstr("has given up")));
}

TEST_F(DispatcherWindowTest, ARankThatThrowsLetsTheOthersEndAtOnce) {
  const std::vector<Ending> endings =
      RunProcesses(ranks_, [this](int rank, at::Device device, const Mesh& mesh, Comm& ep) {
        PushOptions options = SmallPush(ranks_, rank);
        options.timeout = absl::Seconds(60);
        const LayerInput in = DrawLayer(options, 200, rank, device);
        std::string said = "nothing happened";
        const absl::Time start = absl::Now();
        try {
          const DispatcherChoice choice = ChooseDispatcher(ep, mesh, Needs(options, device));
          const auto plan = choice.dispatcher->Plan(in.by_expert);
          const at::Tensor rows =
              choice.dispatcher->Dispatch(*plan, in.x_TH, in.weights_TK).rows_NH;
          if (rank == 1) throw std::runtime_error("out of something");
          choice.dispatcher->Combine(*plan, rows, {});
          c10::cuda::getCurrentCUDAStream().synchronize();
          choice.dispatcher->CheckHealth();
        } catch (const std::runtime_error& e) {
          said = e.what();
        }
        EXPECT_LT(absl::Now() - start, absl::Seconds(20));
        return said;
      });
  for (int rank = 0; rank < ranks_; ++rank) {
    EXPECT_EQ(endings[rank].status, 0);
    EXPECT_THAT(endings[rank].said, HasSubstr(rank == 1 ? "out of something" : "has given up"));
  }
}

}  // namespace
}  // namespace switchyard
