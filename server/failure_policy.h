// What follows a failed attempt: another one, or the end of the job. Pure.
//
// Every budget is judged by progress: a checkpoint committed at a higher step than ever before
// gives all of them back, and nothing else does. Steps only grow, so that a job cannot be retried
// for ever.
#ifndef SWITCHYARD_SERVER_FAILURE_POLICY_H_
#define SWITCHYARD_SERVER_FAILURE_POLICY_H_

#include <string>

#include "absl/time/time.h"
#include "server/records.h"

namespace switchyard {

struct RetryVerdict {
  bool retry = false;
  RetryState state;      // after this failure
  int32_t waits = 0;     // attempts in a row that failed before; the exponent of the backoff
  std::string sentence;  // for people: "retry 1 of 3", or why there is none
};

// What the reason does not say about a failed attempt.
struct AttemptFacts {
  bool started = false;        // trainers were ordered to start; else a lost node has cost nothing
  int64_t committed_step = 0;  // the highest step that the job ever committed; 0: none
  // The checkpoint it resumed from was refused before the first step, and there is an older one:
  // the next attempt resumes from that.
  bool falls_back = false;
};

// Attempts that cost nothing (an order, a node lost before the start, an older checkpoint) have a
// growing backoff too, and use the budget for infrastructure after kFreeFailures without progress:
// nothing is retried for ever.
inline constexpr int32_t kFreeFailures = 5;

RetryVerdict JudgeFailure(const JobNeeds& limits, const RetryState& before,
                          const FailureRecord& failure, const AttemptFacts& facts);

// The reason and the last error line of the first failing rank, numbers left out: equal for the
// same fault twice. Empty where there is no line, or somebody killed the process from outside: such
// failures are not alike.
std::string Fingerprint(const FailureRecord& failure);

// Adds a later failure to the first one of an attempt. A failure that usually is a consequence
// gives way to a later one that is not: reports of several nodes come in any order.
FailureRecord MergeFailures(const absl::optional<FailureRecord>& first, const FailureRecord& next);

// The wait before the attempt that follows `waits` failures in a row: 10 s, 20 s, ... 10 min for an
// `initial` of 10 s. Without jitter: one coordinator places one gang at a time.
absl::Duration RetryBackoff(absl::Duration initial, int32_t waits);

}  // namespace switchyard

#endif  // SWITCHYARD_SERVER_FAILURE_POLICY_H_
