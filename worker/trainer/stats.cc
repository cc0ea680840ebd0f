#include "worker/trainer/stats.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <fstream>
#include <sstream>

namespace switchyard {

int64_t PeakHostMemoryBytes() {
  std::ifstream status("/proc/self/status");
  std::string line;
  while (std::getline(status, line)) {
    if (line.rfind("VmHWM:", 0) != 0) continue;
    std::istringstream words(line.substr(6));
    int64_t kilobytes = 0;
    words >> kilobytes;
    return kilobytes * 1024;
  }
  return 0;
}

double ExpertLoadMaxOverMean(const at::Tensor& copies_LE) {
  double worst = 0;
  if (!copies_LE.defined()) return worst;
  for (int64_t layer = 0; layer < copies_LE.size(0); ++layer) {
    const at::Tensor copies_E = copies_LE[layer];
    const double total = static_cast<double>(copies_E.sum().item<int64_t>());
    if (total == 0) continue;
    const double mean = total / static_cast<double>(copies_E.numel());
    worst = std::max(worst, static_cast<double>(copies_E.max().item<int64_t>()) / mean);
  }
  return worst;
}

void PhaseTimer::Lap(const std::string& phase) {
  const absl::Duration now = clock_.Monotonic();
  seconds_[phase] += absl::ToDoubleSeconds(now - last_);
  last_ = now;
}

}  // namespace switchyard
