#include "worker/trainer/ops/linear_cuda.h"

#include <ATen/cuda/CUDAContextLight.h>
#include <c10/cuda/CUDAGuard.h>

#include <algorithm>

#include "worker/trainer/ops/spare_sms.h"

namespace switchyard::ops::on_cuda {
namespace {

void Check(cublasStatus_t status) {
  TORCH_CHECK(status == CUBLAS_STATUS_SUCCESS, "linear: ", cublasGetStatusString(status));
}

// Of ATen, for the current stream, with a workspace of its own: cuBLAS then chooses and computes
// the same on every run. Partial sums of a split reduction stay in float32, and the kernel leaves
// SMs to others (spare_sms.h), for the life of this object.
class Handle {
 public:
  Handle() : handle_(at::cuda::getCurrentCUDABlasHandle()) {
    Check(cublasGetMathMode(handle_, &mode_));
    Check(cublasSetMathMode(
        handle_, static_cast<cublasMath_t>(CUBLAS_DEFAULT_MATH |
                                           CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION)));
    if (const int spare = SpareSms::Now(); spare > 0) {
      limited_ = true;
      Check(cublasSetSmCountTarget(
          handle_,
          std::max(1, at::cuda::getCurrentDeviceProperties()->multiProcessorCount - spare)));
    }
  }
  ~Handle() {
    if (limited_) cublasSetSmCountTarget(handle_, 0);
    cublasSetMathMode(handle_, mode_);
  }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  cublasHandle_t get() const { return handle_; }

 private:
  cublasHandle_t handle_;
  cublasMath_t mode_ = CUBLAS_DEFAULT_MATH;
  bool limited_ = false;
};

bool RowsAreDense(const at::Tensor& x_RD) {
  return x_RD.stride(1) == 1 && x_RD.stride(0) >= x_RD.size(1);
}

}  // namespace

bool ServesLinearBackwardWeight(const at::Tensor& dy_RO, const at::Tensor& x_RI,
                                const at::Tensor& dweight_OI) {
  return dy_RO.is_cuda() && dy_RO.size(0) > 0 && dy_RO.scalar_type() == at::kBFloat16 &&
         x_RI.scalar_type() == at::kBFloat16 &&
         (dweight_OI.scalar_type() == at::kFloat || dweight_OI.scalar_type() == at::kBFloat16) &&
         RowsAreDense(dy_RO) && RowsAreDense(x_RI) && RowsAreDense(dweight_OI);
}

void LinearBackwardWeight(const at::Tensor& dy_RO, const at::Tensor& x_RI, at::Tensor dweight_OI,
                          bool accumulate) {
  const c10::cuda::CUDAGuard guard(dy_RO.device());
  const Handle handle;
  const float alpha = 1;
  const float beta = accumulate ? 1 : 0;  // with 0 the buffer is not read
  const auto dim = [](int64_t size) { return static_cast<int>(size); };
  const cudaDataType type = dweight_OI.scalar_type() == at::kFloat ? CUDA_R_32F : CUDA_R_16BF;
  // BLAS counts columns first: it computes the transpose, x^T dy, from the same memory.
  Check(cublasGemmEx(handle.get(), CUBLAS_OP_N, CUBLAS_OP_T, dim(x_RI.size(1)), dim(dy_RO.size(1)),
                     dim(x_RI.size(0)), &alpha, x_RI.const_data_ptr(), CUDA_R_16BF,
                     dim(x_RI.stride(0)), dy_RO.const_data_ptr(), CUDA_R_16BF, dim(dy_RO.stride(0)),
                     &beta, dweight_OI.mutable_data_ptr(), type, dim(dweight_OI.stride(0)),
                     CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
}

}  // namespace switchyard::ops::on_cuda
