// The one source of chance of a history: the same seed gives the same draws on every machine.
#ifndef SWITCHYARD_TESTS_SIMULATION_RANDOM_H_
#define SWITCHYARD_TESTS_SIMULATION_RANDOM_H_

#include <cmath>
#include <cstdint>

#include "absl/time/time.h"

namespace switchyard::simulation {

// SplitMix64 (Steele, Lea, Flood 2014).
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t Next() {
    state_ += 0x9e3779b97f4a7c15;
    uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  double Unit() { return static_cast<double>(Next() >> 11) * 0x1p-53; }  // [0, 1)
  bool Chance(double p) { return Unit() < p; }
  // Both ends included.
  int Range(int low, int high) {
    return low + static_cast<int>(Next() % static_cast<uint64_t>(high - low + 1));
  }
  absl::Duration Between(absl::Duration low, absl::Duration high) {
    return absl::Nanoseconds(absl::ToInt64Nanoseconds(low) +
                             static_cast<int64_t>(Unit() * absl::ToDoubleNanoseconds(high - low)));
  }
  // As often between 1 ms and 10 ms as between 1 s and 10 s. `low` > 0.
  absl::Duration Spread(absl::Duration low, absl::Duration high) {
    const double from = std::log(absl::ToDoubleNanoseconds(low));
    const double to = std::log(absl::ToDoubleNanoseconds(high));
    return absl::Nanoseconds(static_cast<int64_t>(std::exp(from + Unit() * (to - from))));
  }

 private:
  uint64_t state_;
};

}  // namespace switchyard::simulation

#endif  // SWITCHYARD_TESTS_SIMULATION_RANDOM_H_
