#include "worker/agent/job_files.h"

#include <google/protobuf/util/message_differencer.h>

#include <set>
#include <string>

#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace switchyard {
namespace {

using testing::HasSubstr;

TEST(JobFilesTest, FoldersAreNamedAfterTheAttempt) {
  absl::StatusOr<std::string> folder = AttemptFolder("/s", {JobId("projects/default/jobs/j1"), 3});
  ASSERT_THAT(folder, IsOk());
  EXPECT_EQ(*folder, "/s/attempts/default.j1.3");
  for (const char* job : {"", "j1", "projects/p/jobs/", "projects//jobs/j", "projects/p/jobs/j/x",
                          "projects/../jobs/j", "jobs/p/projects/j"}) {
    EXPECT_THAT(AttemptFolder("/s", {JobId(job), 1}), StatusIs(absl::StatusCode::kInvalidArgument))
        << job;
  }
}

TEST(JobFilesTest, SpecKeepsNamesAndPrintsDefaults) {
  v1::JobSpec spec;
  spec.mutable_model()->set_path("/m");
  spec.mutable_batch()->set_max_steps(5);
  spec.mutable_optimizer()->set_kind(v1::OPTIMIZER_KIND_ADAMW);
  spec.mutable_optimizer()->set_lr(1e-4);
  spec.set_seed(42);
  absl::StatusOr<Json> json = SpecToJson(spec);
  ASSERT_THAT(json, IsOk());
  const Json* batch = JsonFind(*json, "batch");
  ASSERT_NE(batch, nullptr);
  EXPECT_EQ(DumpJson((*batch)["max_steps"]), "\"5\"");
  EXPECT_EQ(DumpJson((*batch)["global_batch_size"]), "0");
  const Json* optimizer = JsonFind(*json, "optimizer");
  ASSERT_NE(optimizer, nullptr);
  EXPECT_EQ(DumpJson((*optimizer)["kind"]), "\"OPTIMIZER_KIND_ADAMW\"");
  EXPECT_EQ(JsonGet<double>(*optimizer, "lr").value(), 1e-4);
  EXPECT_EQ(JsonFind((*json)["model"], "aux_loss_coef"), nullptr);  // optional and unset
}

TEST(JobFilesTest, ReadsTheLastLineOfPrep) {
  absl::StatusOr<PrepResult> prep = ParsePrepOutput(
      "reading\n\n"
      R"({"folder":"/t/ab","cached":false,"report":{"train":{"rows":120,"tokens":9}}})"
      "\n");
  ASSERT_THAT(prep, IsOk());
  EXPECT_EQ(prep->folder, "/t/ab");
  EXPECT_EQ(prep->train_rows, 120);
  EXPECT_EQ(prep->data_report, R"({"train":{"rows":120,"tokens":9}})");
}

TEST(JobFilesTest, RefusesWhatPrepShouldNotPrint) {
  EXPECT_THAT(ParsePrepOutput(""),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("no result")));
  EXPECT_THAT(ParsePrepOutput("done\n"), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_FALSE(ParsePrepOutput("{\"cached\":true}").ok());
}

class ConfigFrameTest : public testing::Test {
 protected:
  ConfigFrameTest() {
    assign_.set_job("projects/default/jobs/j1");
    assign_.set_attempt(2);
    assign_.set_job_uid("uid");
    assign_.set_first_rank(4);
    assign_.set_world_size(8);
    assign_.add_devices(0);
    assign_.add_devices(1);
    assign_.set_job_dir("/a/j1");
    assign_.set_resume_from("/a/j1/checkpoints/step-5");
    assign_.mutable_spec()->mutable_data()->add_validation()->set_name("wiki");
    assign_.mutable_spec()->mutable_data()->add_validation();
    prep_.folder = "/t/ab";
  }
  ConfigFrame Make(int local_rank, const DeviceInfo& device) {
    return MakeConfigFrame(assign_, Json::object(), prep_, {"10.0.0.1", 29500}, local_rank, device,
                           /*num_cores=*/9);
  }
  v1::Assign assign_;
  PrepResult prep_;
};

TEST_F(ConfigFrameTest, PlacesTheRank) {
  const ConfigFrame frame = Make(1, {1, "cpu", 0, ""});
  EXPECT_EQ(frame.rank, 5);
  EXPECT_EQ(frame.local_rank, 1);
  EXPECT_EQ(frame.world_size, 8);
  EXPECT_EQ(frame.attempt, 2);
  EXPECT_EQ(frame.job_uid, "uid");
  EXPECT_EQ(frame.master_address, "10.0.0.1");
  EXPECT_EQ(frame.master_port, 29500);
  EXPECT_EQ(frame.device, "cpu");
  EXPECT_EQ(frame.threads, 4);  // 9 cores for 2 ranks
  EXPECT_EQ(frame.job_dir, "/a/j1");
  EXPECT_EQ(frame.resume_from, "/a/j1/checkpoints/step-5");
  EXPECT_EQ(frame.train_tokens, "/t/ab/train.tok");
  ASSERT_EQ(frame.validation_tokens.size(), 2u);
  EXPECT_EQ(frame.validation_tokens[0].path, "/t/ab/validation-wiki.tok");
  EXPECT_EQ(frame.validation_tokens[1].name, "validation");
}

TEST_F(ConfigFrameTest, ChoosesDeviceAndThreads) {
  const DeviceInfo gpu{3, "NVIDIA H100", 80ll << 30, "GPU-x"};
  EXPECT_EQ(Make(0, gpu).device, "cuda:3");
  assign_.mutable_spec()->mutable_parallel()->set_cpu_only(true);
  assign_.mutable_spec()->mutable_parallel()->set_threads_per_rank(3);
  EXPECT_EQ(Make(0, gpu).device, "cpu");
  EXPECT_EQ(Make(0, gpu).threads, 3);
}

TEST(JobFilesTest, EveryStepFieldIsForwarded) {
  // Every field of StepMetrics but those that the agent adds, from JSON, so that a field that is
  // new in the proto fails here until the frame has it.
  Json json{{"type", "step"}};
  const std::set<std::string> added = {"time", "attempt"};
  const google::protobuf::Descriptor* descriptor = v1::StepMetrics::descriptor();
  for (int i = 0; i < descriptor->field_count(); ++i) {
    const google::protobuf::FieldDescriptor* field = descriptor->field(i);
    if (added.count(field->name()) > 0) continue;
    if (field->is_map()) {
      json[field->name()] = Json{{"forward", 0.5}};
    } else if (field->is_repeated()) {
      json[field->name()] = {0.5, 0.25};
    } else if (field->cpp_type() == google::protobuf::FieldDescriptor::CPPTYPE_STRING) {
      json[field->name()] = "text";
    } else if (field->cpp_type() == google::protobuf::FieldDescriptor::CPPTYPE_BOOL) {
      json[field->name()] = true;
    } else {
      json[field->name()] = i + 1;
    }
  }
  absl::StatusOr<RankFrame> frame = ParseRankFrame(json);
  ASSERT_THAT(frame, IsOk());
  const StepFrame* step = std::get_if<StepFrame>(&*frame);
  ASSERT_NE(step, nullptr);
  const v1::StepMetrics metrics = ToStepMetrics(*step);
  for (int i = 0; i < descriptor->field_count(); ++i) {
    const google::protobuf::FieldDescriptor* field = descriptor->field(i);
    const bool set = field->is_repeated() ? metrics.GetReflection()->FieldSize(metrics, field) > 0
                                          : metrics.GetReflection()->HasField(metrics, field);
    EXPECT_EQ(set, added.count(field->name()) == 0) << field->name();
  }
  EXPECT_EQ(metrics.step(), 1);
  EXPECT_EQ(metrics.loss(), 4);
}

}  // namespace
}  // namespace switchyard
