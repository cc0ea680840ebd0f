#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "base/thread.h"
#include "client/cli_testing.h"
#include "client/follow.h"

namespace switchyard {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using testing::SizeIs;

v1::WatchJobResponse StateEvent(int64_t sequence, v1::Job::State state,
                                const std::string& message = "") {
  v1::WatchJobResponse response;
  response.mutable_event()->set_sequence(sequence);
  response.mutable_event()->set_kind("STATE");
  response.mutable_event()->set_state(state);
  response.mutable_event()->set_message(message);
  response.mutable_job()->set_name("projects/default/jobs/j1");
  response.mutable_job()->set_state(state);
  return response;
}

v1::WatchJobResponse Step(int64_t step, double loss) {
  v1::WatchJobResponse response;
  v1::StepMetrics& metrics = *response.mutable_metrics();
  metrics.set_step(step);
  metrics.set_total_steps(4);
  metrics.set_loss(loss);
  metrics.set_learning_rate(1e-3);
  metrics.set_tokens_per_second(1234);
  metrics.set_memory_bytes(1500000000);
  metrics.set_step_seconds(2);
  metrics.set_attempt(1);
  return response;
}

// --- the command line itself --------------------------------------------------------------------

TEST_F(CliTest, HelpNamesEveryCommandAndEachExplainsItself) {
  EXPECT_EQ(Run({"--help"}), 0);
  const std::string help = out();
  for (const Command& command : Commands()) {
    EXPECT_EQ(absl::StrContains(help, "  " + command.name + " "), !command.hidden) << command.name;
    EXPECT_EQ(Run({command.name, "--help"}), 0);
    EXPECT_THAT(out(), HasSubstr(absl::StrCat("Usage: switchyard ", command.name)));
    for (const Flag& flag : command.flags) EXPECT_THAT(out(), HasSubstr("--" + flag.name));
  }
  EXPECT_THAT(help, HasSubstr("Exit codes:"));
}

TEST_F(CliTest, MistypedWordsGetASuggestionAndExitTwo) {
  EXPECT_EQ(Run({"submti", "x"}), 2);
  EXPECT_THAT(err(), HasSubstr("unknown command submti: did you mean submit?"));
  EXPECT_EQ(Run({"submit", "--wach", recipe_}), 2);
  EXPECT_THAT(err(), HasSubstr("unknown flag --wach: did you mean --watch?"));
  EXPECT_EQ(Run({"get"}), 2);
  EXPECT_THAT(err(), HasSubstr("`get` takes one argument, JOB, found 0"));
  EXPECT_EQ(Run({"list", "x"}), 2);
  EXPECT_EQ(Run({"get", "j1", "-o", "xml"}), 2);
  EXPECT_THAT(err(), HasSubstr("-o xml: expected table, json or yaml"));
  EXPECT_EQ(Run({"submit", recipe_, "--watch=yes"}), 2);
  EXPECT_EQ(Run({"list", "--state", "runing"}), 2);
  EXPECT_THAT(err(), HasSubstr("did you mean running?"));
  EXPECT_EQ(Run({"logs", "j1", "--rank", "x"}), 2);
  EXPECT_EQ(Run({"logs", "j1", "--tail", "0"}), 2);
  EXPECT_EQ(Run({"cancel", "j1", "--grace-period", "soon"}), 2);
  EXPECT_EQ(Run({"list", "--label", "x"}), 2);
  EXPECT_THAT(service_.gotten, IsEmpty());
}

// --- submit, validate, plan ---------------------------------------------------------------------

TEST_F(CliTest, SubmitSendsTheWholeJob) {
  EXPECT_EQ(Run({"submit", recipe_, "--name", "try-1", "--set", "seed=9"}), 0);
  ASSERT_THAT(service_.created, SizeIs(1));
  const v1::CreateJobRequest& request = service_.created[0];
  EXPECT_EQ(request.parent(), "projects/default");
  EXPECT_EQ(request.job_id(), "try-1");
  EXPECT_THAT(request.request_id(),
              testing::MatchesRegex("[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-"
                                    "[0-9a-f]{12}"));
  EXPECT_EQ(request.job().spec().seed(), 9u);
  EXPECT_EQ(request.job().spec().model().path(), "/models/m");
  EXPECT_EQ(request.job().display_name(), "mine");
  EXPECT_EQ(request.job().labels().at("team"), "a");
  EXPECT_EQ(request.job().recipe(), kRecipe);
  EXPECT_THAT(out(), HasSubstr("submitted projects/default/jobs/try-1 (QUEUED)"));
  EXPECT_THAT(err(),
              HasSubstr("warning: model.pretrained_model_name_or_path: there is no /models/m"));
}

TEST_F(CliTest, SubmitWithARefusedKeySendsNothing) {
  EXPECT_EQ(Run({"submit", recipe_, "--set", "step_scheduler.max_step=3"}), 2);
  EXPECT_THAT(err(), AllOf(HasSubstr("step_scheduler.max_step: unknown key: did you mean "
                                     "step_scheduler.max_steps?"),
                           HasSubstr("1 key is refused")));
  EXPECT_THAT(service_.created, IsEmpty());
}

TEST_F(CliTest, SubmitOfAMissingFileNamesIt) {
  EXPECT_EQ(Run({"submit", "/no/such.yaml"}), 2);
  EXPECT_THAT(err(), HasSubstr("/no/such.yaml"));
}

TEST_F(CliTest, SubmitTriesAgainWithTheSameRequestId) {
  service_.failures = {grpc::Status(grpc::StatusCode::UNAVAILABLE, "restarting"),
                       grpc::Status(grpc::StatusCode::UNAVAILABLE, "restarting")};
  EXPECT_EQ(Run({"submit", recipe_}), 0);
  ASSERT_THAT(service_.created, SizeIs(3));
  EXPECT_EQ(service_.created[0].request_id(), service_.created[2].request_id());
}

TEST_F(CliTest, SubmitPrintsTheRequestIdWhenTheOutcomeIsUnknown) {
  service_.failures.assign(4, grpc::Status(grpc::StatusCode::UNAVAILABLE, "restarting"));
  const std::string id = "11111111-2222-4333-8444-555555555555";
  EXPECT_EQ(Run({"submit", recipe_, "--request-id", id}), 6);
  EXPECT_THAT(err(), AllOf(HasSubstr("--request-id " + id), HasSubstr(service_.address()),
                           HasSubstr("not known whether the job was stored")));
}

TEST_F(CliTest, SubmitDoesNotRepeatARealRefusal) {
  service_.failures = {
      ErrorWithInfo(grpc::StatusCode::ALREADY_EXISTS, "job once exists", "JOB_EXISTS")};
  EXPECT_EQ(Run({"submit", recipe_, "--name", "once"}), 5);
  EXPECT_THAT(service_.created, SizeIs(1));
  EXPECT_THAT(err(), AllOf(HasSubstr("job once exists"), HasSubstr("reason: JOB_EXISTS"),
                           HasSubstr("choose another --name"), Not(HasSubstr("--request-id"))));
}

TEST_F(CliTest, ValidateOnlyStoresNothingAndSaysSo) {
  EXPECT_EQ(Run({"submit", recipe_, "--validate-only"}), 0);
  EXPECT_TRUE(service_.created.at(0).validate_only());
  EXPECT_THAT(out(), HasSubstr("valid; nothing was stored"));
}

TEST_F(CliTest, ValidatePrintsAVerdictForEveryKey) {
  EXPECT_EQ(Run({"validate", recipe_, "--no-files"}), 0);
  EXPECT_THAT(out(), AllOf(HasSubstr("KEY"), HasSubstr("optimizer.lr"), HasSubstr("used"),
                           HasSubstr("= 1e-4")));
  EXPECT_EQ(Run({"validate", recipe_}), 2);
  EXPECT_THAT(err(),
              AllOf(HasSubstr("there is no /models/m"), HasSubstr("there is no /data/d.jsonl"),
                    HasSubstr("2 keys are refused")));
}

TEST_F(CliTest, ValidateAsJsonHoldsTheSpec) {
  EXPECT_EQ(Run({"validate", recipe_, "--no-files", "-o", "json"}), 0);
  absl::StatusOr<Json> json = ParseJson(out(), "out");
  ASSERT_THAT(json, IsOk());
  EXPECT_EQ(*JsonFind(*JsonFind(*JsonFind(*json, "spec"), "model"), "path"), Json("/models/m"));
  EXPECT_EQ(*JsonFind(*json, "refused"), Json(0));
}

TEST_F(CliTest, PlanShowsFitAndMemory) {
  service_.plan.set_fits_cluster(true);
  service_.plan.set_ranks_wanted(2);
  service_.plan.set_ranks_free(1);
  service_.plan.set_ranks_total(4);
  service_.plan.mutable_memory()->set_total(2500000);
  service_.plan.add_notes("aux loss is off");
  EXPECT_EQ(Run({"plan", recipe_}), 0);
  EXPECT_THAT(out(), AllOf(HasSubstr("wants 2; 1 free of 4"), HasSubstr("2.5 MB"),
                           HasSubstr("aux loss is off")));
}

// --- get, list, cancel, checkpoints -------------------------------------------------------------

TEST_F(CliTest, JobArgumentIsAShortIdOrAFullName) {
  EXPECT_EQ(Run({"get", "j1", "--project", "p"}), 0);
  EXPECT_EQ(Run({"get", "projects/q/jobs/j2"}), 0);
  EXPECT_THAT(service_.gotten, ElementsAre("projects/p/jobs/j1", "projects/q/jobs/j2"));
}

TEST_F(CliTest, GetShowsWhyAJobWaitsAndPrintsJsonAndYaml) {
  service_.job.mutable_job()->set_state(v1::Job::QUEUED);
  service_.job.mutable_job()->set_pending_reason(v1::PENDING_REASON_RESOURCES);
  service_.job.mutable_job()->set_state_message("needs 4 ranks, 2 are free");
  EXPECT_EQ(Run({"get", "j1"}), 0);
  EXPECT_THAT(out(), AllOf(HasSubstr("QUEUED"), HasSubstr("RESOURCES: needs 4 ranks, 2 are free")));
  EXPECT_EQ(Run({"get", "j1", "-o", "json"}), 0);
  EXPECT_THAT(out(),
              AllOf(HasSubstr("\"state\": \"QUEUED\""), HasSubstr("\"current_attempt\": 0")));
  EXPECT_EQ(Run({"get", "j1", "-o", "yaml"}), 0);
  EXPECT_THAT(out(), AllOf(HasSubstr("job:\n  name: projects/default/jobs/j1\n"),
                           HasSubstr("  state_message: \"needs 4 ranks, 2 are free\"\n")));
}

TEST_F(CliTest, ErrorsHaveTheirExitCodeReasonAndAdvice) {
  service_.failures = {
      ErrorWithInfo(grpc::StatusCode::NOT_FOUND, "no job j1", "JOB_NOT_FOUND"),
      ErrorWithInfo(grpc::StatusCode::PERMISSION_DENIED, "no access", "DENIED"),
      ErrorWithInfo(grpc::StatusCode::FAILED_PRECONDITION, "job j1 has SUCCEEDED", "JOB_FINAL"),
      grpc::Status(grpc::StatusCode::INTERNAL, "oops")};
  EXPECT_EQ(Run({"get", "j1"}), 3);
  EXPECT_THAT(err(), AllOf(HasSubstr("get projects/default/jobs/j1: not found: no job j1"),
                           HasSubstr("reason: JOB_NOT_FOUND"), HasSubstr("switchyard list")));
  EXPECT_EQ(Run({"get", "j1"}), 4);
  EXPECT_EQ(Run({"cancel", "j1"}), 5);
  EXPECT_EQ(Run({"get", "j1"}), 1);
}

TEST_F(CliTest, NoCoordinatorIsUnavailable) {
  service_.Stop();
  EXPECT_EQ(Run({"list"}), 6);
  EXPECT_THAT(err(), AllOf(HasSubstr(service_.address()), HasSubstr("is switchyardd running?")));
  service_.Start();
}

TEST_F(CliTest, ListReadsAllPagesAndPassesFilters) {
  service_.pages.resize(2);
  v1::Job& first = *service_.pages[0].add_jobs();
  first.set_name("projects/default/jobs/new");
  first.set_state(v1::Job::FAILED);
  first.mutable_failure()->set_reason(v1::NAN_LOSS);
  first.mutable_failure()->set_message("3 steps");
  v1::Job& second = *service_.pages[1].add_jobs();
  second.set_name("projects/default/jobs/old");
  second.set_state(v1::Job::RUNNING);
  second.mutable_progress()->set_step(3);
  second.mutable_progress()->set_total_steps(9);
  EXPECT_EQ(Run({"list", "--state", "failed", "--state", "RUNNING", "--label", "a=b"}), 0);
  EXPECT_THAT(out(), AllOf(HasSubstr("new  FAILED   -"), HasSubstr("NAN_LOSS: 3 steps"),
                           HasSubstr("old  RUNNING  3/9")));
  ASSERT_THAT(service_.listed, SizeIs(2));
  EXPECT_THAT(service_.listed[0].states(), ElementsAre(v1::Job::FAILED, v1::Job::RUNNING));
  EXPECT_EQ(service_.listed[0].labels().at("a"), "b");
  EXPECT_EQ(service_.listed[1].page_token(), "1");
  EXPECT_EQ(Run({"list", "--limit", "1"}), 0);
  EXPECT_THAT(out(), Not(HasSubstr("old")));
  EXPECT_THAT(err(), HasSubstr("there are more"));
}

TEST_F(CliTest, CancelSendsARequestIdAndTheGracePeriod) {
  service_.job.mutable_job()->set_state(v1::Job::STOPPING);
  EXPECT_EQ(Run({"cancel", "j1", "--grace-period", "5"}), 0);
  EXPECT_EQ(service_.cancelled.at(0).grace_period().seconds(), 5);
  EXPECT_FALSE(service_.cancelled[0].request_id().empty());
  EXPECT_THAT(out(), HasSubstr("j1 is stopping"));
}

// --- watch --------------------------------------------------------------------------------------

TEST_F(CliTest, PausesAndResumes) {
  service_.job.mutable_job()->set_name("projects/default/jobs/j1");
  service_.job.mutable_job()->set_state(v1::Job::STOPPING);
  EXPECT_EQ(Run({"pause", "j1", "--grace-period", "7"}), 0);
  ASSERT_THAT(service_.paused, SizeIs(1));
  EXPECT_EQ(service_.paused[0].name(), "projects/default/jobs/j1");
  EXPECT_EQ(service_.paused[0].grace_period().seconds(), 7);
  EXPECT_FALSE(service_.paused[0].request_id().empty());
  EXPECT_THAT(out(), HasSubstr("paused when its checkpoint is written"));
  service_.job.mutable_job()->set_state(v1::Job::QUEUED);
  EXPECT_EQ(Run({"resume", "j1"}), 0);
  ASSERT_THAT(service_.resumed, SizeIs(1));
  EXPECT_THAT(out(), HasSubstr("j1 is QUEUED"));
}

TEST_F(CliTest, RetriesAsANewJobAndSaysWhereItBegins) {
  service_.job.mutable_job()->set_name("projects/default/jobs/j2");
  service_.job.mutable_job()->set_state(v1::Job::QUEUED);
  EXPECT_EQ(Run({"retry", "j1", "--name", "j2"}), 0);
  ASSERT_THAT(service_.retried, SizeIs(1));
  EXPECT_EQ(service_.retried[0].name(), "projects/default/jobs/j1");
  EXPECT_EQ(service_.retried[0].job_id(), "j2");
  EXPECT_FALSE(service_.retried[0].request_id().empty());
  EXPECT_THAT(out(), HasSubstr("j2 is QUEUED, from the beginning"));
  service_.job.mutable_job()->mutable_spec()->mutable_checkpoint()->set_restore_from("/a/step-20");
  EXPECT_EQ(Run({"retry", "j1"}), 0);
  EXPECT_THAT(out(), HasSubstr("j2 is QUEUED, from /a/step-20"));
}

TEST_F(CliTest, ShowsAndChangesNodes) {
  service_.admin.node.set_name("n3");
  service_.admin.node.set_contact(v1::Node::REACHABLE);
  service_.admin.node.set_scheduling(v1::Node::DRAINING);
  service_.admin.node.add_devices()->set_kind("H100");
  service_.admin.node.add_devices()->set_kind("H100");
  EXPECT_EQ(Run({"nodes", "list"}), 0);
  EXPECT_THAT(out(), AllOf(HasSubstr("n3"), HasSubstr("REACHABLE"), HasSubstr("DRAINING"),
                           HasSubstr("2 H100"), Not(HasSubstr("QUARANTINED"))));
  service_.admin.node.set_quarantine("it came and went 6 times");
  EXPECT_EQ(Run({"nodes", "list"}), 0);
  EXPECT_THAT(out(), AllOf(HasSubstr("DRAINING QUARANTINED"), HasSubstr("it came and went")));
  EXPECT_EQ(Run({"nodes", "cordon", "n3", "--message", "fan"}), 0);
  EXPECT_EQ(Run({"nodes", "drain", "n3"}), 0);
  EXPECT_EQ(Run({"nodes", "resume", "n3"}), 0);
  EXPECT_EQ(Run({"nodes", "confirm-dead", "n3"}), 5) << "it is alive";
  EXPECT_THAT(service_.admin.asked, ElementsAre("list", "list", "cordon n3: fan",
                                                "drain n3: ", "resume n3", "confirm-dead n3"));
  EXPECT_EQ(Run({"nodes", "drian", "n3"}), 2);
  EXPECT_THAT(err(), HasSubstr("did you mean drain?"));
  EXPECT_EQ(Run({"nodes", "drain"}), 2);
  EXPECT_EQ(Run({"nodes"}), 2);
}

// Holds a call until the client or the end of the server cancels it; the synchronous API has no
// other way to learn of that.
grpc::Status UntilCancelled(grpc::ServerContext* context) {
  absl::Notification never;
  while (!context->IsCancelled()) never.WaitForNotificationWithTimeout(absl::Milliseconds(10));
  return grpc::Status::CANCELLED;
}

FakeJobService::WatchScript Writes(std::vector<v1::WatchJobResponse> responses,
                                   grpc::Status end = grpc::Status::OK) {
  return [responses, end](grpc::ServerContext*, const v1::WatchJobRequest&,
                          grpc::ServerWriter<v1::WatchJobResponse>* writer) {
    for (const auto& response : responses) writer->Write(response);
    return end;
  };
}

TEST_F(CliTest, WatchPrintsPlainLinesAndSucceeds) {
  service_.watches = {Writes({StateEvent(1, v1::Job::RUNNING), Step(1, 4.5), Step(2, 4.25),
                              StateEvent(2, v1::Job::SUCCEEDED)})};
  service_.job.mutable_job()->set_state(v1::Job::SUCCEEDED);
  EXPECT_EQ(Run({"watch", "j1", "--from-start"}), 0);
  EXPECT_THAT(out(), AllOf(HasSubstr("RUNNING\n"), HasSubstr("step 1/4 loss 4.5000 lr 1.000e-03"),
                           HasSubstr("tokens/s 1234 memory 1.5 GB left 6s"),
                           HasSubstr("step 2/4 loss 4.2500"), HasSubstr("j1 succeeded"),
                           Not(HasSubstr("\x1b")), Not(HasSubstr("\r"))));
}

TEST_F(CliTest, WatchRedrawsOneLineOnATerminal) {
  redraws_ = true;
  service_.watches = {Writes({Step(1, 4.5), StateEvent(1, v1::Job::RUNNING, "all ranks are up"),
                              Step(2, 4.25), StateEvent(2, v1::Job::SUCCEEDED)})};
  service_.job.mutable_job()->set_state(v1::Job::SUCCEEDED);
  EXPECT_EQ(Run({"watch", "j1", "--from-start"}), 0);
  // A bar of step 1, then the event above it with the bar drawn again in the same write.
  EXPECT_THAT(out(), HasSubstr("\r[====>   "));
  EXPECT_THAT(out(), HasSubstr("\r\x1b[KRUNNING: all ranks are up\n[====>   "));
  EXPECT_THAT(out(), HasSubstr("2/4  loss 4.2500"));
}

TEST_F(CliTest, WatchOfAFailedJobSaysWhyWhereAndWhatItSaidLast) {
  v1::Job& job = *service_.job.mutable_job();
  job.set_state(v1::Job::FAILED);
  job.set_current_attempt(2);
  job.mutable_failure()->set_reason(v1::TRAINER_SIGNAL);
  job.mutable_failure()->set_message("rank 1 was killed");
  job.mutable_failure()->set_rank(1);
  job.mutable_failure()->set_node("node0");
  job.mutable_failure()->set_signal(9);
  job.mutable_failure()->set_step(7);
  job.mutable_failure()->add_last_lines("step 7 begins");
  service_.watches = {Writes({StateEvent(1, v1::Job::FAILED)})};
  EXPECT_EQ(Run({"watch", "j1"}), 10);
  EXPECT_THAT(err(), AllOf(HasSubstr("j1 failed: TRAINER_SIGNAL: rank 1 was killed"),
                           HasSubstr("attempt 2, rank 1 on node0, step 7, signal 9"),
                           HasSubstr("    step 7 begins"), HasSubstr("switchyard logs j1")));
}

TEST_F(CliTest, WatchOfACancelledJobIsEleven) {
  service_.job.mutable_job()->set_state(v1::Job::CANCELLED);
  service_.watches = {Writes({StateEvent(1, v1::Job::CANCELLED)})};
  EXPECT_EQ(Run({"watch", "j1"}), 11);
  EXPECT_THAT(err(), HasSubstr("j1 was cancelled"));
}

TEST_F(CliTest, WatchDoesNotTakeTheEndOfAStreamForTheEndOfTheJob) {
  service_.watches = {
      Writes({StateEvent(1, v1::Job::RUNNING), Step(1, 4.5)}),
      Writes({}, grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "you read too slowly")),
      Writes({Step(2, 4.25), StateEvent(2, v1::Job::SUCCEEDED)})};
  EXPECT_EQ(Run({"watch", "j1", "--from-start"}), 0);
  ASSERT_THAT(service_.watched, SizeIs(3));
  EXPECT_EQ(service_.watched[2].after_sequence(), 1);
  EXPECT_EQ(service_.watched[2].after_step(), 1);
}

