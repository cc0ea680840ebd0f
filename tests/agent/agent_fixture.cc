#include "tests/agent/agent_fixture.h"

#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include <filesystem>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/fd.h"
#include "base/json.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"

namespace switchyard {
namespace {

void SetDuration(absl::Duration duration, google::protobuf::Duration& out) {
  const int64_t nanoseconds = absl::ToInt64Nanoseconds(duration);
  out.set_seconds(nanoseconds / 1'000'000'000);
  out.set_nanos(static_cast<int32_t>(nanoseconds % 1'000'000'000));
}

}  // namespace

bool Eventually(const std::function<bool()>& condition) {
  const absl::Duration deadline = RealClock::Get().Monotonic() + absl::Seconds(30);
  const StopToken never;
  while (!condition()) {
    if (RealClock::Get().Monotonic() > deadline) return false;
    never.WaitForStop(absl::Milliseconds(5));
  }
  return true;
}

bool ProcessExists(pid_t pid) { return ::kill(pid, 0) == 0; }

std::vector<v1::Report> ReportsOf(const CoordinatorRecord& record, v1::Report::WhatCase what,
                                  int attempt, const std::string& job) {
  std::vector<v1::Report> found;
  for (const auto& [number, report] : record.reports) {
    if (report.what_case() == what && report.attempt() == attempt && report.job() == job) {
      found.push_back(report);
    }
  }
  return found;
}

std::string LogOf(const CoordinatorRecord& record, int rank, const std::string& stream) {
  std::string text;
  for (const auto& [number, report] : record.reports) {
    if (!report.has_log() || report.log().rank() != rank || report.log().stream() != stream) {
      continue;
    }
    if (report.log().offset() != static_cast<int64_t>(text.size())) text += "<gap>";
    text += report.log().data();
  }
  return text;
}

void AgentTest::SetUp() {
  std::string pattern = testing::TempDir() + "/agent_test.XXXXXX";
  ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
  folder_ = pattern;
  for (const char* part : {"/bin", "/model"}) ASSERT_THAT(MakeFolders(folder_ + part), IsOk());
  ASSERT_THAT(ReplaceFile(folder_ + "/model/config.json", "{}"), IsOk());
  for (const char* name : {"/bin/switchyard-prep", "/bin/switchyard-trainer"}) {
    ASSERT_EQ(::symlink(SY_FAKE_PROGRAM, (folder_ + name).c_str()), 0);
  }
  config_.coordinator = coordinator_.target();
  config_.node = "n1";
  config_.state_dir = folder_ + "/state";
  config_.bin_dir = folder_ + "/bin";
  config_.shim_program = SY_SHIM_PROGRAM;
  config_.term_grace = absl::Milliseconds(100);
  config_.gang_grace = absl::Milliseconds(100);
  config_.shutdown_grace = absl::Milliseconds(100);
  config_.error_exit_grace = absl::Milliseconds(200);
}

void AgentTest::TearDown() {
  agent_.reset();
  EXPECT_THAT(coordinator_.record().faults, testing::IsEmpty());
  std::error_code error;
  std::filesystem::remove_all(folder_, error);
}

void AgentTest::StartAgent(int num_devices) {
  absl::StatusOr<std::unique_ptr<Agent>> agent =
      Agent::Start(config_, CpuDevices(num_devices), metrics_, RealClock::Get());
  ASSERT_THAT(agent, IsOk());
  agent_ = *std::move(agent);
}

v1::SessionResponse AgentTest::Assign(const std::vector<std::string>& rank_modes,
                                      const std::string& prep_mode, int attempt,
                                      const std::string& job, int first_device) {
  v1::SessionResponse order;
  v1::Assign& assign = *order.mutable_assign();
  assign.set_job(job);
  assign.set_attempt(attempt);
  assign.set_job_uid("uid");
  assign.set_num_nodes(1);
  assign.set_world_size(static_cast<int>(rank_modes.size()));
  assign.set_job_dir(folder_ + "/artifacts/j1");
  for (size_t i = 0; i < rank_modes.size(); ++i) {
    assign.add_devices(first_device + static_cast<int>(i));
  }
  assign.mutable_spec()->mutable_model()->set_path(folder_ + "/model");
  const Json modes{{"prep", prep_mode}, {"ranks", rank_modes}};
  assign.mutable_spec()->mutable_data()->set_chat_template(DumpJson(modes));
  return order;
}

v1::SessionResponse AgentTest::StartOrder(int attempt, const std::string& job) {
  v1::SessionResponse order;
  order.mutable_start()->set_job(job);
  order.mutable_start()->set_attempt(attempt);
  order.mutable_start()->set_master_address("127.0.0.1");
  order.mutable_start()->set_master_port(29500);
  return order;
}

v1::SessionResponse AgentTest::StopOrder(absl::Duration grace, bool checkpoint, int attempt,
                                         const std::string& job) {
  v1::SessionResponse order;
  order.mutable_stop()->set_job(job);
  order.mutable_stop()->set_attempt(attempt);
  order.mutable_stop()->set_reason("the user said so");
  order.mutable_stop()->set_checkpoint(checkpoint);
  SetDuration(grace, *order.mutable_stop()->mutable_grace_period());
  return order;
}

bool AgentTest::WaitForReport(v1::Report::WhatCase what, int attempt, const std::string& job,
                              int count) {
  return coordinator_.WaitFor([&](const CoordinatorRecord& record) {
    return static_cast<int>(ReportsOf(record, what, attempt, job).size()) >= count;
  });
}

void AgentTest::Launch(const std::vector<std::string>& rank_modes, int attempt,
                       const std::string& job, int first_device) {
  ASSERT_TRUE(coordinator_.Send(Assign(rank_modes, "ok", attempt, job, first_device)));
  ASSERT_TRUE(WaitForReport(v1::Report::kPrepared, attempt, job));
  ASSERT_TRUE(coordinator_.Send(StartOrder(attempt, job)));
}

v1::Finished AgentTest::AwaitFinished(int attempt, const std::string& job) {
  if (!WaitForReport(v1::Report::kFinished, attempt, job)) {
    ADD_FAILURE() << "no Finished report of attempt " << attempt << " of " << job;
    return {};
  }
  const std::vector<v1::Report> reports =
      ReportsOf(coordinator_.record(), v1::Report::kFinished, attempt, job);
  EXPECT_EQ(reports.size(), 1u);
  return reports[0].finished();
}

std::vector<pid_t> AgentTest::AwaitTrainers(size_t count) {
  std::vector<pid_t> pids;
  EXPECT_TRUE(Eventually([&] {
    pids.clear();
    for (const auto& [id, some] : agent_->Snapshot().attempts) {
      pids.insert(pids.end(), some.begin(), some.end());
    }
    return pids.size() == count;
  }));
  return pids;
}

pid_t PidOf(const CoordinatorRecord& record, int rank) {
  const std::string log = LogOf(record, rank, "stdout");
  const size_t at = log.find("\npid ");
  return at == std::string::npos || log.find('\n', at + 1) == std::string::npos
             ? 0
             : std::stoi(log.substr(at + 5));
}

bool IsGone(pid_t pid) {
  return Eventually([pid] {
    const std::string stat = ReadFile(absl::StrCat("/proc/", pid, "/stat")).value_or("x) Z");
    return stat[stat.rfind(')') + 2] == 'Z';
  });
}

absl::StatusOr<std::unique_ptr<Subprocess>> AgentProgramTest::StartProgram(
    const std::vector<std::string>& flags) {
  SubprocessOptions options;
  options.argv = {SY_AGENT_PROGRAM,
                  "--coordinator=" + coordinator_.target(),
                  "--node=n1",
                  "--state-dir=" + config_.state_dir,
                  "--cpu-ranks=2",
                  "--metrics-listen=127.0.0.1:0",
                  "--bin-dir=" + config_.bin_dir,
                  "--port-file=" + folder_ + "/ports.json"};
  options.argv.insert(options.argv.end(), flags.begin(), flags.end());
  return Subprocess::Start(options);
}

bool AgentProgramTest::WaitForPid(int rank) {
  return coordinator_.WaitFor(
      [rank](const CoordinatorRecord& record) { return PidOf(record, rank) != 0; });
}

}  // namespace switchyard
