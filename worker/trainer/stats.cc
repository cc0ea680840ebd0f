#include "worker/trainer/stats.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <fstream>
#include <sstream>

#include "worker/trainer/device.h"

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

StepTimer::StepTimer(Clock& clock, at::Device device) : device_(device), host_(clock) {
  if (!device_.is_cpu()) marks_.emplace_back("", RecordEvent(device_, /*timing=*/true));
}

void StepTimer::Lap(const std::string& phase) {
  if (device_.is_cpu()) {
    host_.Lap(phase);
  } else {
    marks_.emplace_back(phase, RecordEvent(device_, /*timing=*/true));
  }
}

StepTimer::Times StepTimer::Read() const {
  if (device_.is_cpu()) return {host_.seconds(), host_.total_seconds()};
  Times times;
  marks_.back().second.synchronize();
  for (size_t i = 1; i < marks_.size(); ++i) {
    const double seconds = marks_[i - 1].second.elapsedTime(marks_[i].second) / 1e3;
    times.seconds[marks_[i].first] += seconds;
    times.total += seconds;
  }
  return times;
}

}  // namespace switchyard
