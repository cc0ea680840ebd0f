// One agent of this process, with a fake coordinator and fake programs.
#ifndef SWITCHYARD_TESTS_AGENT_AGENT_FIXTURE_H_
#define SWITCHYARD_TESTS_AGENT_AGENT_FIXTURE_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "tests/agent/fake_coordinator.h"
#include "worker/agent/agent.h"
#include "worker/agent/subprocess.h"

namespace switchyard {

inline constexpr char kJob[] = "projects/default/jobs/j1";

// Waits at most 30 s for what has no descriptor or condition to wait for (files, processes).
bool Eventually(const std::function<bool()>& condition);
bool ProcessExists(pid_t pid);

// Reports of one attempt, by kind.
std::vector<v1::Report> ReportsOf(const CoordinatorRecord& record, v1::Report::WhatCase what,
                                  int attempt = 1, const std::string& job = kJob);
// A log stream put together; "<gap>" where a byte is missing or came twice.
std::string LogOf(const CoordinatorRecord& record, int rank, const std::string& stream);

// Of a fake trainer that printed "pid <pid>"; 0: it has not.
pid_t PidOf(const CoordinatorRecord& record, int rank);
// Dead, awaited; also when nobody has collected it.
bool IsGone(pid_t pid);

class AgentTest : public testing::Test {
 protected:
  void SetUp() override;
  void TearDown() override;

  // With `num_devices` CPU slots.
  void StartAgent(int num_devices = 2);
  // An Assign with these modes of the fake programs, one rank per mode on devices first_device, ...
  v1::SessionResponse Assign(const std::vector<std::string>& rank_modes,
                             const std::string& prep_mode = "ok", int attempt = 1,
                             const std::string& job = kJob, int first_device = 0);
  v1::SessionResponse StartOrder(int attempt = 1, const std::string& job = kJob);
  v1::SessionResponse StopOrder(absl::Duration grace, bool checkpoint, int attempt = 1,
                                const std::string& job = kJob);
  // Assigns, waits for Prepared, starts.
  void Launch(const std::vector<std::string>& rank_modes, int attempt = 1,
              const std::string& job = kJob, int first_device = 0);
  // Waits until the attempt has a report of this kind.
  bool WaitForReport(v1::Report::WhatCase what, int attempt = 1, const std::string& job = kJob,
                     int count = 1);
  // The Finished report of the attempt, awaited.
  v1::Finished AwaitFinished(int attempt = 1, const std::string& job = kJob);
  // Waits for so many live trainers and returns their pids in rank order.
  std::vector<pid_t> AwaitTrainers(size_t count);

  std::string folder_;
  AgentConfig config_;
  FakeCoordinator coordinator_;
  std::shared_ptr<AgentMetrics> metrics_ = std::make_shared<AgentMetrics>();
  std::unique_ptr<Agent> agent_;
};

// The same with the agent as a program of its own.
class AgentProgramTest : public AgentTest {
 protected:
  absl::StatusOr<std::unique_ptr<Subprocess>> StartProgram(
      const std::vector<std::string>& flags = {});
  // Waits for the "pid <pid>" that some fake trainers print.
  bool WaitForPid(int rank);
};

}  // namespace switchyard

#endif  // SWITCHYARD_TESTS_AGENT_AGENT_FIXTURE_H_
