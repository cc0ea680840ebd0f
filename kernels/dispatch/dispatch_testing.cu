#include "kernels/dispatch/dispatch_testing.h"
#include "kernels/dispatch/layout.h"

namespace switchyard::kernels {
namespace {

__global__ void DelayKernel(uint64_t nanoseconds) {
  uint64_t start, now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(start));
  do {
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  } while (now - start < nanoseconds);
}

__device__ float PatternX(const PatternParams& p, uint32_t tick, int64_t i) {
  const auto token = static_cast<uint32_t>(i / p.hidden);
  const auto column = static_cast<uint32_t>(i % p.hidden);
  return static_cast<float>((token * 5 + column + 3 * tick + 7 * p.rank) % 16);
}
__device__ float PatternWeight(const PatternParams& p, uint32_t tick, int64_t copy) {
  return static_cast<float>((copy + 11 * tick + 1000 * p.rank) % (1 << 20));
}

__global__ void FillKernel(const PatternParams p) {
  const uint32_t tick = *p.tick;
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  const int64_t first = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  for (int64_t i = first; i < p.tokens * p.hidden; i += step) p.x[i] = ToBf16(PatternX(p, tick, i));
  for (int64_t i = first; i < p.tokens * p.top_k; i += step) {
    p.weights[i] = PatternWeight(p, tick, i);
  }
}
__global__ void TickKernel(uint32_t* tick) { ++*tick; }

__global__ void CheckKernel(const PatternParams p, const Bf16* out, const float* copy_sums,
                            uint32_t* errors) {
  const uint32_t tick = *p.tick;
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  const int64_t first = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  for (int64_t i = first; i < p.tokens * p.hidden; i += step) {
    if (!(ToFloat(out[i]) == static_cast<float>(p.top_k) * PatternX(p, tick, i))) {
      atomicAdd(errors, 1);
    }
  }
  for (int64_t i = first; i < p.tokens * p.top_k; i += step) {
    if (!(copy_sums[i] == PatternWeight(p, tick, i))) atomicAdd(errors, 1);
  }
}

void LoadTestKernels() {
  cudaFuncAttributes attributes;
  for (const void* kernel :
       {reinterpret_cast<const void*>(&DelayKernel), reinterpret_cast<const void*>(&FillKernel),
        reinterpret_cast<const void*>(&TickKernel), reinterpret_cast<const void*>(&CheckKernel)}) {
    CudaOrDie(cudaFuncGetAttributes(&attributes, kernel), "load");
  }
}

int DrawExpert(const DispatchShape& shape, int k, Spread spread, Random& random) {
  const auto below = [&](int count) { return static_cast<int>(random() % count); };
  switch (spread) {
    case Spread::kUniform:
      return below(shape.experts);
    case Spread::kOneExpert:
      return k == 0 ? 0 : below(shape.experts);
    case Spread::kLastRankUnused:
      return below(shape.experts - shape.experts / shape.ranks);
    case Spread::kSkewed: {
      const double u = static_cast<double>(random() >> 11) * 0x1p-53;
      return static_cast<int>(u * u * shape.experts);
    }
  }
  return 0;
}

}  // namespace

InProcessRanks::InProcessRanks(const DispatchShape& shape, uint64_t timeout_ns)
    : ranks_(shape.ranks) {
  CudaOrDie(cudaGetDeviceCount(&num_devices_), "devices");
  num_devices_ = std::min(num_devices_, size());
  for (int device = 0; device < num_devices_; ++device) {
    CudaOrDie(cudaSetDevice(device), "device");
    CudaOrDie(DispatchLoad(), "load");
    LoadTestKernels();
    for (int peer = 0; peer < num_devices_; ++peer) {
      if (peer == device) continue;
      const cudaError_t error = cudaDeviceEnablePeerAccess(peer, 0);
      if (error == cudaErrorPeerAccessAlreadyEnabled) {
        cudaGetLastError();
      } else {
        CudaOrDie(error, "peer access");
      }
    }
  }
  const DispatchArena arena = DispatchArenaLayout(shape);
  for (int r = 0; r < size(); ++r) {
    Use(r);
    Rank& rank = ranks_[r];
    rank.arena = std::make_unique<DeviceArray<uint8_t>>(arena.bytes);
    CudaOrDie(cudaMemset(rank.arena->get(), 0, arena.records), "memset");
    CudaOrDie(cudaHostAlloc(reinterpret_cast<void**>(&rank.error), sizeof(DispatchError),
                            cudaHostAllocMapped | cudaHostAllocPortable),
              "host memory");
    *rank.error = {};
    int least = 0, greatest = 0;
    CudaOrDie(cudaDeviceGetStreamPriorityRange(&least, &greatest), "priorities");
    CudaOrDie(cudaStreamCreateWithPriority(&rank.stream, cudaStreamNonBlocking, least), "stream");
    CudaOrDie(cudaStreamCreateWithPriority(&rank.push_stream, cudaStreamNonBlocking, greatest),
              "stream");
    CudaOrDie(cudaEventCreateWithFlags(&rank.fork, cudaEventDisableTiming), "event");
    CudaOrDie(cudaEventCreateWithFlags(&rank.join, cudaEventDisableTiming), "event");
  }
  for (int r = 0; r < size(); ++r) {
    DispatchGroup& group = ranks_[r].group;
    group.shape = shape;
    group.rank = r;
    for (int peer = 0; peer < size(); ++peer) group.arenas[peer] = ranks_[peer].arena->get();
    group.error = ranks_[r].error;
    group.timeout_ns = timeout_ns;
  }
  Synchronize();
}

