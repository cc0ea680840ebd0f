// The part of nccl_window.cc that only device code can do. Without torch: nvcc reads it.
#ifndef SWITCHYARD_WORKER_TRAINER_PARALLEL_NCCL_WINDOW_POINTERS_H_
#define SWITCHYARD_WORKER_TRAINER_PARALLEL_NCCL_WINDOW_POINTERS_H_

#include <cuda_runtime_api.h>
#include <nccl.h>

namespace switchyard {

// pointers[r] = where rank r's part of `window` lies for the current device, r < ranks; device
// memory. (NCCL has a host function for it from 2.29 on.)
cudaError_t NcclWindowPointers(ncclWindow_t window, int ranks, void** pointers,
                               cudaStream_t stream);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_PARALLEL_NCCL_WINDOW_POINTERS_H_
