// nvlink_bench: what two GPUs of one process can push to each other, by the ways that a dispatch
// kernel could use: the figures that its CTA quota and piece size are chosen by.
//   bulk push    warps copy pieces global -> shared (mbarrier) -> the peer's global memory, both by
//                the bulk copy engine; a store counts when its writes are complete, as before a
//                flag
//   plain push   16-byte loads and stores by all threads; plain pull: the loads are the remote ones
//   copy engine  cudaMemcpyPeerAsync
//   cell         {tag, value} cells written by st.release.sys, read by ld.acquire.sys: one way's
//   time
// With one GPU both ends are on it: a dry run whose rates are those of device memory.
// Each way is checked (all pieces at their places) before it is timed.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

namespace {

constexpr int kBuffers = 4;  // launches rotate over them, so that L2 does not hold the target
constexpr int kLaunches = 8;
constexpr int kSamples = 9;
constexpr int kMaxStages = 4;
constexpr int kSharedBytes = 220 * 1024;
// What 8190 tokens of Qwen3-30B-A3B send to one peer; a multiple of every piece size.
constexpr int64_t kPayloadBytes = 8190LL * 4096;
constexpr int kPings = 2000;

void Check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "nvlink_bench: %s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

__device__ uint32_t SharedAddress(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

__device__ void WaitBarrier(uint64_t* barrier, uint32_t parity) {
  uint32_t done = 0;
  while (done == 0) {
    asm volatile(
        "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}\n"
        : "=r"(done)
        : "r"(SharedAddress(barrier)), "r"(parity)
        : "memory");
  }
}

__device__ void LoadPiece(void* shared, const void* global, int bytes, uint64_t* barrier) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(SharedAddress(barrier)),
      "r"(bytes)
      : "memory");
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, "
      "[%3];" ::"r"(SharedAddress(shared)),
      "l"(global), "r"(bytes), "r"(SharedAddress(barrier))
      : "memory");
}

__device__ void StorePiece(void* global, const void* shared, int bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(global),
               "r"(SharedAddress(shared)), "r"(bytes)
               : "memory");
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

// Each warp's first lane moves every (CTAs x warps)th piece through `stages` buffers of its own.
__global__ void BulkPush(const char* from, char* to, int64_t pieces, int piece_bytes, int stages) {
  extern __shared__ __align__(128) char buffers[];
  __shared__ uint64_t barriers[32 * kMaxStages];
  const int warp = threadIdx.x / 32;
  if (threadIdx.x % 32 != 0) return;
  char* mine = buffers + static_cast<int64_t>(warp) * stages * piece_bytes;
  uint64_t* full = barriers + warp * kMaxStages;
  for (int s = 0; s < stages; ++s) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(SharedAddress(full + s)));
  }
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  const int64_t stride = static_cast<int64_t>(gridDim.x) * (blockDim.x / 32);
  const int64_t first = static_cast<int64_t>(blockIdx.x) * (blockDim.x / 32) + warp;
  const int64_t count = first < pieces ? (pieces - first + stride - 1) / stride : 0;
  const auto load = [&](int64_t i) {
    const int s = static_cast<int>(i % stages);
    LoadPiece(mine + s * piece_bytes, from + (first + i * stride) * piece_bytes, piece_bytes,
              full + s);
  };
  for (int64_t i = 0; i < count && i < stages; ++i) load(i);
  for (int64_t i = 0; i < count; ++i) {
    const int s = static_cast<int>(i % stages);
    WaitBarrier(full + s, static_cast<uint32_t>(i / stages) & 1);
    StorePiece(to + (first + i * stride) * piece_bytes, mine + s * piece_bytes, piece_bytes);
    // The store before this one has read its buffer: that is the next to be filled.
    asm volatile("cp.async.bulk.wait_group.read 1;" ::: "memory");
    if (i >= 1 && i - 1 + stages < count) load(i - 1 + stages);
  }
  asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

__global__ void __launch_bounds__(1024) PlainCopy(const uint4* from, uint4* to, int64_t count) {
  constexpr int kUnroll = 8;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < count;
       i += stride * kUnroll) {
    uint4 v[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (i + u * stride < count) v[u] = from[i + u * stride];
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (i + u * stride < count) to[i + u * stride] = v[u];
    }
  }
}