InProcessRanks::~InProcessRanks() {
  Synchronize();
  for (Rank& rank : ranks_) {
    cudaEventDestroy(rank.fork);
    cudaEventDestroy(rank.join);
    cudaStreamDestroy(rank.stream);
    cudaStreamDestroy(rank.push_stream);
    cudaFreeHost(rank.error);
  }
}

void InProcessRanks::Use(int rank) const {
  CudaOrDie(cudaSetDevice(rank % num_devices_), "device");
}

void InProcessRanks::Fork(int rank) const {
  CudaOrDie(cudaEventRecord(ranks_[rank].fork, stream(rank)), "fork");
  CudaOrDie(cudaStreamWaitEvent(push_stream(rank), ranks_[rank].fork, 0), "fork");
}

void InProcessRanks::Join(int rank) const {
  CudaOrDie(cudaEventRecord(ranks_[rank].join, push_stream(rank)), "join");
  CudaOrDie(cudaStreamWaitEvent(stream(rank), ranks_[rank].join, 0), "join");
}

void InProcessRanks::Synchronize() const {
  for (int device = 0; device < num_devices_; ++device) {
    CudaOrDie(cudaSetDevice(device), "device");
    CudaOrDie(cudaDeviceSynchronize(), "ranks");
  }
}

void InProcessRanks::StartAtRound(uint32_t round) {
  Synchronize();
  for (int r = 0; r < size(); ++r) {
    const DispatchGroup& group = ranks_[r].group;
    const DispatchArena arena = DispatchArenaLayout(group.shape);
    DispatchState state{};
    for (uint32_t& done : state.rounds) done = round;
    CudaOrDie(cudaMemcpy(group.arenas[r] + arena.state, &state, sizeof(state), cudaMemcpyDefault),
              "state");
    const std::vector<uint64_t> cells(kNumDispatchSignals * group.shape.ranks,
                                      uint64_t{round} << 32);
    CudaOrDie(cudaMemcpy(group.arenas[r] + arena.signals, cells.data(), 8 * cells.size(),
                         cudaMemcpyDefault),
              "signals");
  }
}

Routing RandomRouting(const DispatchShape& shape, int64_t tokens, Spread spread, Random& random) {
  std::vector<int> ids;
  for (int64_t token = 0; token < tokens; ++token) {
    for (int k = 0; k < shape.top_k;) {
      const int expert = DrawExpert(shape, k, spread, random);
      if (std::find(ids.end() - k, ids.end(), expert) != ids.end()) continue;
      ids.push_back(expert);
      ++k;
    }
  }
  Routing routing{tokens, std::vector<int32_t>(ids.size()),
                  std::vector<int32_t>(shape.experts + 1)};
  for (const int id : ids) ++routing.offsets[id + 1];
  for (int e = 0; e < shape.experts; ++e) routing.offsets[e + 1] += routing.offsets[e];
  std::vector<int32_t> next = routing.offsets;
  for (size_t copy = 0; copy < ids.size(); ++copy) routing.row_of[copy] = next[ids[copy]]++;
  return routing;
}

void LaunchDelay(uint64_t nanoseconds, cudaStream_t stream) {
  DelayKernel<<<1, 1, 0, stream>>>(nanoseconds);
  CudaOrDie(cudaGetLastError(), "delay");
}

void LaunchFill(const PatternParams& p, cudaStream_t stream) {
  TickKernel<<<1, 1, 0, stream>>>(p.tick);
  FillKernel<<<4, 256, 0, stream>>>(p);
  CudaOrDie(cudaGetLastError(), "fill");
}

void LaunchCheck(const PatternParams& p, const Bf16* out, const float* copy_sums, uint32_t* errors,
                 cudaStream_t stream) {
  CheckKernel<<<4, 256, 0, stream>>>(p, out, copy_sums, errors);
  CudaOrDie(cudaGetLastError(), "check");
}

}  // namespace switchyard::kernels
