// A child process whose output goes into log files and the report spool, and whose end is collected
// only after its output.
#ifndef SWITCHYARD_WORKER_AGENT_CAPTURED_PROCESS_H_
#define SWITCHYARD_WORKER_AGENT_CAPTURED_PROCESS_H_

#include <poll.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/ids.h"
#include "worker/agent/log_capture.h"
#include "worker/agent/positions.h"
#include "worker/agent/report_spool.h"
#include "worker/agent/subprocess.h"

namespace switchyard {

// Not thread-safe; the thread that starts it must outlive it (see Subprocess).
class CapturedProcess {
 public:
  // Logs go to `<folder>/<name>.stdout` and `.stderr`, reported as streams of `rank`; `positions`
  // says, and is told, how much of them is; it outlives this.
  // Errors: those of Subprocess::Start and of creating the files.
  static absl::StatusOr<std::unique_ptr<CapturedProcess>> Start(const SubprocessOptions& options,
                                                                const AttemptId& attempt, int rank,
                                                                const std::string& folder,
                                                                const std::string& name,
                                                                ReportSpool& spool,
                                                                RankPositions* positions);

  // Adds what to wait for. Returns how long a wait may last at most, when something has no
  // descriptor to wait for; InfiniteDuration otherwise.
  absl::Duration AppendPollFds(std::vector<pollfd>& fds) const;

  // Takes what the pipes hold; when the process has ended, kills its group, takes the rest and
  // collects its status. Does not block.
  void Pump();

  bool ended() const { return process_->exit_status().has_value(); }
  // Ended, and all its output is in the files.
  bool closed() const { return ended() && stdout_->at_end() && stderr_->at_end(); }
  // Precondition: ended.
  const ExitStatus& exit_status() const { return *process_->exit_status(); }
  pid_t pid() const { return process_->pid(); }
  void SignalGroup(int signal) const { process_->SignalGroup(signal); }

  const LogCapture& stdout_log() const { return *stdout_; }
  // At most 20.
  std::vector<std::string> LastErrorLines() const { return LastLines(stderr_->tail(), 20); }

 private:
  CapturedProcess(std::unique_ptr<Subprocess> process, std::unique_ptr<LogCapture> out,
                  std::unique_ptr<LogCapture> err)
      : process_(std::move(process)), stdout_(std::move(out)), stderr_(std::move(err)) {}

  std::unique_ptr<Subprocess> process_;
  std::unique_ptr<LogCapture> stdout_;
  std::unique_ptr<LogCapture> stderr_;
  // Monotonic; until then output is awaited of descendants that left the group.
  absl::Duration output_deadline_ = absl::InfiniteDuration();
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_AGENT_CAPTURED_PROCESS_H_
