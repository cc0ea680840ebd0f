#include "kernels/common/bench.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdlib>
#include <utility>
#include <vector>

#include "kernels/common/testing.h"

namespace switchyard::kernels {
namespace {

constexpr int kWarmUp = 5;
constexpr int kSamples = 50;
constexpr size_t kFlushBytes = size_t{192} << 20;  // several times the 50 MB of L2

}  // namespace

Bench::Bench(const std::string& json_file) {
  if (!json_file.empty() && (json_ = std::fopen(json_file.c_str(), "w")) == nullptr) {
    std::perror(json_file.c_str());
    std::exit(2);
  }
  cudaDeviceProp device;
  CudaOrDie(cudaGetDeviceProperties(&device, 0), "no device");
  int driver = 0, clock_khz = 0;
  cudaDriverGetVersion(&driver);
  cudaDeviceGetAttribute(&clock_khz, cudaDevAttrClockRate, 0);
  CudaOrDie(cudaMalloc(&flush_, kFlushBytes), "cudaMalloc");
  std::printf("# %s, CUDA driver %d.%d, %d SMs, max clock %d MHz\n", device.name, driver / 1000,
              driver % 1000 / 10, device.multiProcessorCount, clock_khz / 1000);
  std::printf("%-26s %-34s %-10s %9s %9s %9s %6s  %s\n", "kernel", "shape", "dtype", "p50 us",
              "p95 us", "rate", "% peak", "baseline");
}

Bench::~Bench() {
  cudaFree(flush_);
  if (json_ != nullptr) std::fclose(json_);
}

void Bench::FlushL2() { CudaOrDie(cudaMemsetAsync(flush_, 1, kFlushBytes, nullptr), "flush"); }

double Bench::Run(const BenchRow& row, const std::function<void()>& launch) {
  std::vector<cudaEvent_t> starts(kSamples), stops(kSamples);
  for (int i = 0; i < kSamples; ++i) {
    CudaOrDie(cudaEventCreate(&starts[i]), "event");
    CudaOrDie(cudaEventCreate(&stops[i]), "event");
  }
  for (int i = 0; i < kWarmUp; ++i) launch();
  for (int i = 0; i < kSamples; ++i) {
    FlushL2();
    CudaOrDie(cudaEventRecord(starts[i]), "event");
    launch();
    CudaOrDie(cudaEventRecord(stops[i]), "event");
  }
  CudaOrDie(cudaDeviceSynchronize(), row.kernel.c_str());
  std::vector<float> us(kSamples);
  for (int i = 0; i < kSamples; ++i) {
    CudaOrDie(cudaEventElapsedTime(&us[i], starts[i], stops[i]), "event");
    us[i] *= 1e3f;
    cudaEventDestroy(starts[i]);
    cudaEventDestroy(stops[i]);
  }
  return Report(row, std::move(us));
}

double Bench::Report(const BenchRow& row, std::vector<float> us) {
  std::sort(us.begin(), us.end());
  const double p50 = us[us.size() / 2], p95 = us[us.size() * 95 / 100];
  const bool compute = row.flops > 0;
  const double rate = (compute ? row.flops : row.bytes) / (p50 * 1e-6);
  const double share = 100 * rate / (compute ? kPeakFlops : kPeakBytes);
  const double times = row.baseline_us > 0 ? row.baseline_us / p50 : 0;
  if (json_ != nullptr) {
    std::fprintf(
        json_,
        "{\"kernel\":\"%s\",\"shape\":\"%s\",\"dtype\":\"%s\",\"p50_us\":%.2f,\"p95_us\":%.2f,"
        "\"%s\":%.4f,\"percent_of_peak\":%.1f,\"baseline\":\"%s\",\"times_baseline\":%.3f}\n",
        row.kernel.c_str(), row.shape.c_str(), row.dtype.c_str(), p50, p95,
        compute ? "tflops" : "tbytes_per_second", rate / 1e12, share, row.baseline.c_str(), times);
  }
  char versus[128] = "";
  if (times > 0) std::snprintf(versus, sizeof(versus), "%.2f x %s", times, row.baseline.c_str());
  std::printf("%-26s %-34s %-10s %9.1f %9.1f %6.*f %s %6.1f  %s\n", row.kernel.c_str(),
              row.shape.c_str(), row.dtype.c_str(), p50, p95, compute ? 0 : 2, rate / 1e12,
              compute ? "TF" : "TB", share, versus);
  std::fflush(stdout);
  return p50;
}

void Bench::Check(const std::string& what, const std::string& difference) {
  if (difference.empty()) return;
  failed_ = true;
  std::printf("WRONG %s: %s\n", what.c_str(), difference.c_str());
}

}  // namespace switchyard::kernels