__device__ uint32_t Pattern(int64_t i, uint32_t seed) {
  return static_cast<uint32_t>(i) * 2654435761u + seed;
}

__global__ void Fill(uint32_t* out, int64_t count, uint32_t seed) {
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    out[i] = Pattern(i, seed);
  }
}

__global__ void CountWrong(const uint32_t* in, int64_t count, uint32_t seed, unsigned* wrong) {
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    if (in[i] != Pattern(i, seed)) atomicAdd(wrong, 1u);
  }
}

// One thread an end: `first` writes round n to the other's cell and waits for n in its own.
// Gives up after two seconds, so that a missing peer is an error and no hang.
__global__ void PingPong(uint64_t* mine, uint64_t* theirs, int rounds, bool first, int* failed) {
  uint64_t start;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(start));
  for (uint64_t n = 1; n <= static_cast<uint64_t>(rounds); ++n) {
    if (first) asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(theirs), "l"(n << 32 | n));
    uint64_t seen = 0;
    do {
      asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(seen) : "l"(mine) : "memory");
      uint64_t now;
      asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
      if (now - start > 2000000000ull) {
        *failed = 1;
        return;
      }
    } while ((seen >> 32) != n);
    if (!first) asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(theirs), "l"(n << 32 | n));
  }
}

struct End {
  int device;
  cudaStream_t stream;
  cudaEvent_t start, stop;
  char* source;
  char* target[kBuffers];
  uint64_t* cell;
  unsigned* wrong;
};

class Pair {
 public:
  explicit Pair(int devices) {
    for (int e = 0; e < 2; ++e) {
      End& end = ends_[e];
      end.device = e % devices;
      Check(cudaSetDevice(end.device), "cudaSetDevice");
      if (devices > 1) Check(cudaDeviceEnablePeerAccess(1 - e, 0), "peer access");
      Check(cudaStreamCreateWithFlags(&end.stream, cudaStreamNonBlocking), "stream");
      Check(cudaEventCreate(&end.start), "event");
      Check(cudaEventCreate(&end.stop), "event");
      Check(cudaMalloc(&end.source, kPayloadBytes), "cudaMalloc");
      for (char*& target : end.target) Check(cudaMalloc(&target, kPayloadBytes), "cudaMalloc");
      Check(cudaMalloc(&end.cell, 128), "cudaMalloc");
      Check(cudaMalloc(&end.wrong, sizeof(unsigned)), "cudaMalloc");
      Fill<<<256, 256, 0, end.stream>>>(reinterpret_cast<uint32_t*>(end.source), kPayloadBytes / 4,
                                        Seed(e));
      Check(cudaStreamSynchronize(end.stream), "fill");
      Check(
          cudaFuncSetAttribute(BulkPush, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes),
          "shared memory");
    }
  }

  End& end(int e) { return ends_[e]; }

  using Transfer = std::function<void(End& from, End& to, int buffer)>;

  // `launch` queues one transfer of the payload on the stream of its source, of its target when
  // `pull`. Returns the microseconds of one; checks what arrived first and exits with 1 when it is
  // wrong.
  double Time(bool both, bool pull, const Transfer& launch) {
    pull_ = pull;
    const int active = both ? 2 : 1;
    for (int e = 0; e < active; ++e) {
      End& to = ends_[1 - e];
      Check(cudaSetDevice(to.device), "cudaSetDevice");
      Check(cudaMemset(to.target[0], 0xff, kPayloadBytes), "memset");
      Check(cudaMemset(to.wrong, 0, sizeof(unsigned)), "memset");
      Check(cudaDeviceSynchronize(), "memset");
    }
    for (int e = 0; e < active; ++e) Launch(e, 0, launch);
    for (int e = 0; e < active; ++e) Check(cudaStreamSynchronize(Worker(e).stream), "transfer");
    for (int e = 0; e < active; ++e) CheckArrived(e);
    std::vector<double> samples;
    for (int sample = 0; sample < kSamples; ++sample) {
      for (int e = 0; e < active; ++e) Mark(Worker(e), Worker(e).start);
      for (int n = 0; n < kLaunches; ++n) {
        for (int e = 0; e < active; ++e) Launch(e, n % kBuffers, launch);
      }
      for (int e = 0; e < active; ++e) Mark(Worker(e), Worker(e).stop);
      double worst = 0;
      for (int e = 0; e < active; ++e) {
        float ms = 0;
        Check(cudaEventSynchronize(Worker(e).stop), "transfer");
        Check(cudaEventElapsedTime(&ms, Worker(e).start, Worker(e).stop), "elapsed");
        worst = std::max(worst, ms * 1e3 / kLaunches);
      }
      samples.push_back(worst);
    }
    std::nth_element(samples.begin(), samples.begin() + kSamples / 2, samples.end());
    return samples[kSamples / 2];
  }