TEST_F(CliTest, WatchSurvivesARestartOfTheCoordinator) {
  absl::Notification sent;
  service_.watches = {[&](grpc::ServerContext* context, const v1::WatchJobRequest&,
                          grpc::ServerWriter<v1::WatchJobResponse>* writer) {
                        writer->Write(StateEvent(1, v1::Job::RUNNING));
                        writer->Write(Step(1, 4.5));
                        sent.Notify();
                        return UntilCancelled(context);
                      },
                      Writes({Step(2, 4.25), StateEvent(2, v1::Job::SUCCEEDED)})};
  int code = -1;
  Thread watch("watch", [&](const StopToken&) { code = Run({"watch", "j1", "--from-start"}); });
  sent.WaitForNotification();
  service_.Stop();
  service_.Start();
  watch.StopAndJoin();
  EXPECT_EQ(code, 0);
  EXPECT_THAT(err(), HasSubstr("lost the coordinator at " + service_.address()));
  ASSERT_THAT(service_.watched, SizeIs(2));
  EXPECT_EQ(service_.watched[1].after_sequence(), 1);
  EXPECT_EQ(service_.watched[1].after_step(), 1);
  EXPECT_THAT(out(), AllOf(HasSubstr("step 1/4"), HasSubstr("step 2/4")));
}

