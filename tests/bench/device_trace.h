// What the device did, by the profiler of LibTorch (CUPTI).
#ifndef SWITCHYARD_TESTS_BENCH_DEVICE_TRACE_H_
#define SWITCHYARD_TESTS_BENCH_DEVICE_TRACE_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

namespace switchyard::bench {

struct Kernel {
  std::string name;  // copies and fills too
  double us = 0;
  uint64_t start_ns = 0;
  uint64_t end_ns = 0;
  int64_t stream = 0;  // a number of the device's own
};

struct Trace {
  std::vector<Kernel> kernels;  // by start
  double busy_us = 0;
  double span_us = 0;                    // from the first kernel's start to the last one's end
  std::map<std::string, int64_t> waits;  // calls by which the host waits for the device
};

// `work` queues something and returns a tensor that is ready when all of it is over; it is read
// after the work has been queued. Of this process's device work, all threads'.
Trace RecordTrace(const std::function<at::Tensor()>& work);

// How kernels of one kind lie beside the others.
struct Overlap {
  double span_us = 0;     // from the first kernel's start to the last one's end
  double kind_us = 0;     // time in which at least one kernel of the kind ran
  double exposed_us = 0;  // of it, without any other kernel beside it
};
Overlap MeasureOverlap(const std::vector<Kernel>& kernels,
                       const std::function<bool(const std::string& name)>& is_of_kind);

}  // namespace switchyard::bench

#endif  // SWITCHYARD_TESTS_BENCH_DEVICE_TRACE_H_
