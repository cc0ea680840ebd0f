#include "worker/link/messages.h"

#include <cmath>
#include <limits>
#include <string>

#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace switchyard {
namespace {

using testing::AllOf;
using testing::HasSubstr;

TEST(MessagesTest, RankFramesMatchTheContract) {
  const std::pair<RankFrame, const char*> cases[] = {
      {HelloFrame{1, 123}, R"({"type":"hello","rank":1,"pid":123})"},
      {PhaseFrame{"loading", "x"}, R"({"type":"phase","name":"loading","message":"x"})"},
      {PlanFrame{1, 2, 3, 4, 5, 15},
       R"({"type":"plan","weights":1,"gradients":2,"optimizer":3,"activations":4,"buffers":5,"total":15})"},
      {ValidationFrame{10, "validation", 4.25, 1000},
       R"({"type":"validation","step":10,"name":"validation","loss":4.25,"tokens":1000})"},
      {WarningFrame{"w"}, R"({"type":"warning","message":"w"})"},
      {CheckpointFrame{10, "/j/staging/1/step-10", 4294967295u, true, 4.5, std::nullopt},
       R"({"type":"checkpoint","step":10,"path":"/j/staging/1/step-10","manifest_crc32c":4294967295,)"
       R"("final":true,"loss":4.5,"validation_loss":null})"},
      {ErrorFrame{FailureReason::kNanLoss, "loss is nan", 12},
       R"({"type":"error","reason":"NAN_LOSS","message":"loss is nan","step":12})"},
      {DoneFrame{100, false}, R"({"type":"done","step":100,"stopped":false})"},
  };
  for (const auto& [frame, text] : cases) {
    EXPECT_EQ(DumpJson(ToJson(frame)), text);
    absl::StatusOr<RankFrame> parsed = ParseRankFrame(ParseJson(text, "case").value());
    ASSERT_THAT(parsed, IsOk());
    EXPECT_EQ(parsed->index(), frame.index());
    EXPECT_EQ(DumpJson(ToJson(*parsed)), text);
  }
}

TEST(MessagesTest, StepFrameCarriesEveryFieldThere) {
  StepFrame step;
  step.step = 7;
  step.total_steps = 100;
  step.epoch = 0.5;
  step.loss = 2.25;
  step.aux_loss = 1.5;
  step.grad_norm = 3.5;
  step.learning_rate = 1e-4;
  step.tokens = 4096;
  step.supervised_tokens = 1000;
  step.step_seconds = 0.125;
  step.tokens_per_second = 32768;
  step.supervised_tokens_per_second = 8000;
  step.memory_bytes = 1ll << 40;
  step.mfu = 0.375;
  step.expert_load_max_over_mean = 1.25;
  step.skipped = true;
  step.skipped_total = 2;
  step.checkpoint_failures = 3;
  step.validation_loss = 2.75;
  step.validation_name = "v";
  step.phase_seconds = {{"backward", 0.5}, {"forward", 0.25}};
  step.rank_busy_seconds = {0.1, 0.125};
  absl::StatusOr<RankFrame> parsed = ParseRankFrame(ToJson(RankFrame(step)));
  ASSERT_THAT(parsed, IsOk());
  const StepFrame* got = std::get_if<StepFrame>(&*parsed);
  ASSERT_NE(got, nullptr);
  EXPECT_EQ(got->memory_bytes, 1ll << 40);
  EXPECT_EQ(got->validation_loss, 2.75);
  EXPECT_EQ(got->phase_seconds, step.phase_seconds);
  EXPECT_EQ(DumpJson(ToJson(*parsed)), DumpJson(ToJson(RankFrame(step))));
  EXPECT_EQ(ToJson(*parsed).size(), 23u);  // 22 fields and the type
}

TEST(MessagesTest, NumbersThatAreNotFiniteSurvive) {
  StepFrame step;
  step.loss = std::nan("");
  step.grad_norm = std::numeric_limits<double>::infinity();
  step.aux_loss = -std::numeric_limits<double>::infinity();
  const std::string text = DumpJson(ToJson(RankFrame(step)));
  EXPECT_THAT(text, AllOf(HasSubstr(R"("loss":"NaN")"), HasSubstr(R"("grad_norm":"Infinity")")));
  absl::StatusOr<RankFrame> parsed = ParseRankFrame(ParseJson(text, "step").value());
  ASSERT_THAT(parsed, IsOk());
  const StepFrame* got = std::get_if<StepFrame>(&*parsed);
  ASSERT_NE(got, nullptr);
  EXPECT_TRUE(std::isnan(got->loss));
  EXPECT_EQ(got->grad_norm, std::numeric_limits<double>::infinity());
  EXPECT_EQ(got->aux_loss, -std::numeric_limits<double>::infinity());
}

TEST(MessagesTest, AgentFramesMatchTheContract) {
  ConfigFrame config;
  config.job = Json{{"seed", 42}};
  config.job_name = "projects/default/jobs/j1";
  config.job_uid = "u";
  config.attempt = 1;
  config.rank = 0;
  config.world_size = 2;
  config.master_address = "127.0.0.1";
  config.master_port = 29500;
  config.device = "cpu";
  config.job_dir = "/artifacts/default/j1";
  config.train_tokens = "/t/train.tok";
  config.validation_tokens = {{"validation", "/t/validation-validation.tok"}};
  const std::pair<AgentFrame, const char*> cases[] = {
      {config,
       R"({"type":"config","job":{"seed":42},"job_name":"projects/default/jobs/j1","job_uid":"u",)"
       R"("attempt":1,"rank":0,"world_size":2,"local_rank":0,"master_address":"127.0.0.1",)"
       R"("master_port":29500,"device":"cpu","threads":1,"job_dir":"/artifacts/default/j1",)"
       R"("resume_from":"","train_tokens":"/t/train.tok","validation_tokens":)"
       R"([{"name":"validation","path":"/t/validation-validation.tok"}]})"},
      {StopFrame{"cancelled", true}, R"({"type":"stop","reason":"cancelled","checkpoint":true})"},
      {CheckpointResultFrame{10, true, "/j/checkpoints/step-10", ""},
       R"({"type":"checkpoint_result","step":10,"ok":true,"path":"/j/checkpoints/step-10","error":""})"},
  };
  for (const auto& [frame, text] : cases) {
    EXPECT_EQ(DumpJson(ToJson(frame)), text);
    absl::StatusOr<AgentFrame> parsed = ParseAgentFrame(ParseJson(text, "case").value());
    ASSERT_THAT(parsed, IsOk());
    EXPECT_EQ(parsed->index(), frame.index());
    EXPECT_EQ(DumpJson(ToJson(*parsed)), text);
  }
}

TEST(MessagesTest, FaultsNameFrameAndMember) {
  const std::pair<const char*, const char*> cases[] = {
      {R"({"rank":0})", "'type' is missing"},
      {R"({"type":"helo"})", "unknown type 'helo'"},
      {R"({"type":"config"})", "unknown type 'config'"},  // an agent's frame, not a rank's
      {R"({"type":"hello","rank":0})", "hello frame: key 'pid' is missing"},
      {R"({"type":"hello","rank":"x","pid":1})", "hello frame: key 'rank': expected an integer"},
      {R"({"type":"error","reason":"OOPS","message":"m"})", "unknown failure reason 'OOPS'"},
      {R"({"type":"checkpoint","step":1,"path":"p","manifest_crc32c":-1})", "not a 32-bit number"},
      {R"({"type":"step","step":1,"loss":1,"phase_seconds":{"a":"b"}})", "key 'a'"},
      {R"({"type":"step","step":1,"loss":1,"phase_seconds":[]})", "expected an object"},
  };
  for (const auto& [text, message] : cases) {
    EXPECT_THAT(ParseRankFrame(ParseJson(text, "case").value()),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(message)))
        << text;
  }
}

TEST(MessagesTest, UnknownMembersAreIgnored) {
  EXPECT_THAT(ParseRankFrame(Json{{"type", "done"}, {"step", 1}, {"new", 2}}), IsOk());
}

}  // namespace
}  // namespace switchyard