TEST_F(CliTest, CtrlCDetachesAndSaysThatTheJobGoesOn) {
  absl::Notification sent;
  service_.watches = {[&](grpc::ServerContext* context, const v1::WatchJobRequest&,
                          grpc::ServerWriter<v1::WatchJobResponse>* writer) {
    writer->Write(Step(1, 4.5));
    sent.Notify();
    return UntilCancelled(context);
  }};
  int code = -1;
  Thread watch("watch", [&](const StopToken&) { code = Run({"watch", "j1"}); });
  sent.WaitForNotification();
  interrupt_.Trigger();
  watch.StopAndJoin();
  EXPECT_EQ(code, 130);
  EXPECT_THAT(err(), AllOf(HasSubstr("detached; the job goes on"), HasSubstr("switchyard watch j1"),
                           HasSubstr("switchyard cancel j1")));
  EXPECT_THAT(service_.cancelled, IsEmpty());
}

v1::WatchJobResponse WithToken(v1::WatchJobResponse response, const std::string& token) {
  response.set_resume_token(token);
  return response;
}

TEST_F(CliTest, ACutWatchGoesOnByTheTokenOfTheLastMessage) {
  service_.job.mutable_job()->set_state(v1::Job::RUNNING);
  service_.watches = {
      Writes({WithToken(StateEvent(7, v1::Job::RUNNING), "token-7"),
              WithToken(Step(5, 4.5), "token-step-5")},
             grpc::Status(grpc::StatusCode::UNAVAILABLE, "the coordinator restarts")),
      Writes({WithToken(Step(3, 4.7), "token-step-3"),  // repeated by the next attempt
              WithToken(StateEvent(8, v1::Job::SUCCEEDED), "token-8")})};
  EXPECT_EQ(Run({"watch", "j1"}), 0);
  ASSERT_THAT(service_.watched, SizeIs(2));
  EXPECT_EQ(service_.watched[0].resume_token(), "");
  EXPECT_EQ(service_.watched[1].resume_token(), "token-step-5");
  EXPECT_THAT(out(), HasSubstr("step 3/4"));
}

