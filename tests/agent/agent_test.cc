// What an attempt does on its node, from order to report.
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <string>

#include "absl/strings/str_split.h"
#include "base/fd.h"
#include "base/json.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "prometheus/metric_family.h"
#include "tests/agent/agent_fixture.h"
#include "tests/agent/flood.h"

namespace switchyard {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr absl::Duration kLongGrace = absl::Minutes(10);

TEST_F(AgentTest, RegistersItsDevices) {
  StartAgent(3);
  ASSERT_TRUE(coordinator_.WaitFor([](const auto& r) { return r.num_heartbeats >= 2; }));
  const v1::RegisterRequest request = coordinator_.record().registrations[0];
  EXPECT_EQ(request.node(), "n1");
  EXPECT_EQ(request.incarnation(), agent_->incarnation());
  EXPECT_EQ(request.boot_id().size(), 36u);
  EXPECT_EQ(request.state_folder(), std::filesystem::canonical(config_.state_dir));
  EXPECT_EQ(request.address(), "127.0.0.1");
  ASSERT_EQ(request.devices_size(), 3);
  EXPECT_EQ(request.devices(2).index(), 2);
  EXPECT_EQ(request.devices(2).kind(), "cpu");
  EXPECT_EQ(request.live_attempts_size(), 0);
}

TEST_F(AgentTest, RunsAJobToItsEnd) {
  StartAgent();
  ASSERT_TRUE(coordinator_.Send(Assign({"ok", "ok"})));
  ASSERT_TRUE(WaitForReport(v1::Report::kPrepared));
  const v1::Prepared prepared =
      ReportsOf(coordinator_.record(), v1::Report::kPrepared)[0].prepared();
  EXPECT_EQ(prepared.train_rows(), 120);
  EXPECT_EQ(prepared.data_report(), R"({"train":{"rows":120,"tokens":1000}})");
  EXPECT_GT(prepared.port(), 0);
  ASSERT_TRUE(coordinator_.Send(StartOrder()));
  const v1::Finished finished = AwaitFinished();
  EXPECT_TRUE(finished.succeeded());
  EXPECT_FALSE(finished.stopped());
  EXPECT_FALSE(finished.has_failure());

  const CoordinatorRecord record = coordinator_.record();
  EXPECT_EQ(ReportsOf(record, v1::Report::kRunning).size(), 1u);
  const std::vector<v1::Report> steps = ReportsOf(record, v1::Report::kStep);
  ASSERT_EQ(steps.size(), 3u);
  EXPECT_EQ(steps[2].step().step(), 3);
  EXPECT_EQ(steps[2].step().loss(), 1.0);
  EXPECT_EQ(steps[2].step().attempt(), 1);
  EXPECT_GT(steps[2].step().time().seconds(), 0);
  std::vector<std::string> events;
  for (const v1::Report& report : ReportsOf(record, v1::Report::kEvent)) {
    events.push_back(report.event().kind() + " " + report.event().message());
  }
  EXPECT_THAT(
      events,
      ElementsAre("PHASE training", HasSubstr("PHASE planned memory of the fullest rank: 2"),
                  "VALIDATION step 3: loss 1.5 on 'wiki' (1000 tokens)", "WARNING a warning"));
  ASSERT_EQ(record.commits.size(), 1u);
  const v1::CommitCheckpointRequest& commit = record.commits[0];
  EXPECT_EQ(commit.node(), "n1");
  EXPECT_EQ(commit.incarnation(), agent_->incarnation());
  EXPECT_EQ(commit.job(), kJob);
  EXPECT_EQ(commit.attempt(), 1);
  EXPECT_EQ(commit.step(), 3);
  EXPECT_EQ(commit.staging_path(), folder_ + "/artifacts/j1/staging/1/step-3");
  EXPECT_EQ(commit.manifest_crc32c(), 77u);
  EXPECT_TRUE(commit.final());
  EXPECT_EQ(commit.validation_loss(), 1.5);
  EXPECT_THAT(LogOf(record, 0, "stdout"), HasSubstr("committed ok=1 path=/final/step-3"));
  EXPECT_EQ(record.reports.rbegin()->second.what_case(), v1::Report::kFinished);
}

TEST_F(AgentTest, GivesEachRankItsConfig) {
  StartAgent();
  Launch({"ok", "ok"});
  EXPECT_TRUE(AwaitFinished().succeeded());
  const CoordinatorRecord record = coordinator_.record();
  for (int rank = 0; rank < 2; ++rank) {
    const std::vector<std::string> lines = absl::StrSplit(LogOf(record, rank, "stdout"), '\n');
    absl::StatusOr<Json> config = ParseJson(lines[0], "config");
    ASSERT_THAT(config, IsOk());
    EXPECT_EQ(JsonGet<std::string>(*config, "type").value(), "config");
    EXPECT_EQ(JsonGet<int64_t>(*config, "rank").value(), rank);
    EXPECT_EQ(JsonGet<int64_t>(*config, "local_rank").value(), rank);
    EXPECT_EQ(JsonGet<int64_t>(*config, "master_port").value(), 29500);
    EXPECT_EQ(JsonGet<std::string>(*config, "train_tokens").value(),
              config_.state_dir + "/tokens/digest/train.tok");
  }
}

TEST_F(AgentTest, RemovesTheAttemptFolderOnceAllIsAcknowledged) {
  StartAgent();
  const std::string attempt_folder = config_.state_dir + "/attempts/default.j1.1";
  ASSERT_TRUE(coordinator_.Send(Assign({"ok", "ok"})));
  ASSERT_TRUE(WaitForReport(v1::Report::kPrepared));
  EXPECT_TRUE(std::filesystem::exists(attempt_folder));
  ASSERT_TRUE(coordinator_.Send(StartOrder()));
  AwaitFinished();
  EXPECT_TRUE(Eventually([&] { return !std::filesystem::exists(attempt_folder); }));
}

TEST_F(AgentTest, NamesTheFailingRankAndStopsItsGang) {
  StartAgent();
  Launch({"stubborn", "exit:7"});
  const v1::Finished finished = AwaitFinished();
  EXPECT_FALSE(finished.succeeded());
  EXPECT_FALSE(finished.stopped());
  const v1::Failure& failure = finished.failure();
  EXPECT_EQ(failure.reason(), v1::TRAINER_EXIT);
  EXPECT_EQ(failure.rank(), 1);
  EXPECT_EQ(failure.exit_code(), 7);
  EXPECT_EQ(failure.node(), "n1");
  ASSERT_EQ(failure.last_lines_size(), 20);
  EXPECT_EQ(failure.last_lines(0), "line 6");
  EXPECT_EQ(failure.last_lines(19), "line 25");
  const std::vector<v1::Report> early = ReportsOf(coordinator_.record(), v1::Report::kRankFailed);
  ASSERT_EQ(early.size(), 1u);
  EXPECT_EQ(early[0].rank_failed().failure().rank(), 1);
  EXPECT_EQ(early[0].rank_failed().failure().message(), failure.message());
}

TEST_F(AgentTest, TakesTheReasonFromTheErrorFrame) {
  StartAgent();
  Launch({"hang", "error:NAN_LOSS"});
  const v1::Failure failure = AwaitFinished().failure();
  EXPECT_EQ(failure.reason(), v1::NAN_LOSS);
  EXPECT_EQ(failure.rank(), 1);
  EXPECT_EQ(failure.step(), 12);
  EXPECT_THAT(failure.message(), HasSubstr("what went wrong"));
}

TEST_F(AgentTest, DoesNotWaitForARankThatHangsAfterItsError) {
  StartAgent();
  Launch({"hang", "error_hang"});
  const v1::Failure failure = AwaitFinished().failure();
  EXPECT_EQ(failure.reason(), v1::STORAGE_IO);
  EXPECT_EQ(failure.rank(), 1);
}

TEST_F(AgentTest, KilledTrainerFailsTheAttempt) {
  StartAgent();
  Launch({"hang", "hang"});
  ASSERT_TRUE(WaitForReport(v1::Report::kRunning));
  const std::vector<pid_t> pids = AwaitTrainers(2);
  ASSERT_EQ(pids.size(), 2u);
  ::kill(pids[1], SIGKILL);
  const v1::Failure failure = AwaitFinished().failure();
  EXPECT_EQ(failure.reason(), v1::TRAINER_SIGNAL);
  EXPECT_EQ(failure.signal(), SIGKILL);
  EXPECT_EQ(failure.rank(), 1);
  EXPECT_FALSE(ProcessExists(pids[0]));
}

TEST_F(AgentTest, ExitWithoutADoneFrameIsNoSuccess) {
  StartAgent();
  Launch({"silent"});
  EXPECT_EQ(AwaitFinished().failure().reason(), v1::EXIT_UNKNOWN);
}

TEST_F(AgentTest, StopThatNobodyAskedForIsAFailure) {
  StartAgent();
  Launch({"lonely"});
  const v1::Finished finished = AwaitFinished();
  EXPECT_FALSE(finished.stopped());
  EXPECT_THAT(finished.failure().message(), HasSubstr("nobody had asked"));
}

TEST_F(AgentTest, TornFrameDoesNotHideTheExit) {
  StartAgent();
  Launch({"torn"});
  EXPECT_EQ(AwaitFinished().failure().exit_code(), 6);
}

TEST_F(AgentTest, RanksThatOutliveTheOthersByFarAreAHang) {
  config_.done_grace = absl::Milliseconds(200);
  StartAgent();
  Launch({"ok", "hang"});
  const v1::Failure failure = AwaitFinished().failure();
  EXPECT_EQ(failure.reason(), v1::HANG);
  EXPECT_EQ(failure.rank(), 1);
}

TEST_F(AgentTest, ChildrenOfATrainerDieWithIt) {
  StartAgent();
  Launch({"grandchild"});
  EXPECT_EQ(AwaitFinished().failure().exit_code(), 5);
  const std::vector<std::string> lines =
      absl::StrSplit(LogOf(coordinator_.record(), 0, "stdout"), '\n');
  ASSERT_GE(lines.size(), 2u);
  const pid_t grandchild = std::stoi(lines[1]);
  // Killed; init (or this container's first process) may take a moment to collect it.
  EXPECT_TRUE(Eventually([&] {
    const std::string stat =
        ReadFile("/proc/" + std::to_string(grandchild) + "/stat").value_or("x) Z");
    return stat[stat.rfind(')') + 2] == 'Z';
  }));
}

TEST_F(AgentTest, PrepErrorsBecomeFailures) {
  StartAgent();
  ASSERT_TRUE(coordinator_.Send(Assign({"ok"}, "exit:1", 1)));
  const v1::Failure data = AwaitFinished(1).failure();
  EXPECT_EQ(data.reason(), v1::DATA_INVALID);
  EXPECT_EQ(data.rank(), -1);
  EXPECT_EQ(data.last_lines_size(), 20);
  EXPECT_THAT(data.message(), HasSubstr("line 25"));
  EXPECT_THAT(LogOf(coordinator_.record(), -1, "stderr"), HasSubstr("line 1\n"));

  ASSERT_TRUE(coordinator_.Send(Assign({"ok"}, "exit:2", 2)));
  EXPECT_EQ(AwaitFinished(2).failure().reason(), v1::CONFIG_INVALID);
  ASSERT_TRUE(coordinator_.Send(Assign({"ok"}, "mute", 3)));
  EXPECT_THAT(AwaitFinished(3).failure().message(), HasSubstr("no result"));
}

TEST_F(AgentTest, TakesLongReportsOfPrep) {
  StartAgent();
  ASSERT_TRUE(coordinator_.Send(Assign({"ok"}, "wordy")));
  ASSERT_TRUE(WaitForReport(v1::Report::kPrepared));
  const v1::Prepared prepared =
      ReportsOf(coordinator_.record(), v1::Report::kPrepared)[0].prepared();
  EXPECT_EQ(prepared.train_rows(), 120);
  EXPECT_GT(prepared.data_report().size(), 200'000u);
}

TEST_F(AgentTest, MissingModelIsAConfigFault) {
  StartAgent();
  v1::SessionResponse order = Assign({"ok"});
  order.mutable_assign()->mutable_spec()->mutable_model()->set_path("/nowhere/model");
  ASSERT_TRUE(coordinator_.Send(order));
  const v1::Failure failure = AwaitFinished().failure();
  EXPECT_EQ(failure.reason(), v1::CONFIG_INVALID);
  EXPECT_THAT(failure.message(), HasSubstr("/nowhere/model/config.json: No such file"));
}

TEST_F(AgentTest, MissingProgramsAreNamed) {
  StartAgent();
  ASSERT_EQ(::unlink((config_.bin_dir + "/switchyard-trainer").c_str()), 0);
  Launch({"ok"});
  const v1::Failure trainer = AwaitFinished(1).failure();
  EXPECT_EQ(trainer.reason(), v1::INTERNAL);
  EXPECT_THAT(trainer.message(), HasSubstr("bin/switchyard-trainer: No such file"));

  ASSERT_EQ(::unlink((config_.bin_dir + "/switchyard-prep").c_str()), 0);
  ASSERT_THAT(ReplaceFile(config_.bin_dir + "/switchyard-prep", "no program"), IsOk());
  ::chmod((config_.bin_dir + "/switchyard-prep").c_str(), 0644);
  ASSERT_TRUE(coordinator_.Send(Assign({"ok"}, "ok", 2)));
  const v1::Failure prep = AwaitFinished(2).failure();
  EXPECT_EQ(prep.reason(), v1::INTERNAL);
  EXPECT_THAT(prep.message(), HasSubstr("bin/switchyard-prep: Permission denied"));
}

TEST_F(AgentTest, CancelsDuringPrep) {
  StartAgent();
  for (const char* mode : {"hang", "stubborn"}) {
    const int attempt = mode == std::string("hang") ? 1 : 2;
    ASSERT_TRUE(coordinator_.Send(Assign({"ok"}, mode, attempt)));
    // Its first line says that it runs, and ignores signals if it does.
    ASSERT_TRUE(WaitForReport(v1::Report::kLog, attempt));
    ASSERT_TRUE(coordinator_.Send(StopOrder(kLongGrace, false, attempt)));
    const v1::Finished finished = AwaitFinished(attempt);
    EXPECT_TRUE(finished.stopped());
    EXPECT_FALSE(finished.has_failure());
  }
}

TEST_F(AgentTest, CancelsBeforeStart) {
  StartAgent();
  ASSERT_TRUE(coordinator_.Send(Assign({"ok"})));
  ASSERT_TRUE(WaitForReport(v1::Report::kPrepared));
  ASSERT_TRUE(coordinator_.Send(StopOrder(kLongGrace, false)));
  EXPECT_TRUE(AwaitFinished().stopped());
  // Too late: nothing is started. The agent cannot tell whether its first answer was lost, and may
  // answer again, after the end that stands.
  ASSERT_TRUE(coordinator_.Send(StartOrder()));
  ASSERT_TRUE(coordinator_.Send(Assign({"ok"}, "ok", 2)));
  ASSERT_TRUE(WaitForReport(v1::Report::kPrepared, 2));
  const auto ends = ReportsOf(coordinator_.record(), v1::Report::kFinished);
  ASSERT_LE(ends.size(), 2u);
  EXPECT_TRUE(ends[0].finished().stopped());
  if (ends.size() == 2) {
    EXPECT_EQ(ends[1].finished().failure().reason(), v1::EXIT_UNKNOWN);
  }
  EXPECT_TRUE(ReportsOf(coordinator_.record(), v1::Report::kRunning).empty());
}

TEST_F(AgentTest, StopFrameLetsTrainersEndByThemselves) {
  StartAgent();
  Launch({"obey", "obey"});
  ASSERT_TRUE(WaitForReport(v1::Report::kRunning));
  ASSERT_TRUE(coordinator_.Send(StopOrder(kLongGrace, true)));
  const v1::Finished finished = AwaitFinished();
  EXPECT_TRUE(finished.stopped());
  EXPECT_FALSE(finished.succeeded());
  EXPECT_FALSE(finished.has_failure());
  EXPECT_THAT(LogOf(coordinator_.record(), 1, "stdout"),
              HasSubstr(R"({"type":"stop","reason":"the user said so","checkpoint":true})"));
}

TEST_F(AgentTest, StubbornTrainersAreKilledAfterTheGracePeriod) {
  StartAgent();
  Launch({"stubborn", "stubborn"});
  ASSERT_TRUE(WaitForReport(v1::Report::kRunning));
  const std::vector<pid_t> pids = AwaitTrainers(2);
  ASSERT_TRUE(coordinator_.Send(StopOrder(absl::Milliseconds(50), false)));
  EXPECT_TRUE(AwaitFinished().stopped());
  for (const pid_t pid : pids) EXPECT_FALSE(ProcessExists(pid));
}

TEST_F(AgentTest, LaterStopShortensTheGracePeriod) {
  StartAgent();
  Launch({"hang"});
  ASSERT_TRUE(WaitForReport(v1::Report::kRunning));
  ASSERT_TRUE(coordinator_.Send(StopOrder(kLongGrace, true)));
  ASSERT_TRUE(coordinator_.Send(StopOrder(absl::ZeroDuration(), false)));
  EXPECT_TRUE(AwaitFinished().stopped());
}

TEST_F(AgentTest, CrashWhileStoppingDoesNotWaitForTheGracePeriod) {
  StartAgent();
  Launch({"crash_on_stop", "hang"});
  ASSERT_TRUE(WaitForReport(v1::Report::kRunning));
  ASSERT_TRUE(coordinator_.Send(StopOrder(kLongGrace, true)));
  EXPECT_TRUE(AwaitFinished().stopped());
}

TEST_F(AgentTest, KeepsEveryByteOfALogFlood) {
  constexpr size_t kBytes = 10'000'000;
  StartAgent();
  Launch({"flood:10000000"});
  EXPECT_TRUE(AwaitFinished().succeeded());
  const CoordinatorRecord record = coordinator_.record();
  std::string expected(kBytes, '\0');
  for (size_t i = 0; i < kBytes; ++i) expected[i] = FloodByte(i);
  EXPECT_TRUE(LogOf(record, 0, "stderr") == expected.substr(0, kBytes / 2));
  const std::string out = LogOf(record, 0, "stdout");
  const size_t start = out.find('\n') + 1;  // after the config
  ASSERT_GE(out.size(), start + kBytes);
  EXPECT_TRUE(absl::string_view(out).substr(start, kBytes) == expected);
}

TEST_F(AgentTest, RunsAttemptsOnDisjointDevicesAtOnce) {
  const std::string other = "projects/default/jobs/j2";
  const std::string third = "projects/default/jobs/j3";
  StartAgent(2);
  Launch({"obey"}, 1, kJob, 0);
  Launch({"obey"}, 1, other, 1);
  ASSERT_TRUE(WaitForReport(v1::Report::kRunning, 1, kJob));
  ASSERT_TRUE(WaitForReport(v1::Report::kRunning, 1, other));
  EXPECT_EQ(agent_->Snapshot().busy_devices, 2);

  ASSERT_TRUE(coordinator_.Send(Assign({"ok"}, "ok", 1, third, 1)));
  const v1::Failure refused = AwaitFinished(1, third).failure();
  EXPECT_EQ(refused.reason(), v1::INTERNAL);
  EXPECT_THAT(refused.message(), HasSubstr("device 1 is held by attempt 1 of " + other));

  ASSERT_TRUE(coordinator_.Send(StopOrder(kLongGrace, false, 1, other)));
  EXPECT_TRUE(AwaitFinished(1, other).stopped());
  EXPECT_TRUE(Eventually([&] { return agent_->Snapshot().free_devices == 1; }));
  EXPECT_TRUE(ReportsOf(coordinator_.record(), v1::Report::kFinished, 1, kJob).empty());
}

TEST_F(AgentTest, RefusesDevicesThatDoNotExist) {
  StartAgent(2);
  ASSERT_TRUE(coordinator_.Send(Assign({"ok"}, "ok", 1, kJob, 5)));
  EXPECT_THAT(AwaitFinished().failure().message(), HasSubstr("device 5 does not exist"));
}

TEST_F(AgentTest, RejectedCheckpointFailsWithTheCoordinatorsWords) {
  coordinator_.Configure([](auto& b) { b.reject_commits = true; });
  StartAgent();
  Launch({"ok"});
  const v1::Failure failure = AwaitFinished().failure();
  EXPECT_EQ(failure.reason(), v1::CHECKPOINT_INVALID);
  EXPECT_THAT(failure.message(), HasSubstr("size of model.safetensors differs"));
}

TEST_F(AgentTest, MetricsFollowTheLiveJob) {
  StartAgent();
  coordinator_.Configure([](auto& b) { b.refuse_commits = 1'000'000; });
  Launch({"ok", "ok"});  // rank 0 waits for its commit
  ASSERT_TRUE(WaitForReport(v1::Report::kStep, 1, kJob, 3));
  const auto value = [&](const std::string& name, const std::string& label) -> double {
    for (const prometheus::MetricFamily& family : metrics_->Collect()) {
      if (family.name != "switchyard_agent_" + name) continue;
      for (const prometheus::ClientMetric& metric : family.metric) {
        if (!label.empty() && metric.label[0].value != label) continue;
        return family.type == prometheus::MetricType::Counter ? metric.counter.value
                                                              : metric.gauge.value;
      }
    }
    return -1;
  };
  EXPECT_EQ(value("job_step", kJob), 3);
  EXPECT_EQ(value("job_loss", kJob), 1.0);
  EXPECT_EQ(value("job_tokens_per_second", kJob), 1000);
  EXPECT_EQ(value("job_memory_bytes", kJob), 1 << 20);
  EXPECT_EQ(value("job_checkpoint_failures", kJob), 1);
  EXPECT_EQ(value("job_checkpoint_stall_seconds", kJob), 3 * 0.5);
  EXPECT_GT(value("job_resident_bytes", kJob), 0);
  EXPECT_EQ(value("devices", "busy"), 2);
  EXPECT_EQ(value("live_attempts", ""), 1);
  EXPECT_EQ(value("trainers_started_total", ""), 2);
  EXPECT_EQ(value("trainer_restarts_total", ""), 0);
  EXPECT_EQ(value("connected", ""), 1);
  EXPECT_GT(value("last_heartbeat_ack_timestamp_seconds", ""), 1.6e9);
  coordinator_.Configure([](auto& b) { b.refuse_commits = 0; });
  EXPECT_TRUE(AwaitFinished().succeeded());
  EXPECT_EQ(value("job_step", kJob), -1);
  EXPECT_EQ(value("attempts_finished_total", "succeeded"), 1);
}

}  // namespace
}  // namespace switchyard
