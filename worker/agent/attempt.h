// This node's part of one attempt at a job: prepare the data, wait for the start, run one trainer
// per device, and account for every process until the last one is reaped.
//
//   PREPARING -> PREPARED -> RUNNING -> FINISHED
//   Any state goes to FINISHED by a failure or a stop. FINISHED is reported exactly once, after the
//   last process is gone and all log bytes are in the spool.
//
// One thread per attempt owns the processes and waits on their descriptors. Another one publishes
// checkpoints, because that call waits for the coordinator. A gang that ended well is FINISHED only
// when its last checkpoint is published: the trainers wait for that too, but not for ever.
#ifndef SWITCHYARD_WORKER_AGENT_ATTEMPT_H_
#define SWITCHYARD_WORKER_AGENT_ATTEMPT_H_

#include <sys/types.h>

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/fd.h"
#include "base/ids.h"
#include "base/thread.h"
#include "switchyard/v1/agent_link.pb.h"
#include "worker/agent/captured_process.h"
#include "worker/agent/config.h"
#include "worker/agent/core.h"
#include "worker/agent/device_inventory.h"
#include "worker/agent/failure.h"
#include "worker/agent/job_files.h"
#include "worker/agent/metrics.h"
#include "worker/agent/report_spool.h"
#include "worker/link/frame.h"
#include "worker/link/messages.h"

namespace switchyard {

// Publishes a checkpoint at the coordinator, retrying while it is away, until told to stop.
using CommitFunction = std::function<absl::StatusOr<v1::Checkpoint>(
    const v1::CommitCheckpointRequest& request, const StopToken& stop)>;

// Thread-safe.
class Attempt {
 public:
  // Begins to prepare. `devices`: one per rank of this node, in rank order. The references must
  // outlive it.
  Attempt(const AgentConfig& config, v1::Assign assign, std::vector<DeviceInfo> devices,
          ReportSpool& spool, AgentMetrics& metrics, CommitFunction commit);
  // Kills what is alive and waits for it.
  ~Attempt();

  const AttemptId& id() const { return id_; }
  const std::vector<DeviceInfo>& devices() const { return devices_; }

  // Starts the trainers once prepared. Repeated calls have no effect.
  void Start(const v1::Start& start) ABSL_LOCKS_EXCLUDED(mu_);
  // In any state. The first cause stays; a later call can only make the end come earlier.
  void Stop(const StopRequest& request) ABSL_LOCKS_EXCLUDED(mu_);

  bool finished() const ABSL_LOCKS_EXCLUDED(mu_);
  // False: not within `timeout`.
  bool WaitFinished(absl::Duration timeout) ABSL_LOCKS_EXCLUDED(mu_);
  // Of the trainers that are alive.
  std::vector<pid_t> pids() const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  struct Rank {
    int rank = 0;  // global
    std::unique_ptr<CapturedProcess> process;
    std::unique_ptr<FrameChannel> link;
    bool link_open = true;
    bool said_hello = false;
    bool end_seen = false;
    std::optional<ErrorFrame> error;
    std::optional<DoneFrame> done;
    absl::Duration error_time;  // monotonic, when `error` came
  };
  struct PendingStop {
    StopRequest request;
    absl::Duration term_time;  // monotonic
  };

  void Run();
  // Each returns the final report when the attempt ends in it.
  std::optional<v1::Finished> Prepare();
  std::optional<v1::Finished> AwaitStart();
  v1::Finished RunGang();

  absl::Status StartRanks();
  void ReadFrames(Rank& rank);
  void HandleFrame(Rank& rank, const RankFrame& frame);
  void NoteEnds(absl::Duration now);
  void FailGang(const RankEnd& end);
  void ApplyStop(absl::Duration now);
  void RunTimers(absl::Duration now);
  void SignalRanks(int signal);
  RankEnd DescribeEnd(const Rank& rank) const;
  bool EndedWell() const;
  // Waits until all checkpoints of a gang that ended well are answered, or a stop comes; drops
  // those of any other.
  void FinishCommits() ABSL_LOCKS_EXCLUDED(mu_);
  v1::Finished Outcome() const;
  void CommitLoop(const StopToken& stop);

  v1::Finished Failed(v1::Failure failure) const;
  v1::Finished Stopped(const StopRequest& request) const;
  void ReportEvent(absl::string_view kind, const std::string& message);
  bool OomKillSeen() const;
  std::optional<PendingStop> pending_stop() const ABSL_LOCKS_EXCLUDED(mu_);
  // Waits until one of the processes or links has news, Start or Stop was called, or `deadline`
  // (monotonic) is reached; then pumps all processes.
  void WaitForNews(const std::vector<CapturedProcess*>& processes, absl::Duration deadline);
  bool CommitDueLocked() const ABSL_SHARED_LOCKS_REQUIRED(mu_) {
    return commits_closed_ || !commits_.empty();
  }

  const AgentConfig& config_;
  const v1::Assign assign_;
  const AttemptId id_;
  const std::vector<DeviceInfo> devices_;
  ReportSpool& spool_;
  AgentMetrics& metrics_;
  const CommitFunction commit_;
  const int64_t oom_kills_before_;
  UniqueFd wake_;  // eventfd: Start or Stop was called

  // Owned by the attempt's thread.
  std::string folder_;
  Json spec_;
  PrepResult prep_;
  std::vector<Rank> ranks_;
  int64_t last_step_ = 0;
  bool running_reported_ = false;
  std::optional<v1::Failure> failure_;  // of the first rank that failed
  bool stop_sent_ = false;
  bool term_sent_ = false;
  bool kill_sent_ = false;
  absl::Duration term_time_ = absl::InfiniteDuration();
  absl::Duration kill_time_ = absl::InfiniteDuration();
  absl::Duration done_deadline_ = absl::InfiniteDuration();

  mutable absl::Mutex mu_;
  std::optional<v1::Start> start_ ABSL_GUARDED_BY(mu_);
  std::optional<PendingStop> stop_ ABSL_GUARDED_BY(mu_);
  bool finished_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<pid_t> pids_ ABSL_GUARDED_BY(mu_);
  std::deque<CheckpointFrame> commits_ ABSL_GUARDED_BY(mu_);
  bool commits_closed_ ABSL_GUARDED_BY(mu_) = false;  // no more will come
  bool commits_done_ ABSL_GUARDED_BY(mu_) = false;    // CommitLoop has ended
  int unanswered_commits_ ABSL_GUARDED_BY(mu_) = 0;
  Thread committer_;  // runs while the gang does
  Thread thread_;     // last: joined before the members it reads are destroyed
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_AGENT_ATTEMPT_H_