TEST_F(CliTest, AWatchWhoseHistoryIsGoneBeginsAgain) {
  service_.job.mutable_job()->set_state(v1::Job::RUNNING);
  service_.watches = {
      Writes({WithToken(StateEvent(7, v1::Job::RUNNING), "token-7")},
             grpc::Status(grpc::StatusCode::UNAVAILABLE, "the coordinator restarts")),
      Writes({}, ErrorWithInfo(grpc::StatusCode::OUT_OF_RANGE, "the database was restored",
                               "RESUME_TOKEN_EXPIRED")),
      Writes({WithToken(StateEvent(3, v1::Job::SUCCEEDED), "token-3")})};
  EXPECT_EQ(Run({"watch", "j1"}), 0);
  ASSERT_THAT(service_.watched, SizeIs(3));
  EXPECT_EQ(service_.watched[2].resume_token(), "");
  EXPECT_EQ(service_.watched[2].after_sequence(), 0);
  EXPECT_THAT(err(), HasSubstr("the database was restored; showing all events"));
}

TEST_F(CliTest, ASilentStreamIsGivenUpAndTakenAgain) {
  service_.watches = {
      [](grpc::ServerContext* context, const v1::WatchJobRequest&,
         grpc::ServerWriter<v1::WatchJobResponse>*) { return UntilCancelled(context); },
      Writes({StateEvent(1, v1::Job::SUCCEEDED)})};
  Terminal terminal{out_,
                    err_,
                    interrupt_,
                    false,
                    [] { return 80; },
                    [](const std::string&) { return std::nullopt; },
                    [] { return absl::Now(); }};
  Connection connection(service_.address(), terminal);
  FollowOptions options;
  options.silence = absl::Milliseconds(50);
  EXPECT_EQ(FollowJob(connection, terminal, "projects/default/jobs/j1", options), 0);
  EXPECT_THAT(service_.watched, SizeIs(2));
}

