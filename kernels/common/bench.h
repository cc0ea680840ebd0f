// Benchmark rows as style.md 9 wants them: p50 and p95 in microseconds over at least 50 samples
// with a cold L2, the rate by the caller's formula, and its share of the device's peak.
#ifndef SWITCHYARD_KERNELS_COMMON_BENCH_H_
#define SWITCHYARD_KERNELS_COMMON_BENCH_H_

#include <cstdint>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

namespace switchyard::kernels {

// Peaks of an H100 SXM: dense bf16, HBM3.
constexpr double kPeakFlops = 989e12;
constexpr double kPeakBytes = 3.35e12;

struct BenchRow {
  std::string kernel;
  std::string shape;
  std::string dtype;
  double flops = 0;        // of one call; 0: memory bound, only `bytes` is rated
  double bytes = 0;        // that one call must move
  double baseline_us = 0;  // a named peer's time for the same work; 0: none
  std::string baseline = {};
};

class Bench {
 public:
  // Prints the header with device and clocks. Rows also go to `json_file`, one object per line;
  // empty: to stdout only.
  explicit Bench(const std::string& json_file);
  ~Bench();
  Bench(const Bench&) = delete;
  Bench& operator=(const Bench&) = delete;

  // Times `launch`, which enqueues one call on the default stream, and prints the row. Returns p50
  // in us.
  double Run(const BenchRow& row, const std::function<void()>& launch);
  // Prints the row of samples taken elsewhere. Returns p50.
  double Report(const BenchRow& row, std::vector<float> samples_us);
  // Prints whether a result agrees with its reference; a failed check makes the program exit
  // with 1.
  void Check(const std::string& what, const std::string& difference);
  int ExitCode() const { return failed_ ? 1 : 0; }

 private:
  void FlushL2();

  std::FILE* json_ = nullptr;
  bool failed_ = false;
  void* flush_ = nullptr;
};

}  // namespace switchyard::kernels

#endif  // SWITCHYARD_KERNELS_COMMON_BENCH_H_
