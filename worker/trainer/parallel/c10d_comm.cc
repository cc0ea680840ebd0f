#include "worker/trainer/parallel/c10d_comm.h"

#include <ATen/ATen.h>
#include <arpa/inet.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#if defined(SY_CUDA)
#include <c10/cuda/CUDAFunctions.h>

#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>
#endif
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/fd.h"
#include "worker/trainer/parallel/comm_error.h"
#include "worker/trainer/parallel/rank_order_comm.h"

namespace switchyard {
namespace {

std::chrono::milliseconds Milliseconds(absl::Duration duration) {
  return std::chrono::milliseconds(absl::ToInt64Milliseconds(duration));
}

// The address of the interface that leads to `host`. Connecting a UDP socket sends nothing.
std::string LocalAddressTowards(const std::string& host, int port) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_DGRAM;
  addrinfo* found = nullptr;
  const int rc = getaddrinfo(host.c_str(), absl::StrCat(port).c_str(), &hints, &found);
  if (rc != 0) throw CommError(absl::StrCat("resolve master ", host, ": ", gai_strerror(rc)));
  std::string address, fault = "no address";
  for (addrinfo* info = found; info != nullptr && address.empty(); info = info->ai_next) {
    UniqueFd fd(socket(info->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    sockaddr_storage local{};
    socklen_t size = sizeof(local);
    char text[INET6_ADDRSTRLEN];
    if (fd.get() < 0 || connect(fd.get(), info->ai_addr, info->ai_addrlen) != 0 ||
        getsockname(fd.get(), reinterpret_cast<sockaddr*>(&local), &size) != 0 ||
        getnameinfo(reinterpret_cast<sockaddr*>(&local), size, text, sizeof(text), nullptr, 0,
                    NI_NUMERICHOST) != 0) {
      fault = std::strerror(errno);
      continue;
    }
    address = text;
  }
  freeaddrinfo(found);
  if (address.empty())
    throw CommError(absl::StrCat("find a route to master ", host, ":", port, ": ", fault));
  return address;
}

// Without the stack trace that c10::Error appends.
std::string Reason(const std::exception& e) {
  const auto* error = dynamic_cast<const c10::Error*>(&e);
  return error != nullptr ? error->what_without_backtrace() : e.what();
}

using Backend = c10::intrusive_ptr<c10d::Backend>;

struct Backends {
  Backend cpu;   // null in a group of one
  Backend cuda;  // null without GPUs, too
};

class C10dComm final : public RankOrderComm {
 public:
  C10dComm(std::string name, int rank, int size, Backends backends)
      : RankOrderComm(std::move(name), rank, size), backends_(std::move(backends)) {}

 protected:
  void Exchange(const char* collective, at::Tensor& out, const at::Tensor& in,
                const std::vector<int64_t>& recv_bytes,
                const std::vector<int64_t>& send_bytes) override {
    Run(collective, [&] {
      at::Tensor source = in;
      std::vector<int64_t> recv = recv_bytes, send = send_bytes;
      return For(in).alltoall_base(out, source, recv, send);
    });
  }

  void Gather(const char* collective, at::Tensor& out, const at::Tensor& in) override {
    Run(collective, [&] {
      at::Tensor source = in;
      return For(in)._allgather_base(out, source);
    });
  }

 private:
  template <typename Start>
  void Run(const char* collective, const Start& start) {
    try {
      start()->wait();
    } catch (const std::exception& e) {
      throw CommError(absl::StrCat(Where(collective), ": timed out or lost a peer: ", Reason(e)));
    }
  }

  c10d::Backend& For(const at::Tensor& tensor) const {
    const Backend& backend = tensor.is_cuda() ? backends_.cuda : backends_.cpu;
    TORCH_CHECK(backend != nullptr, "bug: no process group of ", group(), " for ", tensor.device());
    return *backend;
  }

  Backends backends_;
};

Backend MakeNccl(c10::intrusive_ptr<c10d::Store> store, int rank, int size,
                 std::chrono::milliseconds timeout) {
#if defined(SY_CUDA)
  // SMs that a communicator's kernel may hold while it waits for peers (docs/overlap.md).
  constexpr int kMaxCtas = 24;
  auto options = c10d::ProcessGroupNCCL::Options::create(/*is_high_priority_stream=*/true);
  options->timeout = timeout;
  options->config.maxCTAs = kMaxCtas;
  auto backend = c10::make_intrusive<c10d::ProcessGroupNCCL>(std::move(store), rank, size, options);
  // Connecting later, inside the first collective, would block the host in the middle of a step.
  backend->eagerConnectSingleDevice(at::Device(at::kCUDA, c10::cuda::current_device()));
  return backend;
#else
  (void)store, (void)rank, (void)size, (void)timeout;
  throw CommError("this trainer was built without CUDA");
#endif
}

}  // namespace

Comms MakeC10dComms(const Mesh& mesh, const C10dOptions& options) {
  if (mesh.world_size == 1) {
    return Comms(mesh, [](const std::string& name, const std::vector<int>&, int rank, bool) {
      return std::make_shared<C10dComm>(name, rank, 1, Backends{});
    });
  }
  const std::string master = absl::StrCat(options.master_address, ":", options.master_port);
  const std::chrono::milliseconds timeout = Milliseconds(options.timeout);
  c10::intrusive_ptr<c10d::Store> store;
  std::shared_ptr<gloo::transport::Device> device;
  try {
    c10d::TCPStoreOptions store_options;
    store_options.port = static_cast<uint16_t>(options.master_port);
    store_options.isServer = mesh.rank == 0;
    store_options.numWorkers = mesh.world_size;
    store_options.waitWorkers = true;
    store_options.timeout = timeout;
    store = c10::make_intrusive<c10d::PrefixStore>(
        options.gang, c10::make_intrusive<c10d::TCPStore>(options.master_address, store_options));
    device = c10d::ProcessGroupGloo::createDeviceForHostname(
        LocalAddressTowards(options.master_address, options.master_port));
  } catch (const std::exception& e) {
    throw CommError(absl::StrCat("meet the gang at ", master, ": rank ", mesh.rank, " of ",
                                 mesh.world_size, ": ", Reason(e)));
  }
  return Comms(mesh, [&](const std::string& name, const std::vector<int>& ranks, int rank,
                         bool on_host) {
    const int size = static_cast<int>(ranks.size());
    Backends backends;
    if (size > 1) {
      auto group_options = c10d::ProcessGroupGloo::Options::create(timeout);
      group_options->devices.push_back(device);
      try {
        backends.cpu = c10::make_intrusive<c10d::ProcessGroupGloo>(
            c10::make_intrusive<c10d::PrefixStore>(name, store), rank, size, group_options);
        if (options.cuda && !on_host) {
          backends.cuda = MakeNccl(c10::make_intrusive<c10d::PrefixStore>(name + ".nccl", store),
                                   rank, size, timeout);
        }
      } catch (const std::exception& e) {
        throw CommError(
            absl::StrCat("connect ", name, " at ", master, ": rank ", mesh.rank, ": ", Reason(e)));
      }
    }
    return std::make_shared<C10dComm>(name, rank, size, std::move(backends));
  });
}

}  // namespace switchyard