 private:
  static uint32_t Seed(int e) { return 17u + 1000003u * e; }

  // The end whose GPU moves what end `from` sends.
  End& Worker(int from) { return ends_[pull_ ? 1 - from : from]; }

  void Launch(int e, int buffer, const Transfer& launch) {
    Check(cudaSetDevice(Worker(e).device), "cudaSetDevice");
    launch(ends_[e], ends_[1 - e], buffer);
    Check(cudaGetLastError(), "launch");
  }

  static void Mark(End& end, cudaEvent_t event) {
    Check(cudaSetDevice(end.device), "cudaSetDevice");
    Check(cudaEventRecord(event, end.stream), "record");
  }

  void CheckArrived(int from) {
    End& to = ends_[1 - from];
    Check(cudaSetDevice(to.device), "cudaSetDevice");
    CountWrong<<<256, 256, 0, to.stream>>>(reinterpret_cast<uint32_t*>(to.target[0]),
                                           kPayloadBytes / 4, Seed(from), to.wrong);
    unsigned wrong = 0;
    Check(cudaMemcpyAsync(&wrong, to.wrong, sizeof(wrong), cudaMemcpyDeviceToHost, to.stream),
          "copy");
    Check(cudaStreamSynchronize(to.stream), "check");
    if (wrong == 0) return;
    std::fprintf(stderr, "nvlink_bench: %u words arrived wrong at end %d\n", wrong, 1 - from);
    std::exit(1);
  }

  End ends_[2];
  bool pull_ = false;
};

void PrintRow(std::FILE* json, const char* way, int piece, int ctas, int warps, double one_way,
              double both_ways) {
  const auto rate = [](double us) { return kPayloadBytes / us / 1e3; };
  std::printf("%-12s %6d %5d %6d %9.1f %7.1f %9.1f %7.1f\n", way, piece, ctas, warps, one_way,
              rate(one_way), both_ways, rate(both_ways));
  std::fflush(stdout);
  if (json == nullptr) return;
  std::fprintf(json,
               "{\"bench\": \"nvlink\", \"way\": \"%s\", \"piece_bytes\": %d, \"ctas\": %d, "
               "\"warps\": %d, \"one_way_gb_s\": %.1f, \"both_ways_gb_s\": %.1f}\n",
               way, piece, ctas, warps, rate(one_way), rate(both_ways));
}

void BenchBulk(Pair& pair, std::FILE* json) {
  for (int piece : {2048, 4096, 7168, 14336}) {
    for (int warps : {4, 8, 16}) {
      const int stages = std::min(kMaxStages, kSharedBytes / (warps * piece));
      if (stages < 2) continue;
      for (int ctas : {2, 4, 8, 12, 16, 20, 24, 32}) {
        const auto launch = [&](End& from, End& to, int buffer) {
          BulkPush<<<ctas, warps * 32, warps * stages * piece, from.stream>>>(
              from.source, to.target[buffer], kPayloadBytes / piece, piece, stages);
        };
        const double one_way = pair.Time(false, false, launch);
        PrintRow(json, "bulk push", piece, ctas, warps, one_way, pair.Time(true, false, launch));
      }
    }
  }
}

