// The ranks of one attempt as the agent sees them: by the files of their shim (worker/shim), which
// outlive the agent.
#ifndef SWITCHYARD_WORKER_AGENT_SHIM_GANG_H_
#define SWITCHYARD_WORKER_AGENT_SHIM_GANG_H_

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/fd.h"
#include "base/json.h"
#include "worker/shim/attempt_files.h"
#include "worker/shim/containment.h"
#include "worker/shim/launch_plan.h"

namespace switchyard {

// Not thread-safe.
class ShimGang {
 public:
  // Starts `shim_program` on the attempt folder, which holds the ranks' config files, and waits
  // until all ranks run. Errors: Internal: a program cannot be started; the message names it. What
  // was started is dead then.
  static absl::StatusOr<std::unique_ptr<ShimGang>> Launch(const std::string& shim_program,
                                                          const std::string& folder,
                                                          const LaunchPlan& plan);
  // Finds the gang that an earlier life of the agent launched in this folder, alive or not.
  // Errors: NotFound: no rank was ever started, and from now on none can be. Unavailable.
  static absl::StatusOr<std::unique_ptr<ShimGang>> Adopt(const std::string& folder);

  // Kills what is alive, and waits for it.
  ~ShimGang();
  ShimGang(const ShimGang&) = delete;

  // Readable when the shim has news: call ReadNews. -1: there is no connection.
  int fd() const { return control_.get(); }
  void ReadNews();

  // Of the ranks, in the order of the plan; valid at any time.
  const ShimStatus& status() const { return *status_.get(); }
  const RankStatus& rank(size_t index) const { return status_->ranks[index]; }
  size_t num_ranks() const { return plan_.ranks.size(); }
  bool degraded() const { return plan_.cgroup.empty(); }
  // Of the ranks that are alive.
  std::vector<pid_t> Pids() const;

  // To every live rank's process group. Errors: Unavailable: the shim does not take it.
  absl::Status Signal(int signal);
  // A frame for the rank of this number. Errors: as Signal; InvalidArgument: too long.
  absl::Status SendFrame(int rank, const Json& frame);
  // The shim looks at the deadline of the lease again. Errors: as Signal.
  absl::Status TellDeadline();
  // SIGKILL to all processes of the attempt, whatever state the shim is in. To be repeated until
  // Gone.
  void Kill();

  // The shim has ended, and no process of the attempt is left: the status and the files are final.
  bool Gone();
  // It ended before it had seen the end of its ranks: it was killed. Once Gone.
  bool shim_was_lost() const { return status_->finished.load() == 0; }

 private:
  ShimGang(std::string folder, LaunchPlan plan)
      : folder_(std::move(folder)), plan_(std::move(plan)) {}
  absl::Status Send(const std::string& message);
  // Whether no shim holds the lock; then we do.
  bool TakeLock();
  // Somebody removed the folder with the lock, and the shim is dead by its number.
  bool DiedWithoutFolder() const;

  const std::string folder_;
  const LaunchPlan plan_;
  MappedFile<ShimStatus> status_;
  UniqueFd control_;
  UniqueFd lock_;
  pid_t child_ = 0;         // the shim, when this process started it and has not reaped it
  absl::Duration emptied_;  // when the attempt was first seen without a process, after Kill
  bool killed_ = false;
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_AGENT_SHIM_GANG_H_
