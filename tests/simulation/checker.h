// What must hold after every step of a history, whatever fails.
#ifndef SWITCHYARD_TESTS_SIMULATION_CHECKER_H_
#define SWITCHYARD_TESTS_SIMULATION_CHECKER_H_

#include <cstdint>
#include <map>
#include <set>
#include <string>

#include "server/store/store.h"
#include "tests/simulation/trainers.h"
#include "tests/simulation/world.h"

namespace switchyard::simulation {

class Checker {
 public:
  Checker(World& world, Trainers& trainers) : world_(world), trainers_(trainers) {}

  // A job whose CreateJob was answered with OK.
  void Acknowledged(const JobId& job) { acknowledged_.insert(job); }

  // After each commit, as of that moment: of the jobs that it touched,
  //   states: the row moves only as the table says, and never out of a final state;
  //   events: numbered from 1 without a gap;
  //   gangs: an open attempt has all its parts, each device once, until parts end;
  //   one writer: a part that the coordinator takes for ended has no living process;
  //   quarantine: no gang is placed on a node that is held from placement;
  //   checkpoints: at most one committed of a step; only the open attempt commits.
  void OnCommit(Store& store, const ChangeSet& changes);
  // One writer: no other attempt of the job, and no other part on these devices, lives.
  void OnPartStarted(Store* store, const Part& part);
  // No report is lost: the coordinator has acknowledged the end of this part, so it knows of it.
  // Null: it is down.
  void OnEndAcknowledged(Store* store, const SimNode& node, const AttemptId& attempt);
  // After a start of the coordinator, and at the end: nothing acknowledged is lost, nothing final
  // has changed.
  void OnRestored(Store& store);
  // At the end: as OnCommit, of all jobs; and the files of committed checkpoints are there.
  void CheckAll(Store& store);

  // While a start of the coordinator restores what a crash has left.
  void SetRecovering(bool recovering) { recovering_ = recovering; }

  bool AllFinal() const { return num_final_ == static_cast<int64_t>(jobs_.size()); }
  int64_t num_final() const { return num_final_; }
  int64_t num_known() const { return static_cast<int64_t>(jobs_.size()); }

 private:
  struct Known {
    JobState state = JobState::kQueued;
    int64_t version = 0;
    int64_t last_event = 0;
    std::map<int64_t, int32_t> committed;  // step -> attempt
  };
  void CheckJob(Store& store, const JobId& id);
  void CheckNode(Store& store, const NodeId& id);
  void CheckPlacement(Store& store, const AttemptId& id);
  void CheckParts(Store& store, const JobId& id);
  void CheckGang(Store& store, const JobRecord& job);
  void CheckCheckpoints(Store& store, const JobRecord& job, Known& known);

  World& world_;
  Trainers& trainers_;
  std::set<JobId> acknowledged_;
  std::map<JobId, Known> jobs_;
  std::set<NodeId> quarantined_;
  int64_t num_final_ = 0;
  bool recovering_ = false;
};

// Whether the part's processes can do anything now. Not those of a frozen machine; nor, for a
// moment after its thaw, those that a shim is about to kill.
bool IsAble(const Part& part);

}  // namespace switchyard::simulation

#endif  // SWITCHYARD_TESTS_SIMULATION_CHECKER_H_
