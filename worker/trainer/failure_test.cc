#include "worker/trainer/failure.h"

#include <c10/util/Exception.h>

#include <new>

#include "gtest/gtest.h"
#include "worker/trainer/parallel/comm_error.h"

namespace switchyard {
namespace {

ErrorFrame OfCudaError(int code) {
  return DescribeFailure(c10::AcceleratorError({"", "", 0}, code, "CUDA error: told by the test"));
}

TEST(FailureTest, FaultsOfTheDeviceBlameTheHardware) {
  EXPECT_EQ(OfCudaError(214).reason, FailureReason::kGpuXid);
  EXPECT_EQ(OfCudaError(220).reason, FailureReason::kGpuXid);
  EXPECT_EQ(OfCudaError(719).message, "CUDA error: told by the test");
}

TEST(FailureTest, AnIllegalAddressIsABug) {
  EXPECT_EQ(OfCudaError(700).reason, FailureReason::kInternal);
}

TEST(FailureTest, TypesOfExceptionsHaveReasons) {
  EXPECT_EQ(DescribeFailure(CommError("lost")).reason, FailureReason::kNcclError);
  EXPECT_EQ(DescribeFailure(std::bad_alloc()).reason, FailureReason::kOomHost);
  EXPECT_EQ(DescribeFailure(c10::OutOfMemoryError({"", "", 0}, "")).reason, FailureReason::kOomGpu);
  EXPECT_EQ(DescribeFailure(TrainError(FailureReason::kNanLoss, "")).reason,
            FailureReason::kNanLoss);
}

}  // namespace
}  // namespace switchyard
