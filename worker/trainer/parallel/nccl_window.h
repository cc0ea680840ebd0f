// Symmetric memory between processes of one host: a window of NCCL 2.28.9. Only in builds with
// SY_CUDA.
#ifndef SWITCHYARD_WORKER_TRAINER_PARALLEL_NCCL_WINDOW_H_
#define SWITCHYARD_WORKER_TRAINER_PARALLEL_NCCL_WINDOW_H_

#include <c10/core/Device.h>

#include <cstdint>
#include <string>

#include "worker/trainer/parallel/comm.h"
#include "worker/trainer/parallel/symmetric_memory.h"

namespace switchyard {

// Why this process cannot have windows; empty: nothing is known against it.
std::string WhyNoNcclWindow();

// Collective, on ranks that all know nothing against it. The caller agrees with the others: this
// rank may have memory where another has none.
SymmetricMemoryResult MakeNcclWindow(Comm& group, c10::Device device, int64_t bytes);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_PARALLEL_NCCL_WINDOW_H_
