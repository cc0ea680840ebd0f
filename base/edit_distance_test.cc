#include "base/edit_distance.h"

#include "gtest/gtest.h"

namespace switchyard {
namespace {

TEST(EditDistanceTest, CountsInsertionsDeletionsAndReplacements) {
  EXPECT_EQ(EditDistance("", ""), 0);
  EXPECT_EQ(EditDistance("", "abc"), 3);
  EXPECT_EQ(EditDistance("kitten", "sitting"), 3);
  EXPECT_EQ(EditDistance("flaw", "lawn"), 2);
  EXPECT_EQ(EditDistance("abc", "abc"), 0);
}

TEST(EditDistanceTest, NearestTakesTheClosestAndNothingFar) {
  EXPECT_EQ(Nearest("watsh", {"logs", "watch", "cancel"}), "watch");
  EXPECT_EQ(Nearest("frobnicate", {"logs", "watch"}), "");
  EXPECT_EQ(Nearest("x", {"lr"}), "");
}

}  // namespace
}  // namespace switchyard
