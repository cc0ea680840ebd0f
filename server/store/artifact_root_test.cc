#include "server/store/artifact_root.h"

#include <filesystem>

#include "base/fd.h"
#include "server/error.h"
#include "server/store/store_testing.h"

namespace switchyard {
namespace {

using testing::HasSubstr;

class ArtifactRootTest : public StoreTest {
 protected:
  void SetUp() override {
    StoreTest::SetUp();
    root_ = folder_.path() + "/artifacts";
  }
  void Reopen() {
    store_.reset();
    store_ = OpenStore(folder_.path(), clock_);
  }
  // What an unmounted file system shows: the empty folder under it.
  void Unmount() {
    std::filesystem::rename(root_, root_ + ".away");
    std::filesystem::create_directory(root_);
  }
  void Mount() {
    std::filesystem::remove_all(root_);
    std::filesystem::rename(root_ + ".away", root_);
  }
  std::string root_;
};

TEST_F(ArtifactRootTest, IsMarkedAtTheFirstStartAndKnownAtTheNext) {
  EXPECT_THAT(CheckArtifactRoot(*store_, root_), IsOk()) << "no id, no claim";
  ASSERT_THAT(ClaimArtifactRoot(*store_, root_), IsOk());
  EXPECT_THAT(CheckArtifactRoot(*store_, root_), IsOk());
  Reopen();
  EXPECT_EQ(store_->artifact_root_id(), ReadArtifactRootId(root_).value());
  EXPECT_THAT(ClaimArtifactRoot(*store_, root_), IsOk());
}

TEST_F(ArtifactRootTest, UnmountedRootRefusesTheStart) {
  ASSERT_THAT(ClaimArtifactRoot(*store_, root_), IsOk());
  Reopen();
  Unmount();
  EXPECT_THAT(ClaimArtifactRoot(*store_, root_),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("Is it mounted?")));
  EXPECT_TRUE(std::filesystem::is_empty(root_)) << "nothing is made under the mount point";
  const absl::Status later = CheckArtifactRoot(*store_, root_);
  EXPECT_THAT(later, StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_EQ(GetErrorDetails(later).reason, "ARTIFACTS_UNAVAILABLE");
  Mount();
  EXPECT_THAT(ClaimArtifactRoot(*store_, root_), IsOk());
}

TEST_F(ArtifactRootTest, RootOfAnotherDatabaseIsRefused) {
  ASSERT_THAT(ClaimArtifactRoot(*store_, root_), IsOk());
  ASSERT_THAT(ReplaceFile(root_ + "/.switchyard-root", "{\"id\": \"another\"}"), IsOk());
  EXPECT_THAT(ClaimArtifactRoot(*store_, root_),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("another database")));
}

// Of a release before roots had ids.
TEST_F(ArtifactRootTest, EmptyRootOfADatabaseWithCheckpointsIsRefused) {
  const JobRecord job = Create("job");
  Register("a");
  const AttemptId attempt = Place(job, {"a"});
  Run("a", attempt);
  CommitFinal("a", attempt, 10);
  ASSERT_THAT(MakeFolders(root_), IsOk());
  EXPECT_THAT(ClaimArtifactRoot(*store_, root_),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("it is empty")));
  ASSERT_THAT(MakeFolders(root_ + "/p"), IsOk());
  EXPECT_THAT(ClaimArtifactRoot(*store_, root_), IsOk());
}

}  // namespace
}  // namespace switchyard
