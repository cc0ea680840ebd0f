// What a shim is told to start: "launch" in the attempt folder, written by the agent.
// Standard library only: the shim links nothing else.
#ifndef SWITCHYARD_WORKER_SHIM_LAUNCH_PLAN_H_
#define SWITCHYARD_WORKER_SHIM_LAUNCH_PLAN_H_

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace switchyard {

struct RankPlan {
  int rank = 0;                          // global; names its files
  std::vector<std::string> argv;         // argv[0]: path of the program
  std::vector<std::string> environment;  // NAME=value, the whole of it
};

struct LaunchPlan {
  std::string scope;       // unique name: value of kScopeVariable in every process of the attempt
  std::string cgroup;      // its cgroup v2 folder, made by the agent; empty: there is none
  std::string lease_path;  // the agent's lease file (attempt_files.h)
  std::vector<RankPlan> ranks;
};

std::string EncodePlan(const LaunchPlan& plan);
// Empty: not a plan.
std::optional<LaunchPlan> DecodePlan(std::string_view text);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_SHIM_LAUNCH_PLAN_H_
