// Many histories, until enough job lives were lived or one broke an invariant.
#ifndef SWITCHYARD_TESTS_SIMULATION_CAMPAIGN_H_
#define SWITCHYARD_TESTS_SIMULATION_CAMPAIGN_H_

#include <cstdint>
#include <map>
#include <string>

namespace switchyard::simulation {

struct CampaignOptions {
  uint64_t first_seed = 1;
  int64_t lives = 1000;
  int num_threads = 1;
  double max_seconds = 1e9;  // no new history after that
};

struct CampaignResult {
  std::string violation;  // of the lowest seed that has one
  uint64_t failed_seed = 0;
  int64_t num_histories = 0;
  int64_t num_lives = 0;
  int64_t num_steps = 0;
  double simulated_seconds = 0;
  double seconds = 0;
  std::map<std::string, int64_t> counts;
};

// Seeds first_seed, first_seed + 1, ... Logs of the code under test are turned off. Databases and
// checkpoints are in a folder under /dev/shm (or TMPDIR), removed afterwards.
CampaignResult RunCampaign(const CampaignOptions& options);

// One history of its own, every step printed when `verbose`; the digest tells it from others.
struct SeedResult {
  std::string violation;
  uint64_t digest = 0;
  std::map<std::string, int64_t> counts;
};
SeedResult RunSeed(uint64_t seed, bool verbose = false);

}  // namespace switchyard::simulation

#endif  // SWITCHYARD_TESTS_SIMULATION_CAMPAIGN_H_
