#include "worker/agent/subprocess.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <string>

#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace switchyard {
namespace {

using testing::AllOf;
using testing::HasSubstr;

// Until the end of the stream.
std::string ReadAll(int fd) {
  std::string text;
  char buffer[4096];
  while (true) {
    pollfd entry{fd, POLLIN, 0};
    if (::poll(&entry, 1, 30000) != 1) return text + "<timeout>";
    const ssize_t n = ::read(fd, buffer, sizeof(buffer));
    if (n <= 0) return text;
    text.append(buffer, static_cast<size_t>(n));
  }
}

bool WaitEnded(const Subprocess& process) {
  pollfd entry{process.exit_fd(), POLLIN, 0};
  return ::poll(&entry, 1, 30000) == 1 && process.HasEnded();
}

SubprocessOptions Shell(const std::string& script) {
  SubprocessOptions options;
  options.argv = {"/bin/sh", "-c", script};
  return options;
}

TEST(SubprocessTest, CarriesOutputAndExitCode) {
  auto process = Subprocess::Start(Shell("echo out; echo err >&2; exit 7"));
  ASSERT_THAT(process, IsOk());
  EXPECT_EQ(ReadAll((*process)->stdout_fd().get()), "out\n");
  EXPECT_EQ(ReadAll((*process)->stderr_fd().get()), "err\n");
  ASSERT_TRUE(WaitEnded(**process));
  const ExitStatus status = (*process)->Reap();
  EXPECT_EQ(status.code, 7);
  EXPECT_EQ(status.signal, 0);
  EXPECT_EQ(status.ToString(), "exit code 7");
}

TEST(SubprocessTest, ReportsSignals) {
  auto process = Subprocess::Start(Shell("kill -SEGV $$"));
  ASSERT_THAT(process, IsOk());
  ASSERT_TRUE(WaitEnded(**process));
  EXPECT_EQ((*process)->Reap().signal, SIGSEGV);
}

TEST(SubprocessTest, AddsAndReplacesVariables) {
  ::setenv("SY_TEST_REPLACED", "old", 1);
  ::setenv("SY_TEST_KEPT", "kept", 1);
  SubprocessOptions options = Shell("echo $SY_TEST_REPLACED $SY_TEST_ADDED $SY_TEST_KEPT");
  options.environment = {{"SY_TEST_REPLACED", "new"}, {"SY_TEST_ADDED", "added"}};
  auto process = Subprocess::Start(options);
  ASSERT_THAT(process, IsOk());
  EXPECT_EQ(ReadAll((*process)->stdout_fd().get()), "new added kept\n");
}

TEST(SubprocessTest, InheritsOnlyTheOneDescriptor) {
  auto pipe = MakePipe();
  ASSERT_THAT(pipe, IsOk());
  const UniqueFd leaked(::open("/dev/null", O_RDONLY));  // without close-on-exec, on purpose
  SubprocessOptions options = Shell("echo hello >&3; ls /proc/self/fd | wc -l");
  options.inherited_fd = pipe->write.get();
  auto process = Subprocess::Start(options);
  ASSERT_THAT(process, IsOk());
  pipe->write.Reset();
  EXPECT_EQ(ReadAll(pipe->read.get()), "hello\n");
  EXPECT_EQ(ReadAll((*process)->stdout_fd().get()), "5\n");  // 0 to 3, and ls's own
}

TEST(SubprocessTest, LeadsAGroupThatIsKilledWithIt) {
  // The child in the background would hold stdout for a minute.
  auto process = Subprocess::Start(Shell("sleep 60 & echo $!; exit 0"));
  ASSERT_THAT(process, IsOk());
  ASSERT_TRUE(WaitEnded(**process));
  EXPECT_EQ(::getpgid((*process)->pid()), (*process)->pid());
  (*process)->Reap();
  const std::string text = ReadAll((*process)->stdout_fd().get());
  EXPECT_THAT(text, testing::Not(HasSubstr("<timeout>")));
}

TEST(SubprocessTest, ChildHasDefaultSignalHandling) {
  sigset_t blocked, old;
  ::sigemptyset(&blocked);
  ::sigaddset(&blocked, SIGTERM);
  ::pthread_sigmask(SIG_BLOCK, &blocked, &old);
  ::signal(SIGPIPE, SIG_IGN);
  auto process = Subprocess::Start(Shell("grep -E 'SigBlk|SigIgn' /proc/self/status"));
  ::pthread_sigmask(SIG_SETMASK, &old, nullptr);
  ASSERT_THAT(process, IsOk());
  EXPECT_EQ(ReadAll((*process)->stdout_fd().get()),
            "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n");
}

TEST(SubprocessTest, DestructorKillsAndReaps) {
  pid_t pid;
  {
    auto process = Subprocess::Start(Shell("trap '' TERM; while true; do sleep 60; done"));
    ASSERT_THAT(process, IsOk());
    pid = (*process)->pid();
    EXPECT_EQ(::kill(pid, 0), 0);
  }
  EXPECT_NE(::kill(pid, 0), 0);
}

TEST(SubprocessTest, ProgramThatCannotBeExecutedIsNamed) {
  SubprocessOptions options;
  options.argv = {"/nowhere/trainer"};
  EXPECT_THAT(Subprocess::Start(options),
              StatusIs(absl::StatusCode::kNotFound,
                       AllOf(HasSubstr("/nowhere/trainer"), HasSubstr("No such file"))));

  const std::string script = testing::TempDir() + "/subprocess_test.bad";
  ASSERT_THAT(ReplaceFile(script, "#!/nowhere/interpreter\n"), IsOk());
  ::chmod(script.c_str(), 0755);
  options.argv = {script};
  EXPECT_THAT(Subprocess::Start(options), StatusIs(absl::StatusCode::kNotFound, HasSubstr(script)));

  ::chmod(script.c_str(), 0644);
  EXPECT_THAT(Subprocess::Start(options),
              StatusIs(absl::StatusCode::kPermissionDenied, HasSubstr("Permission denied")));
}

}  // namespace
}  // namespace switchyard
