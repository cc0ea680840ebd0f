#include "worker/shim/launch_plan.h"

#include <charconv>

namespace switchyard {
namespace {

constexpr std::string_view kMagic = "switchyard-launch-1";

// Strings end with a zero byte: none of them can hold one.
void Put(std::string_view text, std::string& out) {
  out.append(text);
  out.push_back('\0');
}

void PutList(const std::vector<std::string>& list, std::string& out) {
  Put(std::to_string(list.size()), out);
  for (const std::string& item : list) Put(item, out);
}

bool Take(std::string_view& text, std::string& out) {
  const size_t end = text.find('\0');
  if (end == std::string_view::npos) return false;
  out = std::string(text.substr(0, end));
  text.remove_prefix(end + 1);
  return true;
}

bool TakeNumber(std::string_view& text, int& out) {
  std::string word;
  if (!Take(text, word)) return false;
  const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), out);
  return error == std::errc() && end == word.data() + word.size();
}

bool TakeList(std::string_view& text, std::vector<std::string>& out) {
  int count = 0;
  if (!TakeNumber(text, count) || count < 0) return false;
  for (int i = 0; i < count; ++i) {
    if (!Take(text, out.emplace_back())) return false;
  }
  return true;
}

}  // namespace

std::string EncodePlan(const LaunchPlan& plan) {
  std::string out;
  Put(kMagic, out);
  Put(plan.scope, out);
  Put(plan.cgroup, out);
  Put(plan.lease_path, out);
  Put(std::to_string(plan.ranks.size()), out);
  for (const RankPlan& rank : plan.ranks) {
    Put(std::to_string(rank.rank), out);
    PutList(rank.argv, out);
    PutList(rank.environment, out);
  }
  return out;
}

std::optional<LaunchPlan> DecodePlan(std::string_view text) {
  LaunchPlan plan;
  std::string magic;
  int num_ranks = 0;
  if (!Take(text, magic) || magic != kMagic || !Take(text, plan.scope) ||
      !Take(text, plan.cgroup) || !Take(text, plan.lease_path) || !TakeNumber(text, num_ranks) ||
      num_ranks < 0) {
    return std::nullopt;
  }
  for (int i = 0; i < num_ranks; ++i) {
    RankPlan& rank = plan.ranks.emplace_back();
    if (!TakeNumber(text, rank.rank) || !TakeList(text, rank.argv) || rank.argv.empty() ||
        !TakeList(text, rank.environment)) {
      return std::nullopt;
    }
  }
  if (!text.empty()) return std::nullopt;
  return plan;
}

}  // namespace switchyard
