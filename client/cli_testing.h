// Runs command lines in this process against a fake coordinator.
#ifndef SWITCHYARD_CLIENT_CLI_TESTING_H_
#define SWITCHYARD_CLIENT_CLI_TESTING_H_

#include <sstream>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/status_matchers.h"
#include "client/commands.h"
#include "client/fake_job_service.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace switchyard {

inline constexpr char kRecipe[] = R"(
step_scheduler: {global_batch_size: 8, local_batch_size: 2, max_steps: 100}
model: {pretrained_model_name_or_path: /models/m}
dataset: {path_or_dataset_id: /data/d.jsonl}
optimizer: {lr: 1e-4}
job: {display_name: mine, labels: {team: a}}
)";

class CliTest : public testing::Test {
 protected:
  void SetUp() override {
    service_.job.mutable_job()->set_name("projects/default/jobs/j1");
    service_.job.mutable_job()->set_state(v1::Job::RUNNING);
    service_.Start();
    recipe_ = testing::TempDir() + "/cli_test_recipe.yaml";
    ASSERT_THAT(ReplaceFile(recipe_, kRecipe), IsOk());
  }
  void TearDown() override { service_.Stop(); }

  // Runs one command line against the fake service.
  int Run(std::vector<std::string> args) {
    out_.str("");
    err_.str("");
    args.insert(args.end(), {"--server", service_.address()});
    Terminal terminal{out_,
                      err_,
                      interrupt_,
                      redraws_,
                      [this] { return width_; },
                      [](const std::string&) { return std::nullopt; },
                      [] { return absl::Now(); }};
    return RunCli(args, terminal);
  }
  std::string out() const { return out_.str(); }
  std::string err() const { return err_.str(); }

  FakeJobService service_;
  Interrupt interrupt_;
  bool redraws_ = false;
  int width_ = 80;
  std::string recipe_;
  std::ostringstream out_, err_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_CLIENT_CLI_TESTING_H_
