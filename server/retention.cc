#include "server/retention.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <utility>

namespace switchyard {
namespace {

// 0 stands for none, as in the protocol.
bool HasValidationLoss(const CheckpointRecord& c) {
  return std::isfinite(c.validation_loss) && c.validation_loss != 0;
}

std::set<int64_t> BestSteps(std::vector<CheckpointRecord> committed, int32_t count) {
  committed.erase(std::remove_if(committed.begin(), committed.end(),
                                 [](const auto& c) { return !HasValidationLoss(c); }),
                  committed.end());
  std::sort(committed.begin(), committed.end(),
            [](const CheckpointRecord& a, const CheckpointRecord& b) {
              return std::pair(a.validation_loss, -a.commit_seq) <
                     std::pair(b.validation_loss, -b.commit_seq);
            });
  std::set<int64_t> steps;
  for (const CheckpointRecord& c : committed) {
    if (static_cast<int32_t>(steps.size()) == count) break;
    steps.insert(c.step);
  }
  return steps;
}

}  // namespace

std::vector<CheckpointRecord> ChooseRetired(const RetentionRule& rule,
                                            std::vector<CheckpointRecord> committed) {
  std::vector<CheckpointRecord> retired;
  if (rule.keep_last <= 0 || committed.size() <= static_cast<size_t>(rule.keep_last)) {
    return retired;
  }
  const std::set<int64_t> best = BestSteps(committed, rule.keep_best);
  std::sort(committed.begin(), committed.end(),
            [](const CheckpointRecord& a, const CheckpointRecord& b) {
              return a.commit_seq > b.commit_seq;
            });
  for (size_t i = static_cast<size_t>(rule.keep_last); i < committed.size(); ++i) {
    const CheckpointRecord& c = committed[i];
    const bool milestone = rule.keep_every > 0 && c.step % rule.keep_every == 0;
    if (c.pinned || c.final || milestone || best.count(c.step) > 0) continue;
    retired.push_back(c);
  }
  std::sort(retired.begin(), retired.end(),
            [](const CheckpointRecord& a, const CheckpointRecord& b) { return a.step < b.step; });
  return retired;
}

}  // namespace switchyard
