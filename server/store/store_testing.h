// A store in a folder of its own, and the short words that its tests are written in.
#ifndef SWITCHYARD_SERVER_STORE_STORE_TESTING_H_
#define SWITCHYARD_SERVER_STORE_STORE_TESTING_H_

#include <stdlib.h>

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/store/store.h"

namespace switchyard {

class TempFolder {
 public:
  TempFolder() {
    std::string pattern = testing::TempDir() + "store_test.XXXXXX";
    path_ = ::mkdtemp(pattern.data());
  }
  ~TempFolder() { std::filesystem::remove_all(path_); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

inline JobRecord MakeJob(const std::string& name, int ranks = 2, int retries = 0) {
  JobRecord job;
  job.id = JobId("projects/p/jobs/" + name);
  job.uid = "uid-" + name;
  job.project = "p";
  job.spec = std::string("spec\0with zero", 14);
  job.needs.num_ranks = ranks;
  job.needs.max_retries = retries;
  return job;
}

inline NodeRecord MakeNode(const std::string& name, const std::string& incarnation,
                           int devices = 2) {
  NodeRecord node;
  node.id = NodeId(name);
  node.incarnation = Incarnation(incarnation);
  node.boot_id = "boot";
  node.address = "127.0.0.1";
  for (int i = 0; i < devices; ++i) node.devices.push_back({i, "cpu", 1 << 30, ""});
  return node;
}

inline std::unique_ptr<Store> OpenStore(const std::string& folder, Clock& clock,
                                        std::function<void()> hook = nullptr) {
  StoreOptions options;
  options.folder = folder;
  if (hook) {
    options.statement_hook = [hook = std::move(hook)](absl::string_view) {
      hook();
      return absl::OkStatus();
    };
  }
  absl::StatusOr<std::unique_ptr<Store>> store = Store::Open(std::move(options), clock);
  EXPECT_THAT(store, IsOk());
  return store.ok() ? *std::move(store) : nullptr;
}

class StoreTest : public testing::Test {
 protected:
  void SetUp() override { store_ = OpenStore(folder_.path(), clock_); }

  JobRecord Create(const std::string& name, int ranks = 2, int retries = 0) {
    const auto job = store_->CreateJob(MakeJob(name, ranks, retries), {});
    EXPECT_THAT(job, IsOk());
    return *job;
  }
  JobRecord Get(const JobRecord& job) { return *store_->GetJob(job.id); }

  // One attempt over the nodes, two devices each.
  AttemptId Place(const JobRecord& job, const std::vector<std::string>& nodes,
                  const std::string& resume_from = "") {
    GangPlacement gang{job.id, Get(job).version, {}, resume_from};
    for (const std::string& node : nodes) gang.members.push_back({NodeId(node), {0, 1}});
    EXPECT_THAT(store_->Apply(Plan{{gang}, {}}), IsOk());
    EXPECT_EQ(Get(job).state, JobState::kStarting) << Get(job).message;
    return {job.id, Get(job).current_attempt};
  }
  ReportRecord Say(const std::string& node, const AttemptId& attempt,
                   decltype(ReportRecord::what) what) {
    return {++numbers_[node], attempt, std::move(what)};
  }
  ReportResult Report(const std::string& node, std::vector<ReportRecord> reports) {
    const auto result =
        store_->RecordReports(NodeId(node), Incarnation("i-" + node), std::move(reports));
    EXPECT_THAT(result, IsOk());
    return result.ok() ? *result : ReportResult{};
  }
  void Register(const std::string& node) {
    ASSERT_THAT(store_->RegisterNode(MakeNode(node, "i-" + node), {}), IsOk());
  }
  std::vector<OrderRecord> Orders(const std::string& node) {
    auto orders = store_->TakeOrders(NodeId(node), Incarnation("i-" + node));
    EXPECT_THAT(orders, IsOk());
    return *std::move(orders);
  }
  void Run(const std::string& node, const AttemptId& attempt) {
    Orders(node);
    Report(node,
           {Say(node, attempt, PreparedReport{4000, ""}), Say(node, attempt, RunningReport{})});
  }
  void CommitFinal(const std::string& node, const AttemptId& attempt, int64_t step) {
    CheckpointRecord c;
    c.job = attempt.job;
    c.attempt = attempt.number;
    c.step = step;
    c.final = true;
    const auto row = store_->BeginCheckpoint(NodeId(node), Incarnation("i-" + node), c);
    ASSERT_THAT(row, IsOk());
    ASSERT_THAT(store_->EndCheckpoint(*row, absl::OkStatus()), IsOk());
  }

  TempFolder folder_;
  SimClock clock_;
  std::unique_ptr<Store> store_;
  std::map<std::string, int64_t> numbers_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_SERVER_STORE_STORE_TESTING_H_
