#include "server/failure_policy.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"

namespace switchyard {
namespace {

constexpr size_t kMaxCascade = 16;
constexpr size_t kMaxAvoided = 16;
constexpr int kSigKill = 9;

CascadeRecord AsCascade(const FailureRecord& failure) {
  return {failure.reason, failure.rank, failure.node, failure.message};
}

bool IsNodeGone(FailureReason reason) {
  return reason == FailureReason::kNodeLost || reason == FailureReason::kNodeReboot;
}

// Of the budget that failures of this domain use.
struct Budget {
  int32_t& used;
  int32_t limit;
  const char* name;
};

}  // namespace

std::string Fingerprint(const FailureRecord& failure) {
  if (failure.signal == kSigKill) return "";
  absl::string_view line;
  for (const std::string& text : failure.last_lines) {
    if (!absl::StripAsciiWhitespace(text).empty()) line = absl::StripAsciiWhitespace(text);
  }
  if (line.empty()) return "";
  std::string out = absl::StrCat(Name(failure.reason), ":");
  bool in_number = false;
  for (const char c : line.substr(0, 512)) {
    const bool digit = absl::ascii_isdigit(static_cast<unsigned char>(c));
    if (!digit) out.push_back(c);
    if (digit && !in_number) out.push_back('#');
    in_number = digit;
  }
  return out;
}

RetryVerdict JudgeFailure(const JobNeeds& limits, const RetryState& before,
                          const FailureRecord& failure, const AttemptFacts& facts) {
  RetryVerdict verdict;
  verdict.state = before;
  RetryState& state = verdict.state;
  const FailureDomain domain = DomainOf(failure.reason);
  if (domain == FailureDomain::kFinal && !facts.falls_back) {
    verdict.sentence = "another attempt would not help";
    return verdict;
  }
  const bool progressed = facts.committed_step > before.progress_step;
  if (progressed) {
    state = RetryState{};
    state.progress_step = facts.committed_step;
    state.avoided = before.avoided;
  }
  const bool unstarted = !facts.started && IsNodeGone(failure.reason);
  if ((unstarted || domain == FailureDomain::kOrder || facts.falls_back) &&
      state.free_failures < kFreeFailures) {
    verdict.waits = state.free_failures;
    state.free_failures += 1;
    verdict.retry = true;
    verdict.sentence = facts.falls_back ? "the next attempt resumes from the checkpoint before"
                       : unstarted      ? "nothing was started, so that no retry is used"
                                        : "no retry is used";
    return verdict;
  }
  const std::string fingerprint = Fingerprint(failure);
  const bool same = !progressed && !fingerprint.empty() && fingerprint == before.fingerprint;
  state.fingerprint = fingerprint;
  verdict.waits = state.no_progress;
  if (!progressed) state.no_progress += 1;
  if (domain == FailureDomain::kHardware && !failure.node.empty() &&
      std::find(state.avoided.begin(), state.avoided.end(), failure.node) == state.avoided.end()) {
    if (state.avoided.size() == kMaxAvoided) state.avoided.erase(state.avoided.begin());
    state.avoided.push_back(failure.node);
  }
  const Budget budget =
      domain == FailureDomain::kUser
          ? Budget{state.user_retries_used, limits.max_user_retries, "user retries"}
          : Budget{state.retries_used, limits.max_retries, "retries"};
  if (budget.used >= budget.limit) {
    // Without a budget there is nothing to say about it.
    verdict.sentence = budget.limit > 0 ? absl::StrCat(budget.used, " of ", budget.limit, " ",
                                                       budget.name, " used")
                       : domain == FailureDomain::kUser && limits.max_retries > 0
                           ? std::string("another attempt would not help")
                           : std::string();
    return verdict;
  }
  if (same) {
    verdict.sentence =
        "the same failure twice without a newer checkpoint, so that another attempt would not help";
    return verdict;
  }
  if (state.no_progress >= limits.no_progress_limit) {
    verdict.sentence =
        absl::StrCat(state.no_progress, " attempts in a row without a newer committed checkpoint");
    return verdict;
  }
  budget.used += 1;
  verdict.retry = true;
  verdict.sentence = absl::StrCat(domain == FailureDomain::kUser ? "user retry " : "retry ",
                                  budget.used, " of ", budget.limit);
  return verdict;
}

FailureRecord MergeFailures(const absl::optional<FailureRecord>& first, const FailureRecord& next) {
  if (!first) return next;
  FailureRecord merged = *first;
  const bool same = first->rank == next.rank && first->node == next.node;
  // A node says it twice: when the rank fails, and when its last process is gone.
  if (same && (first->reason == next.reason || IsUsuallyConsequence(next.reason))) return merged;
  CascadeRecord cascade = AsCascade(next);
  if (IsUsuallyConsequence(first->reason) && !IsUsuallyConsequence(next.reason)) {
    cascade = AsCascade(merged);
    merged = next;
    merged.cascade = first->cascade;
  }
  const auto known = [&](const CascadeRecord& c) {
    return c.rank == cascade.rank && c.node == cascade.node && c.reason == cascade.reason;
  };
  if (merged.cascade.size() < kMaxCascade &&
      std::none_of(merged.cascade.begin(), merged.cascade.end(), known)) {
    merged.cascade.push_back(std::move(cascade));
  }
  return merged;
}

absl::Duration RetryBackoff(absl::Duration initial, int32_t waits) {
  absl::Duration delay = initial;
  for (int32_t i = 0; i < waits && delay < absl::Minutes(10); ++i) delay *= 2;
  return std::min(delay, std::max(initial, absl::Minutes(10)));
}

}  // namespace switchyard
