// This node's part of one attempt at a job: prepare the data, wait for the start, let a shim run
// one trainer per device, and account for every process until the last one is gone.
//
//   PREPARING -> PREPARED -> RUNNING -> FINISHED
//   Any state goes to FINISHED by a failure or a stop; or to none of them, when there was nothing
//   to adopt. It is FINISHED after the last process is gone, all log bytes are in the spool, and no
//   process uses its devices.
//
// The trainers belong to their shim (worker/shim) and survive this process; what is known of them
// is in the attempt's folder, and an Attempt that adopts goes on from there. Prep is a child of
// this process, and dies with it.
//
// One thread per attempt watches the processes. Another one publishes
// checkpoints, because that call waits for the coordinator. A gang that ended well is FINISHED only
// when its last checkpoint is published: the trainers wait for that too, but not for ever.
#ifndef SWITCHYARD_WORKER_AGENT_ATTEMPT_H_
#define SWITCHYARD_WORKER_AGENT_ATTEMPT_H_

#include <sys/types.h>

#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/fd.h"
#include "base/ids.h"
#include "base/monitor.h"
#include "base/thread.h"
#include "switchyard/v1/agent_link.pb.h"
#include "worker/agent/captured_process.h"
#include "worker/agent/config.h"
#include "worker/agent/core.h"
#include "worker/agent/device_inventory.h"
#include "worker/agent/failure.h"
#include "worker/agent/job_files.h"
#include "worker/agent/metrics.h"
#include "worker/agent/positions.h"
#include "worker/agent/progress_watch.h"
#include "worker/agent/report_spool.h"
#include "worker/agent/shim_gang.h"
#include "worker/link/frame_file.h"
#include "worker/link/messages.h"

namespace switchyard {

// What an attempt asks of, and tells, its agent. Called on the attempt's threads, never under a
// lock.
struct AttemptHooks {
  // The answers to LaunchPrep, LaunchGang and AdoptGang (core.h).
  std::function<void(v1::Prepared prepared)> prepared;
  std::function<void(v1::Finished finished)> ended;
  std::function<void()> nothing_to_adopt;
  // Publishes a checkpoint at the coordinator, retrying while it is away, until told to stop.
  std::function<absl::StatusOr<v1::Checkpoint>(const v1::CommitCheckpointRequest& request,
                                               const StopToken& stop)>
      commit;
  // Those of the devices that some process uses.
  std::function<std::vector<int>(const std::vector<DeviceInfo>& devices)> busy_devices;
  // These stay in use though the attempt has ended.
  std::function<void(const std::vector<int>& devices)> withhold;
};

struct AttemptSetup {
  v1::Assign assign;
  // One per rank of this node, in rank order.
  std::vector<DeviceInfo> devices;
  std::string scope;  // unique name of its processes, usable as a folder's
  // What earlier lives of this agent left is taken up; the start order of that gang.
  std::optional<v1::Start> adopt;
  bool rebooted = false;  // since then
};

// Thread-safe.
class Attempt {
 public:
  // Begins to prepare, or to adopt. The references must outlive it.
  Attempt(const AgentConfig& config, AttemptSetup setup, ReportSpool& spool, AgentMetrics& metrics,
          AttemptHooks hooks);
  // Kills what is alive and waits for it.
  ~Attempt();

  const AttemptId& id() const { return id_; }
  const std::vector<DeviceInfo>& devices() const { return devices_; }

  // Starts the trainers once prepared. Repeated calls have no effect.
  void Start(const v1::Start& start) ABSL_LOCKS_EXCLUDED(mu_);
  // In any state. The first cause stays; a later call can only make the end come earlier.
  void Stop(const StopRequest& request) ABSL_LOCKS_EXCLUDED(mu_);

  // The time at which shims kill is earlier than it was: the one of this attempt is told.
  void DeadlineMovedBack();

  bool finished() const ABSL_LOCKS_EXCLUDED(mu_);
  // False: not within `timeout`.
  bool WaitFinished(absl::Duration timeout) ABSL_LOCKS_EXCLUDED(mu_);
  // Of the trainers that are alive.
  std::vector<pid_t> pids() const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  struct Rank {
    int rank = 0;  // global
    std::unique_ptr<FrameFile> frames;
    bool frames_broken = false;
    std::shared_ptr<const LogSource> out;
    std::shared_ptr<const LogSource> err;
    int64_t out_noted = 0;  // log bytes before these were added to the spool
    int64_t err_noted = 0;
    bool end_seen = false;
    std::optional<ErrorFrame> error;
    std::optional<DoneFrame> done;
    absl::Duration error_time;  // monotonic, when `error` came
    // Where frames begin that a successor of this agent must read again.
    std::deque<int64_t> held_frames;
  };
  struct PendingStop {
    StopRequest request;
    absl::Duration term_time;  // monotonic
  };

