// The program itself: flags, port file, metrics, signals.
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <string>

#include "base/fd.h"
#include "base/json.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "tests/agent/agent_fixture.h"
#include "worker/agent/device_inventory.h"
#include "worker/agent/subprocess.h"

namespace switchyard {
namespace {

using testing::HasSubstr;

// Runs to the end. Output in `out` and `err`.
ExitStatus RunProgram(const std::vector<std::string>& argv, std::string& out, std::string& err) {
  SubprocessOptions options;
  options.argv = argv;
  auto process = Subprocess::Start(options);
  EXPECT_THAT(process, IsOk());
  for (auto [fd, text] : {std::pair{(*process)->stdout_fd().get(), &out},
                          std::pair{(*process)->stderr_fd().get(), &err}}) {
    char buffer[4096];
    pollfd entry{fd, POLLIN, 0};
    while (::poll(&entry, 1, 30000) == 1) {
      const ssize_t n = ::read(fd, buffer, sizeof(buffer));
      if (n <= 0) break;
      text->append(buffer, static_cast<size_t>(n));
    }
  }
  EXPECT_TRUE(Eventually([&] { return (*process)->HasEnded(); }));
  return (*process)->Reap();
}

TEST(DeviceInventoryTest, ReadsGpusByNvml) {
  ::unsetenv("SY_FAKE_NVML");
  absl::StatusOr<std::vector<DeviceInfo>> gpus = FindGpus(SY_FAKE_NVML_LIBRARY);
  ASSERT_THAT(gpus, IsOk());
  ASSERT_EQ(gpus->size(), 2u);
  EXPECT_EQ((*gpus)[1].index, 1);
  EXPECT_EQ((*gpus)[1].kind, "NVIDIA H100 80GB HBM3");
  EXPECT_EQ((*gpus)[1].memory_bytes, 80ll << 30);
  EXPECT_EQ((*gpus)[1].uuid, "GPU-1");
  EXPECT_FALSE((*gpus)[1].is_cpu());
}

TEST(DeviceInventoryTest, SaysWhatTheDriverSays) {
  ::setenv("SY_FAKE_NVML", "none", 1);
  EXPECT_THAT(FindGpus(SY_FAKE_NVML_LIBRARY),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("the driver sees none")));
  ::setenv("SY_FAKE_NVML", "broken", 1);
  EXPECT_THAT(FindGpus(SY_FAKE_NVML_LIBRARY),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("start NVML: Driver Not Loaded")));
  ::unsetenv("SY_FAKE_NVML");
}

TEST_F(AgentProgramTest, HelpAndFaults) {
  std::string out, err;
  EXPECT_EQ(RunProgram({SY_AGENT_PROGRAM, "--help"}, out, err).code, 0);
  EXPECT_THAT(out, HasSubstr("--cpu-ranks N"));
  out.clear();
  EXPECT_EQ(RunProgram({SY_AGENT_PROGRAM, "--cpu-rank=2"}, out, err).code, 2);
  EXPECT_EQ(out, "");
  EXPECT_THAT(err, HasSubstr("unknown flag --cpu-rank; did you mean --cpu-ranks?"));
}

TEST_F(AgentProgramTest, TakenMetricsPortIsAClearError) {
  std::string out, err;
  const ExitStatus status =
      RunProgram({SY_AGENT_PROGRAM, "--state-dir=" + folder_ + "/other", "--cpu-ranks=1",
                  "--metrics-listen=" + coordinator_.target()},
                 out, err);
  EXPECT_EQ(status.code, 1);
  EXPECT_THAT(err, HasSubstr("serve metrics on " + coordinator_.target()));
}