TEST_F(CliTest, WatchOfNoJobIsNotFound) {
  service_.failures = {ErrorWithInfo(grpc::StatusCode::NOT_FOUND, "no job", "JOB_NOT_FOUND")};
  EXPECT_EQ(Run({"watch", "j1"}), 3);
}

TEST_F(CliTest, SubmitAndWatchReturnTheJobsFate) {
  service_.job.mutable_job()->set_state(v1::Job::CANCELLED);
  service_.watches = {Writes({Step(1, 4.5), StateEvent(1, v1::Job::CANCELLED)})};
  EXPECT_EQ(Run({"submit", recipe_, "--watch"}), 11);
  EXPECT_EQ(service_.watched.at(0).after_step(), 0);
  EXPECT_THAT(out(), HasSubstr("step 1/4 loss 4.5000"));
}

TEST_F(CliTest, WatchAsJsonIsOneObjectPerLine) {
  service_.job.mutable_job()->set_state(v1::Job::SUCCEEDED);
  service_.watches = {Writes({Step(1, 4.5), StateEvent(1, v1::Job::SUCCEEDED)})};
  EXPECT_EQ(Run({"watch", "j1", "-o", "json", "--from-start"}), 0);
  std::istringstream lines(out());
  std::string line;
  int count = 0;
  while (std::getline(lines, line)) {
    EXPECT_THAT(ParseJson(line, "line"), IsOk());
    ++count;
  }
  EXPECT_EQ(count, 2);
}

