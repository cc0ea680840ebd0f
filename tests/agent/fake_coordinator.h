// A coordinator for the agent's tests: a gRPC server that can go away and come back on the same
// port, remembers what agents said, and says what the test wants.
#ifndef SWITCHYARD_TESTS_AGENT_FAKE_COORDINATOR_H_
#define SWITCHYARD_TESTS_AGENT_FAKE_COORDINATOR_H_

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "switchyard/v1/agent_link.pb.h"

namespace switchyard {

// What agents have said so far; guarded by the coordinator's mutex while a condition looks at it.
struct CoordinatorRecord {
  std::vector<v1::RegisterRequest> registrations;
  std::map<int64_t, v1::Report> reports;  // by number, each stored once
  int num_resent = 0;                     // reports that came again, and were the same
  std::vector<std::string> faults;        // what no agent should do
  std::vector<v1::CommitCheckpointRequest> commits;
  int num_sessions = 0;
  int num_heartbeats = 0;
  v1::SessionRequest last_heartbeat;
};

// What it answers. Changed with Configure.
struct CoordinatorBehaviour {
  int64_t epoch = 1;
  absl::Duration heartbeat_interval = absl::Milliseconds(50);
  absl::Duration lease_ttl = absl::Seconds(120);
  bool refuse_registrations = false;
  std::string refusal_reason;  // not empty: ALREADY_EXISTS with this ErrorInfo reason
  bool acknowledge_heartbeats = true;
  bool refuse_reports = false;       // UNAVAILABLE
  bool lose_report_answers = false;  // stored, then UNAVAILABLE
  int refuse_commits = 0;            // so many times UNAVAILABLE
  bool reject_commits = false;       // FAILED_PRECONDITION
  std::vector<v1::AttemptRef> stale_at_register;
  std::vector<v1::AttemptRef> stale_at_report;
};

// Thread-safe.
class FakeCoordinator {
 public:
  FakeCoordinator();
  ~FakeCoordinator();

  // host:port, the same for every start.
  std::string target() const;
  void Start();
  // Ends all sessions and calls.
  void Stop();
  void Configure(const std::function<void(CoordinatorBehaviour&)>& change);

  // To the newest session; waits for one. False: there was none within 30 s.
  bool Send(const v1::SessionResponse& order);

  // Waits at most 30 s until `condition` holds of the record.
  bool WaitFor(const std::function<bool(const CoordinatorRecord&)>& condition);
  CoordinatorRecord record() const;

 private:
  class Service;
  std::unique_ptr<Service> service_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_TESTS_AGENT_FAKE_COORDINATOR_H_
