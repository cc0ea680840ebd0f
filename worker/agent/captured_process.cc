#include "worker/agent/captured_process.h"

#include <signal.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/status_macros.h"

namespace switchyard {
namespace {

// One stream gets so much of a turn, so that a flood does not starve the others.
constexpr int64_t kTurnBytes = 1 << 20;
constexpr absl::Duration kOutputGrace = absl::Seconds(1);
// How often the end is looked for where the kernel has no pidfd.
constexpr absl::Duration kNoPidfdInterval = absl::Milliseconds(50);

}  // namespace

absl::StatusOr<std::unique_ptr<CapturedProcess>> CapturedProcess::Start(
    const SubprocessOptions& options, const AttemptId& attempt, int rank, const std::string& folder,
    const std::string& name, ReportSpool& spool, RankPositions* positions) {
  ASSIGN_OR_RETURN(std::unique_ptr<Subprocess> process, Subprocess::Start(options));
  std::unique_ptr<LogCapture> logs[2];
  for (int i = 0; i < 2; ++i) {
    const std::string stream = i == 0 ? "stdout" : "stderr";
    LogSource source{attempt, rank, stream, absl::StrCat(folder, "/", name, ".", stream)};
    UniqueFd& pipe = i == 0 ? process->stdout_fd() : process->stderr_fd();
    ASSIGN_OR_RETURN(logs[i], LogCapture::Open(std::move(pipe), std::move(source), spool,
                                               &AttemptPositions::Noted(*positions, stream)));
  }
  return std::unique_ptr<CapturedProcess>(
      new CapturedProcess(std::move(process), std::move(logs[0]), std::move(logs[1])));
}

absl::Duration CapturedProcess::AppendPollFds(std::vector<pollfd>& fds) const {
  for (const LogCapture* log : {stdout_.get(), stderr_.get()}) {
    if (!log->at_end()) fds.push_back({log->fd(), POLLIN, 0});
  }
  if (ended())
    return std::max(output_deadline_ - RealClock::Get().Monotonic(), absl::ZeroDuration());
  if (process_->exit_fd() < 0) return kNoPidfdInterval;
  fds.push_back({process_->exit_fd(), POLLIN, 0});
  return absl::InfiniteDuration();
}

void CapturedProcess::Pump() {
  if (closed()) return;
  const bool has_ended = process_->HasEnded();  // before the pipes: then they hold all it wrote
  if (has_ended) process_->SignalGroup(SIGKILL);
  stdout_->Drain(kTurnBytes);
  stderr_->Drain(kTurnBytes);
  if (!has_ended) return;
  const absl::Duration now = RealClock::Get().Monotonic();
  if (!ended()) {
    process_->Reap();
    output_deadline_ = now + kOutputGrace;
  }
  if (now >= output_deadline_) {
    stdout_->Close();
    stderr_->Close();
  }
}

}  // namespace switchyard
