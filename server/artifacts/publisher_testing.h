// A job whose trainers publish checkpoints: what the tests of this folder share.
#ifndef SWITCHYARD_SERVER_ARTIFACTS_PUBLISHER_TESTING_H_
#define SWITCHYARD_SERVER_ARTIFACTS_PUBLISHER_TESTING_H_

#include <stdlib.h>

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/crc32c.h"
#include "base/fd.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/artifacts/publisher.h"

namespace switchyard {

// A running attempt of job p/j on node n, whose trainers write checkpoints.
class PublisherTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = testing::TempDir() + "publisher_test.XXXXXX";
    folder_ = ::mkdtemp(pattern.data());
    StoreOptions options;
    options.folder = folder_ + "/state";
    auto store = Store::Open(std::move(options), clock_);
    ASSERT_THAT(store, IsOk());
    store_ = *std::move(store);
    publisher_ = std::make_unique<Publisher>(*store_, root_ = folder_ + "/artifacts", true);

    NodeRecord node;
    node.id = node_;
    node.incarnation = incarnation_;
    node.boot_id = "boot";
    node.devices.push_back({0, "cpu", 1 << 30, ""});
    ASSERT_THAT(store_->RegisterNode(node, {}), IsOk());
    JobRecord job;
    job.id = job_;
    job.project = "p";
    job.needs.num_ranks = 1;
    job.needs.resumable = true;
    job.needs.retention = retention_;
    ASSERT_THAT(store_->CreateJob(job, {}), IsOk());
    const int64_t version = store_->GetJob(job_)->version;
    ASSERT_THAT(store_->Apply(Plan{{{job_, version, {{node_, {0}}}, ""}}, {}}), IsOk());
    ASSERT_THAT(store_->TakeOrders(node_, incarnation_), IsOk());
  }
  void TearDown() override {
    store_.reset();
    std::filesystem::remove_all(folder_);
  }

  std::string Final(int64_t step) const {
    return absl::StrCat(root_, "/p/j/checkpoints/step-", step);
  }
  std::string Staging(int64_t step) const {
    return absl::StrCat(root_, "/p/j/staging/1/step-", step);
  }
  // What a trainer leaves behind, and the request to publish it.
  CommitRequest Write(int64_t step, const std::string& weights = "weights") {
    const std::string folder = Staging(step);
    EXPECT_THAT(MakeFolders(folder + "/switchyard"), IsOk());
    EXPECT_THAT(ReplaceFile(folder + "/model.safetensors", weights), IsOk());
    const std::string manifest =
        absl::StrCat(R"({"version": 1, "job": "projects/p/jobs/j", "step": )", step,
                     R"(, "files": [{"name": "model.safetensors", "size": )", weights.size(),
                     R"(, "crc32c": ")", absl::Hex(Crc32c(weights), absl::kZeroPad8), R"("}]})");
    EXPECT_THAT(ReplaceFile(folder + "/switchyard/manifest.json", manifest), IsOk());
    CommitRequest request;
    request.node = node_;
    request.incarnation = incarnation_;
    request.checkpoint.job = job_;
    request.checkpoint.attempt = 1;
    request.checkpoint.step = step;
    request.checkpoint.staging_path = folder;
    request.checkpoint.manifest_crc32c = Crc32c(manifest);
    return request;
  }
  // The row as a coordinator that was killed in the middle of a publication left it.
  void BeginOnly(CommitRequest request) {
    request.checkpoint.path = Final(request.checkpoint.step);
    ASSERT_THAT(store_->BeginCheckpoint(node_, incarnation_, request.checkpoint), IsOk());
  }
  std::vector<CheckpointRecord> Rows(CheckpointState state) {
    return *store_->CheckpointsIn(state);
  }
  std::string LastEvent() { return store_->ReadEvents(job_, 0, 1000)->back().message; }

  RetentionRule retention_;  // of the job; set before SetUp
  const JobId job_{"projects/p/jobs/j"};
  const NodeId node_{"n"};
  const Incarnation incarnation_{"one"};
  std::string folder_;
  std::string root_;
  SimClock clock_;
  std::unique_ptr<Store> store_;
  std::unique_ptr<Publisher> publisher_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_SERVER_ARTIFACTS_PUBLISHER_TESTING_H_
