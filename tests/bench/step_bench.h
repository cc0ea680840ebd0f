// Whole training steps and single layers, timed on the device.
#ifndef SWITCHYARD_TESTS_BENCH_STEP_BENCH_H_
#define SWITCHYARD_TESTS_BENCH_STEP_BENCH_H_

#include <vector>

#include "tests/bench/options.h"
#include "tests/bench/training_model.h"
#include "worker/trainer/device.h"

namespace switchyard::bench {

// Print a header and one row per micro-batch size; return the exit code: 1 when a loss was not
// finite. Throw what the trainer throws.
int RunStep(const Options& options);
int RunLayers(const Options& options);

const char* Name(StateLayout layout);
const char* Name(ActivationMemory activations);

struct MeasuredSteps {
  double step_ms = 0;              // median, on the device
  double forward_backward_ms = 0;  // of the same steps
  double wall_ms = 0;              // mean, by the host's clock
  double first_loss = 0;           // of the first warm-up step
  double last_loss = 0;
  DeviceMemory memory;
};
// Steps over the batches in turn; nothing is read from the device between them.
MeasuredSteps MeasureSteps(TrainingModel& model, const Options& options,
                           const std::vector<Batch>& batches, at::Device device);

}  // namespace switchyard::bench

#endif  // SWITCHYARD_TESTS_BENCH_STEP_BENCH_H_
