// A machine of a history: its disk, its clock, its processes. And the agent on it: production's
// AgentCore in a shell of simulated parts, in place of worker/agent/agent.cc.
#ifndef SWITCHYARD_TESTS_SIMULATION_NODE_H_
#define SWITCHYARD_TESTS_SIMULATION_NODE_H_

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "base/ids.h"
#include "tests/simulation/coordinator.h"
#include "tests/simulation/network.h"
#include "tests/simulation/trainers.h"
#include "tests/simulation/world.h"
#include "worker/agent/core.h"

namespace switchyard::simulation {

class SimAgent;

// What a history's parts have of each other.
struct Cluster {
  World& world;
  Network& network;
  SimCoordinator& coordinator;
  Trainers& trainers;
  // Called when the processes of a part come to be.
  std::function<void(const Part&)> on_part_started;
  // Called when an agent hears that the report of a part's end was stored.
  std::function<void(const SimNode&, const AttemptId&)> on_end_acknowledged;
};

class SimNode {
 public:
  SimNode(Cluster& cluster, const std::string& name, int num_devices, int num_boots_before);
  ~SimNode();

  // The disk: survives everything.
  struct Report {
    AttemptId id;
    v1::Report report;
  };
  struct Disk {
    bool full = false;
    std::vector<JournalRecord> journal;
    std::deque<Report> spool;  // not acknowledged
    std::string incarnation;   // begun in boot `incarnation_boot`
    std::string incarnation_boot;
    int64_t next_number = 1;  // of the next report, in this incarnation
    absl::Duration deadline;  // of the shims, on the clock of boot `deadline_boot`
    std::string deadline_boot;
    std::map<AttemptId, std::shared_ptr<Part>> parts;  // attempt folders
    // Checkpoints said by ranks and not answered by the coordinator.
    std::map<AttemptId, std::deque<RankFrame>> commits;
  };

  const std::string& name() const { return name_; }
  const std::string& boot_id() const { return boot_id_; }
  int num_devices() const { return num_devices_; }
  Link& link() { return link_; }
  Disk& disk() { return disk_; }
  Cluster& cluster() { return cluster_; }
  World& world() { return cluster_.world; }
  SimAgent* agent() { return agent_.get(); }

  // CLOCK_BOOTTIME of this machine: starts at its boot, runs a little fast or slow.
  absl::Duration Now() const;
  absl::Duration WorldTime(absl::Duration node_time) const;

  // --- faults ---
  void StartAgent();
  void KillAgent();
  void StopAgent(absl::Duration until) { agent_stopped_until_ = until; }  // SIGSTOP
  void TerminateAgent(absl::Duration grace);  // SIGTERM, and SIGKILL some time after the grace
  void Freeze(absl::Duration until);          // the whole machine
  void Reboot();                              // everything but the disk is gone at once

  bool frozen() const;
  // How long the agent's process does not run.
  absl::Duration AgentHeldUp() const;

  // --- processes ---
  void StartPart(const v1::Assign& assign);
  void EndPart(Part& part, PartEnd end);
  // After `delay`: SIGKILL to the part.
  void KillPart(const std::shared_ptr<Part>& part, absl::Duration delay, const std::string& why);
  void MoveDeadline(absl::Duration deadline);
  // The agent, if there is one, hears of what is new in this part.
  void TellAgent(const std::shared_ptr<Part>& part);

 private:
  void Boot();
  void WatchDeadline(const std::shared_ptr<Part>& part);

  Cluster& cluster_;
  const std::string name_;
  const int num_devices_;
  Link link_;
  Disk disk_;
  int num_boots_ = 0;
  std::string boot_id_;
  absl::Duration boot_time_;  // true time of CLOCK_BOOTTIME 0
  double rate_ = 1;
  absl::Duration frozen_until_;
  absl::Duration agent_stopped_until_;
  std::shared_ptr<SimAgent> agent_;
};

// One life of an agent's process.
class SimAgent : public std::enable_shared_from_this<SimAgent>, public AgentJournal {
 public:
  explicit SimAgent(SimNode& node);
  void Start();
  // The process is gone: nothing of it runs any more.
  void Die();
  void OnPartNews(const AttemptId& id);
  // SIGTERM.
  void Shutdown(absl::Duration grace);
  const AgentCore& core() const { return *core_; }

  absl::Status Append(const JournalRecord& record) override;

 private:
  // Runs `action` in this process: not after its death, and not while it is stopped.
  void Run(std::function<void()> action);
  void Later(absl::Duration delay, std::function<void()> action);
  void ArmTimer();
  void Carry(const AgentActions& actions);
  void Carry(const absl::StatusOr<AgentActions>& actions);
  void Do(const LaunchPrep& action);
  void Do(const LaunchGang& action);
  void Do(const AdoptGang& action);
  void Do(const StopAttempt& action);
  void Do(const SendReport& action);
  void Do(const ForgetAttempt& action);
  void Do(const MoveDeadline& action);
  void Do(const EndSession& action);
  void Do(const RenewIncarnation& action);

  void Register();
  void OpenSession();
  void CloseSession(const std::string& why);
  void RegisterLater();
  void Heartbeat(int64_t session);
  void AddReport(const AttemptId& id, v1::Report report);
  void SendReports();
  void Acknowledge(int64_t number);
  void SendCommit(const AttemptId& id);
  void OnCommitAnswer(const AttemptId& id, const RankFrame& frame, const absl::Status& status);
  void ReadPart(const AttemptId& id);
  ReportNumbers Numbers() const;
  // From now on the oldest report has number 1.
  void BeginIncarnation();
  const std::string& incarnation() const { return node_.disk().incarnation; }

  SimNode& node_;
  World& world_;
  bool dead_ = false;
  std::unique_ptr<AgentCore> core_;
  std::set<AttemptId> preparing_;
  std::map<AttemptId, StopRequest> stops_;  // given to attempts whose processes live
  std::set<AttemptId> committing_;          // a call is on its way
  std::shared_ptr<Stream> stream_;
  int64_t session_ = 0;
  bool registering_ = false;
  bool reporting_ = false;
  int failures_ = 0;
  int report_failures_ = 0;
  absl::Duration armed_ = absl::InfiniteDuration();
};

}  // namespace switchyard::simulation

#endif  // SWITCHYARD_TESTS_SIMULATION_NODE_H_