// --- logs ---------------------------------------------------------------------------------------

v1::ReadLogsResponse Chunk(int rank, int64_t offset, const std::string& data) {
  v1::ReadLogsResponse response;
  response.mutable_position()->set_attempt(1);
  response.mutable_position()->set_rank(rank);
  response.mutable_position()->set_stream("stderr");
  response.mutable_position()->set_offset(offset);
  response.set_data(data);
  return response;
}

FakeJobService::LogScript WritesLogs(std::vector<v1::ReadLogsResponse> chunks,
                                     grpc::Status end = grpc::Status::OK) {
  return
      [chunks, end](const v1::ReadLogsRequest&, grpc::ServerWriter<v1::ReadLogsResponse>* writer) {
        for (const auto& chunk : chunks) writer->Write(chunk);
        return end;
      };
}

TEST_F(CliTest, LogsAreWholeLinesWithTheirOrigin) {
  service_.logs = {WritesLogs({Chunk(-1, 0, "40 rows\n"), Chunk(0, 0, "hel"), Chunk(1, 0, "x\n"),
                               Chunk(0, 3, "lo\nno newline")})};
  EXPECT_EQ(Run({"logs", "j1", "--tail", "7", "--attempt", "2"}), 0);
  EXPECT_EQ(out(), "prep | 40 rows\nrank 1 | x\nrank 0 | hello\nrank 0 | no newline\n");
  EXPECT_EQ(service_.read.at(0).tail_lines(), 7);
  EXPECT_EQ(service_.read[0].attempt(), 2);
}

TEST_F(CliTest, LogsOfOneRankHaveNoPrefix) {
  service_.logs = {WritesLogs({Chunk(-1, 0, "40 rows\n")})};
  EXPECT_EQ(Run({"logs", "j1", "--rank", "prep"}), 0);
  EXPECT_EQ(out(), "40 rows\n");
  EXPECT_THAT(service_.read.at(0).ranks(), ElementsAre(-1));
}

TEST_F(CliTest, FollowedLogsGoOnWhereTheConnectionBroke) {
  service_.job.mutable_job()->set_state(v1::Job::SUCCEEDED);
  service_.logs = {
      WritesLogs({Chunk(0, 10, "one\ntw")}, grpc::Status(grpc::StatusCode::UNAVAILABLE, "restart")),
      WritesLogs({Chunk(0, 16, "o\n")})};
  EXPECT_EQ(Run({"logs", "-f", "j1"}), 0);
  EXPECT_EQ(out(), "rank 0 | one\nrank 0 | two\n");
  ASSERT_THAT(service_.read, SizeIs(2));
  ASSERT_EQ(service_.read[1].positions_size(), 1);
  EXPECT_EQ(service_.read[1].positions(0).offset(), 16);
}

}  // namespace
}  // namespace switchyard
