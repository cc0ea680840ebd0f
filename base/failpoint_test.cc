#include "base/failpoint.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <string>

#include "absl/time/clock.h"
#include "base/fd.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace switchyard {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::HasSubstr;

Failpoint event("test.event", FailpointKind::kEvent);
Failpoint fallible("test.fallible", FailpointKind::kFallible);
Failpoint third("test.third", FailpointKind::kFallible);

// The wait status of a child that runs `body` with the failpoints of `text`.
int RunChild(const std::string& text, const std::function<void()>& body) {
  const pid_t child = ::fork();
  if (child == 0) {
    if (!ArmFailpoints(text).ok()) ::_exit(2);
    body();
    ::_exit(0);
  }
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, WUNTRACED), child);
  return status;
}

TEST(FailpointTest, DoesNothingWhenOff) {
  event.Pass();
  EXPECT_EQ(fallible.Errno(), 0);
  EXPECT_THAT(third.Check(), IsOk());
}

TEST(FailpointTest, CrashesAtTheChosenHitOnly) {
  const int status = RunChild("test.event=crash@3", [] {
    event.Pass();
    event.Pass();
    ::alarm(30);
    event.Pass();
    ::_exit(1);
  });
  ASSERT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(WTERMSIG(status), SIGKILL);
  const int survived = RunChild("test.event=crash@3", [] {
    event.Pass();
    event.Pass();
  });
  EXPECT_TRUE(WIFEXITED(survived) && WEXITSTATUS(survived) == 0);
}

TEST(FailpointTest, FailsOnceOrFromAHitOn) {
  const int status = RunChild("test.fallible=error(ENOSPC)@2; test.third=error@2+", [] {
    if (fallible.Errno() != 0) ::_exit(3);
    if (fallible.Errno() != ENOSPC) ::_exit(4);
    if (fallible.Errno() != 0) ::_exit(5);
    if (!third.Check().ok()) ::_exit(6);
    if (third.Check().ok() || third.Check().ok()) ::_exit(7);
    if (third.Errno() != EIO) ::_exit(8);
  });
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

TEST(FailpointTest, StopsUntilContinued) {
  const pid_t child = ::fork();
  if (child == 0) {
    if (!ArmFailpoints("test.event=stop").ok()) ::_exit(2);
    event.Pass();
    ::_exit(0);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, WUNTRACED), child);
  EXPECT_TRUE(WIFSTOPPED(status));
  ::kill(child, SIGCONT);
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

TEST(FailpointTest, Delays) {
  const int status = RunChild("test.event=delay(30ms)", [] {
    const absl::Time start = absl::Now();
    event.Pass();
    if (absl::Now() - start < absl::Milliseconds(29)) ::_exit(3);
  });
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

TEST(FailpointTest, TearsAWrittenFile) {
  const std::string path = testing::TempDir() + "/failpoint_test.torn";
  ASSERT_THAT(ReplaceFile(path, "before"), IsOk());
  const int status =
      RunChild("file.write=partial", [&] { ReplaceFile(path, "0123456789").IgnoreError(); });
  ASSERT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(WTERMSIG(status), SIGKILL);
  // The old file is whole: only the temporary one is torn.
  EXPECT_EQ(ReadFile(path).value(), "before");
  const int pid_suffix = RunChild("file.before_rename=error(ENOSPC)", [&] {
    if (!absl::IsResourceExhausted(ReplaceFile(path, "after"))) ::_exit(3);
  });
  EXPECT_TRUE(WIFEXITED(pid_suffix) && WEXITSTATUS(pid_suffix) == 0);
  EXPECT_EQ(ReadFile(path).value(), "before");
}

TEST(FailpointTest, RefusesUnknownNamesAndActionsWithAllFaults) {
  EXPECT_THAT(
      ArmFailpoints("test.evnt=crash;test.event=error;test.fallible=partial;test.event=crash@0;"
                    "test.event=delay;test.third=error(EWHAT);nonsense"),
      StatusIs(absl::StatusCode::kInvalidArgument,
               AllOf(HasSubstr("did you mean test.event?"),
                     HasSubstr("'test.event=error': this place can do: crash stop delay"),
                     HasSubstr("'test.fallible=partial'"), HasSubstr("from 1"),
                     HasSubstr("delay needs a duration"), HasSubstr("error knows EIO"),
                     HasSubstr("expected name=action"))));
}

TEST(FailpointTest, ListsItsPlaces) {
  EXPECT_THAT(FailpointNames(), Contains("test.fallible crash stop delay error"));
  EXPECT_THAT(FailpointNames(), Contains("file.write crash stop delay error partial"));
}

}  // namespace
}  // namespace switchyard