void BenchPlain(Pair& pair, std::FILE* json, bool pull) {
  for (int ctas : {8, 16, 24, 32, 64, 132}) {
    const auto launch = [&](End& from, End& to, int buffer) {
      PlainCopy<<<ctas, 1024, 0, pull ? to.stream : from.stream>>>(
          reinterpret_cast<const uint4*>(from.source), reinterpret_cast<uint4*>(to.target[buffer]),
          kPayloadBytes / 16);
    };
    const double one_way = pair.Time(false, pull, launch);
    PrintRow(json, pull ? "plain pull" : "plain push", 16, ctas, 32, one_way,
             pair.Time(true, pull, launch));
  }
}

void BenchCells(Pair& pair, std::FILE* json) {
  int* failed = nullptr;
  Check(cudaMallocManaged(&failed, sizeof(int)), "cudaMallocManaged");
  *failed = 0;
  float ms = 0;
  for (int repeat = 0; repeat < 2; ++repeat) {  // the first loads the kernel
    for (int e = 0; e < 2; ++e) {
      Check(cudaSetDevice(pair.end(e).device), "cudaSetDevice");
      Check(cudaMemset(pair.end(e).cell, 0, 128), "memset");
      Check(cudaDeviceSynchronize(), "memset");
    }
    for (int e : {1, 0}) {
      End& mine = pair.end(e);
      Check(cudaSetDevice(mine.device), "cudaSetDevice");
      if (e == 0) Check(cudaEventRecord(mine.start, mine.stream), "record");
      PingPong<<<1, 1, 0, mine.stream>>>(mine.cell, pair.end(1 - e).cell, kPings, e == 0, failed);
      Check(cudaGetLastError(), "ping-pong");
      if (e == 0) Check(cudaEventRecord(mine.stop, mine.stream), "record");
    }
    for (int e = 0; e < 2; ++e) Check(cudaStreamSynchronize(pair.end(e).stream), "ping-pong");
    Check(cudaEventElapsedTime(&ms, pair.end(0).start, pair.end(0).stop), "elapsed");
  }
  if (*failed != 0) {
    std::fprintf(stderr, "nvlink_bench: a ping was never answered\n");
    std::exit(1);
  }
  const double us = ms * 1e3 / kPings / 2;
  std::printf("cell, one way: %.2f us\n", us);
  if (json != nullptr) std::fprintf(json, "{\"bench\": \"cell\", \"one_way_us\": %.3f}\n", us);
  Check(cudaFree(failed), "cudaFree");
}

}  // namespace

int main(int argc, char** argv) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  std::FILE* json = nullptr;
  if (argc == 3 && std::strcmp(argv[1], "--json") == 0) {
    json = std::fopen(argv[2], "w");
    if (json == nullptr) {
      std::fprintf(stderr, "nvlink_bench: %s cannot be written\n", argv[2]);
      return 1;
    }
  } else if (argc != 1) {
    std::fprintf(stderr, "usage: nvlink_bench [--json FILE]\n");
    return 2;
  }
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::fprintf(stderr, "nvlink_bench: no GPU\n");
    return 1;
  }
  devices = std::min(devices, 2);
  cudaDeviceProp properties;
  Check(cudaGetDeviceProperties(&properties, 0), "properties");
  std::printf("nvlink_bench: %d x %s, payload %lld MB, median of %d samples of %d launches%s\n",
              devices, properties.name, static_cast<long long>(kPayloadBytes / 1000000), kSamples,
              kLaunches, devices == 1 ? "; ONE GPU: device memory, not NVLink" : "");
  Pair pair(devices);
  std::printf("%-12s %6s %5s %6s %9s %7s %9s %7s\n", "way", "piece", "CTAs", "warps", "one us",
              "GB/s", "both us", "GB/s");
  BenchCells(pair, json);
  BenchBulk(pair, json);
  BenchPlain(pair, json, false);
  BenchPlain(pair, json, true);
  const auto copy = [](End& from, End& to, int buffer) {
    Check(cudaMemcpyPeerAsync(to.target[buffer], to.device, from.source, from.device, kPayloadBytes,
                              from.stream),
          "cudaMemcpyPeerAsync");
  };
  const double one_way = pair.Time(false, false, copy);
  PrintRow(json, "copy engine", 0, 0, 0, one_way, pair.Time(true, false, copy));
  if (json != nullptr) std::fclose(json);
  return 0;
}