  // The thread. Without a value: there was nothing to adopt.
  std::optional<v1::Finished> Run();
  // Each returns the final report when the attempt ends in it.
  std::optional<v1::Finished> OpenFolder();
  std::optional<v1::Finished> Prepare();
  std::optional<v1::Finished> AwaitStart();
  v1::Finished RunGang();

  absl::StatusOr<LaunchPlan> MakePlan();
  absl::Status LaunchGang();
  void SetUpRanks();
  void WatchGang();
  void ReadFrames(size_t index);
  void HandleFrame(size_t index, const RankFrame& frame, const FrameOrigin& origin, bool is_new);
  // Moves what a successor begins at, as far as the spool would not lose it.
  void NoteReported(size_t index);
  void MoveFolded(size_t index);
  void NoteLogs(size_t index);
  void MakeRoom(absl::Duration now);
  RankPositions& PositionsOf(size_t index) { return positions_->ranks[index]; }

  ExitStatus ExitOf(size_t index) const;
  bool HasEnded(size_t index) const { return gang_->rank(index).ended.load() != 0; }
  std::vector<std::string> LastErrorLines(size_t index) const;
  void NoteEnds(absl::Duration now);
  void NoteLoss();
  void FailGang(const RankEnd& end);
  void ApplyStop(absl::Duration now);
  void RunTimers(absl::Duration now);
  void CheckProgress(absl::Duration now);
  RankEnd DescribeEnd(size_t index) const;
  bool EndedWell() const;
  absl::Duration NextTimer() const;
  // Waits until all checkpoints of a gang that ended well are answered, or a stop comes; drops
  // those of any other.
  void FinishCommits() ABSL_LOCKS_EXCLUDED(mu_);
  void AwaitFreeDevices();
  v1::Finished Outcome() const;
  void CommitLoop(const StopToken& stop);

  v1::Finished Failed(v1::Failure failure) const;
  void ReportEvent(absl::string_view kind, const std::string& message,
                   const FrameOrigin& origin = {});
  bool OomKillSeen() const;
  std::optional<PendingStop> pending_stop() const ABSL_LOCKS_EXCLUDED(mu_);
  // Waits until the process, if any, or the gang has news, Start or Stop was called, a checkpoint
  // was answered, or `deadline` (monotonic) is reached.
  void WaitForNews(CapturedProcess* process, absl::Duration deadline);
  bool CommitDueLocked() const ABSL_SHARED_LOCKS_REQUIRED(mu_) {
    return commits_closed_ || !commits_.empty();
  }

  const AgentConfig& config_;
  const AttemptSetup setup_;
  const v1::Assign& assign_;
  const AttemptId id_;
  const std::vector<DeviceInfo>& devices_;
  ReportSpool& spool_;
  AgentMetrics& metrics_;
  const AttemptHooks hooks_;
  const int64_t oom_kills_before_;
  UniqueFd wake_;  // eventfd
  std::atomic<bool> deadline_moved_back_{false};

  // Owned by the attempt's thread.
  std::string folder_;
  MappedFile<AttemptPositions> positions_;
  Json spec_;
  PrepResult prep_;
  std::unique_ptr<ShimGang> gang_;
  std::vector<Rank> ranks_;
  std::optional<ProgressWatch> progress_;  // on the node of rank 0
  std::optional<v1::Failure> failure_;     // of the first rank that failed
  bool stop_sent_ = false;
  bool term_sent_ = false;
  bool kill_sent_ = false;
  absl::Duration term_time_ = absl::InfiniteDuration();
  absl::Duration kill_time_ = absl::InfiniteDuration();
  absl::Duration done_deadline_ = absl::InfiniteDuration();
  absl::Duration next_room_;

  mutable Monitor mu_;
  std::optional<v1::Start> start_ ABSL_GUARDED_BY(mu_);
  std::optional<PendingStop> stop_ ABSL_GUARDED_BY(mu_);
  bool finished_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<pid_t> pids_ ABSL_GUARDED_BY(mu_);
  std::deque<CheckpointFrame> commits_ ABSL_GUARDED_BY(mu_);
  std::deque<CheckpointResultFrame> commit_results_ ABSL_GUARDED_BY(mu_);
  bool commits_closed_ ABSL_GUARDED_BY(mu_) = false;  // no more will come
  bool commits_done_ ABSL_GUARDED_BY(mu_) = false;    // CommitLoop has ended
  int unanswered_commits_ ABSL_GUARDED_BY(mu_) = 0;
  Thread committer_;  // runs while the gang does
  Thread thread_;     // last: joined before the members it reads are destroyed
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_AGENT_ATTEMPT_H_
