// Why an attempt failed, out of how its processes ended. Pure.
#ifndef SWITCHYARD_WORKER_AGENT_FAILURE_H_
#define SWITCHYARD_WORKER_AGENT_FAILURE_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "switchyard/v1/job.pb.h"
#include "worker/agent/exit_status.h"
#include "worker/link/messages.h"

namespace switchyard {

// The end of one trainer.
struct RankEnd {
  int rank = 0;
  ExitStatus status;
  std::optional<ErrorFrame> error;  // its error frame
  std::optional<DoneFrame> done;    // its done frame
  // The kernel killed a process for lack of memory while the attempt ran.
  bool oom_kill_seen = false;
  std::vector<std::string> last_lines;  // of its stderr
  int64_t step = 0;                     // the last one reported
};

// Whether this end fails the attempt: anything but a done frame with exit 0, or, when a stop was
// requested, with kExitStopped.
bool IsFailure(const RankEnd& end, bool stop_requested);

// Which of several failing ends, seen at the same moment, was the cause. A rank whose peer died
// exits too, by a communication error, so: a signal, then an error of another kind, then an exit
// without a word, then NCCL_ERROR; the lower rank among equals. Precondition: not empty.
size_t FirstFailure(const std::vector<RankEnd>& ends);

// The record of a failed rank.
v1::Failure DescribeRankFailure(const RankEnd& end, absl::string_view node);

// Whether the rank ended only because we told it to: by our signal, or stopped. `terminated`: it
// was sent SIGTERM or SIGKILL before.
bool EndedByUs(const RankEnd& end, bool terminated);

// Notes that `failure` came after `first`, most likely as its consequence.
void AddCascade(const v1::Failure& failure, v1::Failure& first);

// The record of a failed `switchyard-prep`: exit code 1 is DATA_INVALID, 2 is CONFIG_INVALID; rank
// -1.
v1::Failure DescribePrepFailure(const ExitStatus& status, std::vector<std::string> last_lines,
                                bool oom_kill_seen, absl::string_view node);

// A failure that no process caused; rank -1.
v1::Failure ServiceFailure(v1::FailureReason reason, absl::string_view message,
                           absl::string_view node);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_AGENT_FAILURE_H_
