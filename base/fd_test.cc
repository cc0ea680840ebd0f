#include "base/fd.h"

#include <unistd.h>

#include "base/status_matchers.h"
#include "gtest/gtest.h"

namespace switchyard {
namespace {

using ::testing::HasSubstr;

TEST(FdTest, ReplaceFileThenReadFileGivesTheBytes) {
  const std::string path = testing::TempDir() + "/replace_me";
  ASSERT_THAT(ReplaceFile(path, "one"), IsOk());
  ASSERT_THAT(ReplaceFile(path, std::string("t\0wo", 4)), IsOk());
  EXPECT_EQ(*ReadFile(path), std::string("t\0wo", 4));
}

TEST(FdTest, MissingFileIsNotFoundWithItsPath) {
  EXPECT_THAT(ReadFile("/no/such/file"),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("/no/such/file")));
}

TEST(FdTest, MakeFoldersRefusesAFileInTheWay) {
  const std::string path = testing::TempDir() + "/a_file";
  ASSERT_THAT(ReplaceFile(path, ""), IsOk());
  EXPECT_FALSE(MakeFolders(path).ok());
  EXPECT_THAT(MakeFolders(testing::TempDir() + "/deep/er/folder"), IsOk());
  EXPECT_THAT(MakeFolders(testing::TempDir() + "/deep/er/folder"), IsOk());
}

TEST(UniqueFdTest, MoveLeavesNothingBehind) {
  auto pipe = MakePipe();
  ASSERT_THAT(pipe, IsOk());
  UniqueFd taken = std::move(pipe->write);
  EXPECT_FALSE(pipe->write.valid());
  EXPECT_EQ(::write(taken.get(), "x", 1), 1);
}

}  // namespace
}  // namespace switchyard
