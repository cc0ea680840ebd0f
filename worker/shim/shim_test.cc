// The parts of the shim; as a whole it is tested with its agent (tests/agent).
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/shim/attempt_files.h"
#include "worker/shim/containment.h"
#include "worker/shim/launch_plan.h"
#include "worker/shim/rank_io.h"

namespace switchyard {
namespace {

using testing::Contains;
using testing::IsEmpty;

std::string Content(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

class ShimTest : public testing::Test {
 protected:
  ShimTest() {
    std::string pattern = testing::TempDir() + "/shim_test.XXXXXX";
    folder_ = ::mkdtemp(pattern.data());
  }
  ~ShimTest() override { std::filesystem::remove_all(folder_); }
  std::string folder_;
};

TEST(LaunchPlanTest, SurvivesItsFile) {
  LaunchPlan plan;
  plan.scope = "s";
  plan.cgroup = "/c";
  plan.lease_path = "/l";
  plan.ranks = {{7, {"/bin/x", "", "two\nlines"}, {"A=b"}}, {8, {"/bin/y"}, {}}};
  const std::string text = EncodePlan(plan);
  const std::optional<LaunchPlan> read = DecodePlan(text);
  ASSERT_TRUE(read.has_value());
  EXPECT_EQ(EncodePlan(*read), text);
  EXPECT_EQ(read->ranks[0].argv[2], "two\nlines");
  EXPECT_EQ(read->ranks[1].rank, 8);
  for (size_t cut = 0; cut < text.size(); ++cut) {
    EXPECT_FALSE(DecodePlan(text.substr(0, cut)).has_value()) << cut;
  }
  EXPECT_FALSE(DecodePlan(text + "x").has_value());
}

TEST_F(ShimTest, LockHasOneHolder) {
  const int first = LockAttempt(folder_);
  ASSERT_GE(first, 0);
  EXPECT_EQ(LockAttempt(folder_), -1);
  EXPECT_EQ(errno, EAGAIN);
  ::close(first);
  const int second = LockAttempt(folder_);
  EXPECT_GE(second, 0);
  ::close(second);
}

TEST_F(ShimTest, MappedFileIsSharedAndKept) {
  MappedFile<LeaseFile> missing;
  EXPECT_EQ(missing.Open(folder_ + "/lease", false), ENOENT);
  MappedFile<LeaseFile> one, two;
  ASSERT_EQ(one.Open(folder_ + "/lease", true), 0);
  ASSERT_EQ(two.Open(folder_ + "/lease", false), 0);
  EXPECT_EQ(two->deadline.load(), 0);
  one->deadline.store(42);
  EXPECT_EQ(two->deadline.load(), 42);
  one.Reset();
  two.Reset();
  ASSERT_EQ(one.Open(folder_ + "/lease", true), 0);
  EXPECT_EQ(one->deadline.load(), 42);
}

TEST_F(ShimTest, ControlSocketWorksInAFolderOfAnyDepth) {
  std::string deep = folder_;
  for (int i = 0; i < 20; ++i) deep += "/a-folder-with-a-long-name";
  std::filesystem::create_directories(deep);
  const int listener = ListenControl(deep);
  ASSERT_GE(listener, 0) << std::strerror(errno);
  const int client = ConnectControl(deep);
  ASSERT_GE(client, 0) << std::strerror(errno);
  const int server = ::accept(listener, nullptr, nullptr);
  ASSERT_EQ(::send(client, "hi", 2, 0), 2);
  char buffer[8];
  EXPECT_EQ(::recv(server, buffer, sizeof(buffer), 0), 2);
  for (const int fd : {listener, client, server}) ::close(fd);
}

TEST_F(ShimTest, OutputGoesToTheFileWithItsSize) {
  int pipe[2];
  ASSERT_EQ(::pipe2(pipe, O_NONBLOCK | O_CLOEXEC), 0);
  StreamStatus status;
  OutputStream stream;
  ASSERT_EQ(stream.Open(pipe[0], folder_ + "/out", &status), 0);
  EXPECT_FALSE(stream.Drain(1 << 20));
  ASSERT_EQ(::write(pipe[1], "a\0b", 3), 3);
  EXPECT_TRUE(stream.Drain(1 << 20));
  EXPECT_EQ(status.size.load(), 3u);
  ::close(pipe[1]);
  EXPECT_TRUE(stream.Drain(1 << 20));
  EXPECT_TRUE(stream.at_end());
  EXPECT_EQ(Content(folder_ + "/out"), std::string("a\0b", 3));
}

// A disk without space is a file that may not grow.
class FullDisk {
 public:
  explicit FullDisk(rlim_t bytes) {
    ::signal(SIGXFSZ, SIG_IGN);
    ::getrlimit(RLIMIT_FSIZE, &before_);
    rlimit limit = before_;
    limit.rlim_cur = bytes;
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FullDisk() { ::setrlimit(RLIMIT_FSIZE, &before_); }

 private:
  rlimit before_{};
};

TEST_F(ShimTest, FullDiskCostsTheOldestWaitingOutputAndSaysSo) {
  int pipe[2];
  ASSERT_EQ(::pipe2(pipe, O_NONBLOCK | O_CLOEXEC), 0);
  ::fcntl(pipe[1], F_SETPIPE_SZ, 1 << 20);
  StreamStatus status;
  OutputStream stream;
  ASSERT_EQ(stream.Open(pipe[0], folder_ + "/out", &status), 0);
  std::string text;
  for (int i = 0; text.size() < 4u << 20; ++i) text += "line " + std::to_string(i) + "\n";
  {
    const FullDisk full(1000);
    for (size_t at = 0; at < text.size();) {
      const ssize_t n = ::write(pipe[1], text.data() + at, text.size() - at);
      if (n > 0) at += static_cast<size_t>(n);
      stream.Drain(1 << 20);
    }
    EXPECT_TRUE(stream.waits());
    EXPECT_EQ(status.size.load(), 1000u);
    EXPECT_FALSE(stream.Flush());
  }
  EXPECT_TRUE(stream.Flush());
  EXPECT_EQ(status.size.load(), text.size());
  ASSERT_EQ(status.num_gaps.load(), 1u);
  const uint64_t begin = status.gaps[0].begin.load(), end = status.gaps[0].end.load();
  EXPECT_EQ(begin, 1000u);
  EXPECT_LE(text.size() - end, OutputStream::kMaxWaitingBytes);
  const std::string file = Content(folder_ + "/out");
  ASSERT_EQ(file.size(), text.size()) << "bytes after a gap keep their place";
  EXPECT_TRUE(file.substr(0, begin) == text.substr(0, begin));
  EXPECT_TRUE(file.substr(end) == text.substr(end)) << "the newest are kept";
  ::close(pipe[1]);
}

TEST_F(ShimTest, FramesWaitForSpaceAndLoseNothing) {
  int sockets[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets), 0);
  std::atomic<uint64_t> size{0};
  RankLink link;
  ASSERT_EQ(link.Open(sockets[0], folder_ + "/frames", &size), 0);
  std::string text;
  {
    const FullDisk full(1000);
    for (int i = 0; i < 50; ++i) {
      const std::string part(3000, static_cast<char>('a' + i % 26));
      ASSERT_EQ(::send(sockets[1], part.data(), part.size(), 0), 3000);
      link.Drain(1 << 20);
      text += part;
    }
    EXPECT_EQ(size.load(), 1000u);
  }
  EXPECT_TRUE(link.Flush());
  EXPECT_EQ(size.load(), text.size());
  EXPECT_TRUE(Content(folder_ + "/frames") == text);
  link.Queue("{}");
  char frame[16];
  EXPECT_EQ(::recv(sockets[1], frame, sizeof(frame), 0), 6);
  EXPECT_EQ(std::memcmp(frame, "\2\0\0\0{}", 6), 0);
  ::close(sockets[1]);
}

// A child that forks another one in a session of its own, and both wait.
pid_t StartFamily(const std::string& scope, const std::string& cgroup) {
  const pid_t child = ::fork();
  if (child != 0) return child;
  if (!cgroup.empty()) {
    const int fd = ::open((cgroup + "/cgroup.procs").c_str(), O_WRONLY);
    if (::write(fd, "0", 1) != 1) ::_exit(1);
  }
  const std::string variable = std::string(kScopeVariable) + "=" + scope;
  const char* const argv[] = {"/bin/sh", "-c", "setsid sleep 600 & exec sleep 600", nullptr};
  const char* const environment[] = {variable.c_str(), "PATH=/usr/bin:/bin", nullptr};
  ::execve(argv[0], const_cast<char**>(argv), const_cast<char**>(environment));
  ::_exit(127);
}

void ExpectKilledWhole(const Containment& containment) {
  const pid_t child = StartFamily(containment.scope, containment.cgroup);
  while (Members(containment).size() < 2) ::usleep(1000);
  EXPECT_THAT(Members(containment), Contains(child));
  EXPECT_FALSE(IsEmpty(containment));
  while (!IsEmpty(containment)) KillAll(containment);
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_TRUE(WIFSIGNALED(status));
  EXPECT_THAT(Members(containment), IsEmpty());
}

TEST(ContainmentTest, ScopeFindsProcessesOfOtherSessions) {
  ExpectKilledWhole({"shim-test-" + std::to_string(::getpid()), ""});
}

// Else a gang would count as gone, and its devices as free, while its processes run.
TEST(ContainmentTest, IsNotEmptyForAProcessThatCannotLook) {
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  const rlimit none{0, before.rlim_max};
  const Containment scope{"shim-test-nobody", ""};
  const Containment cgroup{"unused", "/sys/fs/cgroup/shim-test-nobody"};
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &none), 0);
  const bool scope_empty = IsEmpty(scope);
  const bool cgroup_empty = IsEmpty(cgroup);
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
  EXPECT_FALSE(scope_empty);
  EXPECT_FALSE(cgroup_empty);
  EXPECT_TRUE(IsEmpty(scope));
  EXPECT_TRUE(IsEmpty(cgroup));
}

TEST(ContainmentTest, CgroupKillsItsProcesses) {
  std::string why;
  const std::string cgroup = MakeCgroup("shim-test-" + std::to_string(::getpid()), &why);
  if (cgroup.empty()) GTEST_SKIP() << why;
  ExpectKilledWhole({"unused", cgroup});
  RemoveCgroup(cgroup);
  EXPECT_FALSE(std::filesystem::exists(cgroup));
}

}  // namespace
}  // namespace switchyard