TEST_F(AgentProgramTest, ServesMetricsAndStopsGracefully) {
  auto program = StartProgram();
  ASSERT_THAT(program, IsOk());
  Launch({"obey", "obey"});
  ASSERT_TRUE(WaitForReport(v1::Report::kRunning));
  absl::StatusOr<Json> ports = ReadJsonFile(folder_ + "/ports.json");
  ASSERT_THAT(ports, IsOk());
  const std::string address = JsonGet<std::string>(*ports, "metrics_listen").value();

  std::string out, err;
  ASSERT_EQ(RunProgram({"/bin/bash", "-c",
                        "exec 5<>/dev/tcp/" + address.substr(0, address.find(':')) + "/" +
                            address.substr(address.find(':') + 1) +
                            "; printf 'GET /metrics HTTP/1.0\\r\\n\\r\\n' >&5; cat <&5"},
                       out, err)
                .code,
            0)
      << err;
  const std::string metrics = out.substr(out.find("\r\n\r\n") + 4);
  EXPECT_THAT(metrics, HasSubstr("switchyard_agent_devices{state=\"busy\"} 2"));
  if (::access("/usr/bin/promtool", X_OK) == 0) {
    ASSERT_THAT(ReplaceFile(folder_ + "/metrics.txt", metrics), IsOk());
    out.clear();
    err.clear();
    const ExitStatus checked = RunProgram(
        {"/bin/sh", "-c", "/usr/bin/promtool check metrics < " + folder_ + "/metrics.txt"}, out,
        err);
    EXPECT_EQ(checked.code, 0) << out << err;
    EXPECT_EQ(out + err, "");
  }

  ::kill((*program)->pid(), SIGTERM);
  ASSERT_TRUE(Eventually([&] { return (*program)->HasEnded(); }));
  EXPECT_EQ((*program)->Reap().code, 0);
  EXPECT_EQ(AwaitFinished().failure().reason(), v1::DRAINED);
}

TEST_F(AgentProgramTest, EndsWhenAnotherAgentOfThisMachineHoldsItsName) {
  coordinator_.Configure([](auto& b) { b.refusal_reason = "STATE_FOLDER_DIFFERS"; });
  std::string out, err;
  const ExitStatus status =
      RunProgram({SY_AGENT_PROGRAM, "--coordinator=" + coordinator_.target(), "--node=n1",
                  "--state-dir=" + config_.state_dir, "--cpu-ranks=1",
                  "--metrics-listen=127.0.0.1:0", "--bin-dir=" + config_.bin_dir},
                 out, err);
  EXPECT_EQ(status.code, 1);
  EXPECT_THAT(err, HasSubstr("switchyard-agent: the name is held with state folder '/elsewhere'"));
  EXPECT_EQ(coordinator_.record().registrations.size(), 1u);
}

// The machine may have booted a moment ago: its own old lease ends soon.
TEST_F(AgentTest, TriesAgainWhileAnotherMachineHoldsItsName) {
  coordinator_.Configure([](auto& b) { b.refusal_reason = "NODE_NAME_TAKEN"; });
  StartAgent();
  ASSERT_TRUE(coordinator_.WaitFor([](const auto& r) { return r.registrations.size() >= 2; }));
  coordinator_.Configure([](auto& b) { b.refusal_reason.clear(); });
  EXPECT_TRUE(coordinator_.WaitFor([](const auto& r) { return r.num_heartbeats >= 1; }));
}

TEST_F(AgentProgramTest, SecondSignalEndsAtOnce) {
  auto program = StartProgram();
  ASSERT_THAT(program, IsOk());
  Launch({"stubborn"});
  ASSERT_TRUE(WaitForReport(v1::Report::kRunning));
  ASSERT_TRUE(WaitForPid(0));
  const pid_t trainer = PidOf(coordinator_.record(), 0);
  ::kill((*program)->pid(), SIGTERM);
  ::kill((*program)->pid(), SIGINT);
  ASSERT_TRUE(Eventually([&] { return (*program)->HasEnded(); }));
  EXPECT_EQ((*program)->Reap().code, 1);
  EXPECT_TRUE(IsGone(trainer));
}

}  // namespace
}  // namespace switchyard
