// Whole training steps and single layers, timed on the device.
#ifndef SWITCHYARD_TESTS_BENCH_STEP_BENCH_H_
#define SWITCHYARD_TESTS_BENCH_STEP_BENCH_H_

#include "tests/bench/options.h"

namespace switchyard::bench {

// Print a header and one row per micro-batch size; return the exit code: 1 when a loss was not
// finite. Throw what the trainer throws.
int RunStep(const Options& options);
int RunLayers(const Options& options);

}  // namespace switchyard::bench

#endif  // SWITCHYARD_TESTS_BENCH_STEP_BENCH_H_
