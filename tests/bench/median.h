// The middle of a few samples.
#ifndef SWITCHYARD_TESTS_BENCH_MEDIAN_H_
#define SWITCHYARD_TESTS_BENCH_MEDIAN_H_

#include <algorithm>
#include <cstddef>
#include <vector>

namespace switchyard::bench {

// At least one value.
inline double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

}  // namespace switchyard::bench

#endif  // SWITCHYARD_TESTS_BENCH_MEDIAN_H_
