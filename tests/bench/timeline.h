// Where one layer's time goes: its kernels, by the profiler of LibTorch (CUPTI).
#ifndef SWITCHYARD_TESTS_BENCH_TIMELINE_H_
#define SWITCHYARD_TESTS_BENCH_TIMELINE_H_

#include "tests/bench/options.h"

namespace switchyard::bench {

// For each micro-batch size: kernels of one layer, forward and backward, as the difference of
// `layers` and half as many; the rest of the micro-batch; and the host's waits for the device
// inside it. Needs a GPU. Returns the exit code: 1 when the host waited.
int RunTimeline(const Options& options);

}  // namespace switchyard::bench

#endif  // SWITCHYARD_TESTS_BENCH_TIMELINE_H_
