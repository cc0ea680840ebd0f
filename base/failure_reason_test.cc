#include "base/failure_reason.h"

#include "gtest/gtest.h"

namespace switchyard {
namespace {

TEST(FailureReasonTest, ReasonsAreFoundByTheirNames) {
  EXPECT_EQ(AllFailureReasons().size(), 24u);
  for (const FailureReason reason : AllFailureReasons()) {
    EXPECT_EQ(ParseFailureReason(Name(reason)), reason);
  }
  EXPECT_EQ(ParseFailureReason("NO_SUCH_REASON"), absl::nullopt);
  EXPECT_EQ(Name(FailureReason::kNanLoss), "NAN_LOSS");
}

}  // namespace
}  // namespace switchyard
