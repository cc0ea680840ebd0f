// One seed, one history: a cluster, users, and faults until they stop; then every job must end.
#ifndef SWITCHYARD_TESTS_SIMULATION_HISTORY_H_
#define SWITCHYARD_TESTS_SIMULATION_HISTORY_H_

#include <cstdint>
#include <map>
#include <string>

namespace switchyard::simulation {

struct HistoryOptions {
  uint64_t seed = 1;
  int num_jobs = 64;
  std::string folder;  // an empty one, on a fast disk; the caller removes it
  bool verbose = false;
};

struct HistoryResult {
  std::string violation;  // empty: all invariants held
  int64_t num_lives = 0;  // jobs that came to their end
  int64_t num_steps = 0;
  double simulated_seconds = 0;
  uint64_t digest = 0;
  std::map<std::string, int64_t> counts;  // what happened, how often
};

// On the caller's thread. Histories in different folders may run side by side.
HistoryResult RunHistory(const HistoryOptions& options);

}  // namespace switchyard::simulation

#endif  // SWITCHYARD_TESTS_SIMULATION_HISTORY_H_
