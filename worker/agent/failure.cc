#include "worker/agent/failure.h"

#include <signal.h>

#include <utility>

#include "absl/strings/str_cat.h"

namespace switchyard {
namespace {

bool KilledForMemory(const ExitStatus& status, bool oom_kill_seen) {
  return status.signal == SIGKILL && oom_kill_seen;
}

int CauseClass(const RankEnd& end) {
  if (end.status.signal != 0) return 0;
  if (!end.error.has_value()) return 2;
  return end.error->reason == FailureReason::kNcclError ? 3 : 1;
}

void SetStatus(const ExitStatus& status, v1::Failure& failure) {
  failure.set_exit_code(status.code);
  failure.set_signal(status.signal);
}

}  // namespace

bool IsFailure(const RankEnd& end, bool stop_requested) {
  if (end.status.signal != 0 || !end.done.has_value()) return true;
  if (end.status.code == kExitDone) return false;
  return !(end.status.code == kExitStopped && stop_requested);
}

size_t FirstFailure(const std::vector<RankEnd>& ends) {
  size_t first = 0;
  for (size_t i = 1; i < ends.size(); ++i) {
    const int a = CauseClass(ends[i]);
    const int b = CauseClass(ends[first]);
    if (a < b || (a == b && ends[i].rank < ends[first].rank)) first = i;
  }
  return first;
}

v1::Failure DescribeRankFailure(const RankEnd& end, absl::string_view node) {
  v1::Failure failure;
  failure.set_rank(end.rank);
  failure.set_node(std::string(node));
  failure.set_step(end.step);
  SetStatus(end.status, failure);
  for (const std::string& line : end.last_lines) failure.add_last_lines(line);
  const std::string who = absl::StrCat("rank ", end.rank, " on node ", node);
  if (KilledForMemory(end.status, end.oom_kill_seen)) {
    failure.set_reason(v1::OOM_HOST);
    failure.set_message(absl::StrCat(who, " was killed by the kernel: the host ran out of memory"));
  } else if (end.status.signal != 0) {
    failure.set_reason(v1::TRAINER_SIGNAL);
    failure.set_message(absl::StrCat(who, " was ended by ", end.status.ToString()));
  } else if (end.error.has_value()) {
    failure.set_reason(static_cast<v1::FailureReason>(end.error->reason));
    if (failure.reason() == v1::FAILURE_REASON_UNSPECIFIED) failure.set_reason(v1::TRAINER_EXIT);
    if (end.error->step > 0) failure.set_step(end.error->step);
    failure.set_message(absl::StrCat(who, ": ", end.error->message));
  } else if (end.status.code == kExitStopped && end.done.has_value()) {
    failure.set_reason(v1::TRAINER_EXIT);
    failure.set_message(absl::StrCat(who, " stopped although nobody had asked it to"));
  } else if (end.status.code == kExitDone) {
    failure.set_reason(v1::EXIT_UNKNOWN);
    failure.set_message(absl::StrCat(who, " exited with code 0 without saying that it was done"));
  } else {
    failure.set_reason(v1::TRAINER_EXIT);
    failure.set_message(absl::StrCat(who, " ended with ", end.status.ToString()));
  }
  return failure;
}

bool EndedByUs(const RankEnd& end, bool terminated) {
  if (!terminated) return false;
  return end.status.signal == SIGTERM || end.status.signal == SIGKILL ||
         (end.status.signal == 0 && end.status.code == kExitStopped);
}

void AddCascade(const v1::Failure& failure, v1::Failure& first) {
  v1::CascadedFailure* cascaded = first.add_cascade();
  cascaded->set_reason(failure.reason());
  cascaded->set_rank(failure.rank());
  cascaded->set_node(failure.node());
  cascaded->set_message(failure.message());
}

v1::Failure DescribePrepFailure(const ExitStatus& status, std::vector<std::string> last_lines,
                                bool oom_kill_seen, absl::string_view node) {
  v1::Failure failure;
  failure.set_rank(-1);
  failure.set_node(std::string(node));
  SetStatus(status, failure);
  // The last line says most: prep prints one line per fault.
  const std::string detail = last_lines.empty() ? "it printed no error" : last_lines.back();
  for (std::string& line : last_lines) failure.add_last_lines(std::move(line));
  if (KilledForMemory(status, oom_kill_seen)) {
    failure.set_reason(v1::OOM_HOST);
    failure.set_message(absl::StrCat("data preparation on node ", node,
                                     " was killed by the kernel: the host ran out of memory"));
    return failure;
  }
  if (status.signal != 0) {
    failure.set_reason(v1::TRAINER_SIGNAL);
  } else if (status.code == 1) {
    failure.set_reason(v1::DATA_INVALID);
  } else if (status.code == 2) {
    failure.set_reason(v1::CONFIG_INVALID);
  } else {
    failure.set_reason(v1::INTERNAL);
  }
  failure.set_message(absl::StrCat("data preparation on node ", node, " ended with ",
                                   status.ToString(), ": ", detail));
  return failure;
}

v1::Failure ServiceFailure(v1::FailureReason reason, absl::string_view message,
                           absl::string_view node) {
  v1::Failure failure;
  failure.set_reason(reason);
  failure.set_message(std::string(message));
  failure.set_rank(-1);
  failure.set_node(std::string(node));
  return failure;
}

}  // namespace switchyard
