// Follows a job to its end, across restarts of the coordinator.
#ifndef SWITCHYARD_CLIENT_FOLLOW_H_
#define SWITCHYARD_CLIENT_FOLLOW_H_

#include <string>

#include "absl/time/time.h"
#include "client/connection.h"
#include "client/output.h"
#include "client/terminal.h"

namespace switchyard {

constexpr int kExitFailed = 10;
constexpr int kExitCancelled = 11;
constexpr int kExitDetached = 130;

struct FollowOptions {
  bool from_start = false;  // replay the steps before now
  Format format = Format::kTable;
  // A stream without a message for so long is dead: the server sends a heartbeat every 15 s.
  absl::Duration silence = absl::Seconds(50);
  // Tries to come back for so long after the connection is lost.
  absl::Duration patience = absl::Minutes(10);
  absl::Duration backoff = absl::Milliseconds(200);
  absl::Duration max_backoff = absl::Seconds(5);
};

bool IsFinal(v1::Job::State state);

// Why a failed job failed: reason, message, attempt, rank, node, step, last lines; ends in a
// newline.
std::string DescribeFailure(const v1::Job& job);

// Shows events and progress until the job `name` is final; returns the exit code: 0, 10, 11, 130
// after Ctrl-C, or that of the error that ended it. The end of a stream is never taken for the end
// of the job.
int FollowJob(Connection& connection, Terminal& terminal, const std::string& name,
              const FollowOptions& options);

}  // namespace switchyard

#endif  // SWITCHYARD_CLIENT_FOLLOW_H_
