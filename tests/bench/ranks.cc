#include "tests/bench/ranks.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/fd.h"
#include "worker/trainer/checkpoint/or_throw.h"
#include "worker/trainer/device.h"
#include "worker/trainer/parallel/c10d_comm.h"
#if defined(SY_CUDA)
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace switchyard::bench {
namespace {

constexpr int kFailed = 1;
constexpr int kThrew = 3;                                   // exit code of a rank whose body threw
constexpr absl::Duration kNoticeLimit = absl::Seconds(10);  // after a rank has been killed

int NumGpus() {
#if defined(SY_CUDA)
  return c10::cuda::device_count();
#else
  return 0;
#endif
}

at::Device DeviceOf(const RanksOptions& options, int rank) {
  if (options.cpu) return at::kCPU;
  const int gpus = NumGpus();
  TORCH_CHECK(gpus > 0, "there is no GPU; --device cpu");
  TORCH_CHECK(options.in_process || options.world <= gpus, options.world,
              " ranks need as many GPUs, ", gpus, " are here; --in-process");
  return OpenDevice(absl::StrCat("cuda:", rank % gpus));
}

std::string What(const std::exception& error) {
  const auto* c10_error = dynamic_cast<const c10::Error*>(&error);
  return c10_error != nullptr ? c10_error->what_without_backtrace() : error.what();
}

// A port that was free a moment ago.
int FreePort() {
  UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  auto* any = reinterpret_cast<sockaddr*>(&address);
  if (fd.get() < 0 || bind(fd.get(), any, size) != 0 || getsockname(fd.get(), any, &size) != 0) {
    throw std::runtime_error("no free port for the ranks to meet at");
  }
  return ntohs(address.sin_port);
}

Mesh MeshOf(const RanksOptions& options, int rank) {
  return OrThrow(MakeMesh(options.world, rank, 1, options.world, options.num_experts));
}

int RunThreads(const RanksOptions& options, const std::function<bool(const Rank&)>& body) {
  // Ranks on one GPU wait for each other's kernels: none may stand behind another's in a queue.
  setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", /*replace=*/0);
  std::atomic<bool> good = true;
  RunInProcess(options.world, options.timeout, [&](int rank, InProcessWorld& world) {
    const c10::NoGradGuard no_grad;
    const Mesh mesh = MeshOf(options, rank);
    const at::Device device = DeviceOf(options, rank);
#if defined(SY_CUDA)
    std::optional<c10::cuda::CUDAStreamGuard> own_stream;
    if (device.is_cuda()) own_stream.emplace(c10::cuda::getStreamFromPool(false, device.index()));
#endif
    const Comms comms = world.MakeComms(mesh);
    if (!body(Rank{mesh, device, comms, &world})) good = false;
  });
  return good ? 0 : kFailed;
}

[[noreturn]] void Leave(int code) {
  std::fflush(nullptr);
  _exit(code);
}

// Does not return when the body throws: the destructors of process groups that have lost a peer may
// wait for it.
int RunRankProcess(const RanksOptions& options, int port, int rank,
                   const std::function<bool(const Rank&)>& body) {
  const auto blame = [rank](const std::exception& error) {
    std::fprintf(stderr, "switchyard-bench: rank %d: %s\n", rank, What(error).c_str());
    Leave(kThrew);
  };
  try {
    const c10::NoGradGuard no_grad;
    const Mesh mesh = MeshOf(options, rank);
    const at::Device device = DeviceOf(options, rank);
    C10dOptions meeting;
    meeting.master_port = port;
    meeting.timeout = options.timeout;
    meeting.gang = "switchyard-bench";
    meeting.cuda = !options.cpu;
    const Comms comms = MakeC10dComms(mesh, meeting);
    try {
      const bool good = body(Rank{mesh, device, comms, nullptr});
      comms[Axis::kWorld].Barrier();  // nobody leaves while another still needs it
      return good ? 0 : kFailed;
    } catch (const std::exception& error) {
      blame(error);
    }
  } catch (const std::exception& error) {
    blame(error);
  }
  return kThrew;
}

// One child per rank; the children are ended when the parent dies.
std::vector<pid_t> ForkRanks(const RanksOptions& options,
                             const std::function<bool(const Rank&)>& body) {
  const int port = FreePort();
  const pid_t parent = getpid();
  std::fflush(nullptr);
  std::vector<pid_t> ranks;
  for (int rank = 0; rank < options.world; ++rank) {
    const pid_t child = fork();
    if (child < 0) throw std::runtime_error("fork failed");
    if (child == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      Leave(getppid() == parent ? RunRankProcess(options, port, rank, body) : kFailed);
    }
    ranks.push_back(child);
  }
  return ranks;
}

int RunProcesses(const RanksOptions& options, const std::function<bool(const Rank&)>& body) {
  const std::vector<pid_t> ranks = ForkRanks(options, body);
  absl::Duration first_end = absl::InfiniteDuration();
  std::vector<bool> over(ranks.size(), false);
  int code = 0;
  for (size_t left = ranks.size(); left > 0; --left) {
    int status = 0;
    const pid_t ended = wait(&status);
    size_t rank = 0;
    while (rank < ranks.size() && ranks[rank] != ended) ++rank;
    if (rank == ranks.size()) continue;
    over[rank] = true;
    const absl::Duration now = RealClock::Get().Monotonic();
    const absl::Duration after = std::max(now - first_end, absl::ZeroDuration());
    const bool victim = static_cast<int>(rank) == options.kill_rank;
    const int exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    bool expected = exit_code == 0;
    if (victim) {
      expected = WIFSIGNALED(status);
    } else if (options.kill_rank >= 0) {
      expected = exit_code == kThrew && after <= kNoticeLimit;
    }
    if (!expected || options.kill_rank >= 0) {
      std::fprintf(stderr, "switchyard-bench: rank %zu %s %d, %s after the first\n", rank,
                   WIFSIGNALED(status) ? "was ended by signal" : "ended with",
                   WIFSIGNALED(status) ? WTERMSIG(status) : exit_code,
                   absl::FormatDuration(after).c_str());
    }
    if (!expected) {
      code = kFailed;
      for (size_t other = 0; other < ranks.size() && options.kill_rank < 0; ++other) {
        if (!over[other]) kill(ranks[other], SIGTERM);  // the rest would wait for their timeout
      }
    }
    first_end = std::min(first_end, now);
  }
  return code;
}

}  // namespace

double Rank::Slowest(double value) const {
  at::Tensor tensor = at::full({1}, value, at::kDouble);
  comms[Axis::kWorld].AllReduceMax(tensor);
  return tensor.item<double>();
}

double Rank::Sum(double value) const {
  at::Tensor tensor = at::full({1}, value, at::kDouble);
  comms[Axis::kWorld].AllReduceSum(tensor);
  return tensor.item<double>();
}

bool Rank::All(bool value) const { return Sum(value ? 0 : 1) == 0; }

int RunRanks(const RanksOptions& options, const std::function<bool(const Rank&)>& body) {
  TORCH_CHECK(options.kill_rank < 0 || !options.in_process,
              "a rank that is a thread cannot be killed");
  return options.in_process ? RunThreads(options, body) : RunProcesses(options, body);
}

}  // namespace switchyard::bench
