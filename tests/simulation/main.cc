// switchyard-simulation: deterministic histories of coordinator and agents; see
// docs/reliability.md.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <string>

#include "tests/simulation/campaign.h"

namespace switchyard::simulation {
namespace {

constexpr char kUsage[] =
    "switchyard-simulation [--seed N] [--lives N] [--threads N] [--max-seconds N]\n"
    "    Histories of seeds N, N+1, ... until that many jobs have lived and died. Exit code 1 and\n"
    "    the seed when an invariant does not hold.\n"
    "switchyard-simulation --only SEED\n"
    "    One history, every step of it printed.\n";

void PrintCounts(const std::map<std::string, int64_t>& counts) {
  for (const auto& [what, count] : counts) {
    printf("  %10lld  %s\n", static_cast<long long>(count), what.c_str());
  }
}

int Main(int argc, char** argv) {
  CampaignOptions options;
  for (int i = 1; i < argc; i += 2) {
    const std::string flag = argv[i];
    if (i + 1 == argc) {
      fprintf(stderr, "%s", kUsage);
      return 2;
    }
    char* end = nullptr;
    const unsigned long long value = strtoull(argv[i + 1], &end, 10);
    if (*end != '\0' || *argv[i + 1] == '\0') {
      fprintf(stderr, "%s: '%s' is no number\n", flag.c_str(), argv[i + 1]);
      return 2;
    }
    if (flag == "--seed") {
      options.first_seed = value;
    } else if (flag == "--lives") {
      options.lives = static_cast<int64_t>(value);
    } else if (flag == "--threads") {
      options.num_threads = static_cast<int>(value);
    } else if (flag == "--max-seconds") {
      options.max_seconds = static_cast<double>(value);
    } else if (flag == "--only") {
      const SeedResult result = RunSeed(value, /*verbose=*/true);
      PrintCounts(result.counts);
      printf("seed %llu digest %016llx: %s\n", value,
             static_cast<unsigned long long>(result.digest),
             result.violation.empty() ? "all invariants hold" : result.violation.c_str());
      return result.violation.empty() ? 0 : 1;
    } else {
      fprintf(stderr, "%s: unknown\n%s", flag.c_str(), kUsage);
      return 2;
    }
  }
  const CampaignResult result = RunCampaign(options);
  PrintCounts(result.counts);
  printf(
      "%lld job lives in %lld histories, %lld steps, %.1f h simulated, in %.1f s: %.0f lives/s\n",
      static_cast<long long>(result.num_lives), static_cast<long long>(result.num_histories),
      static_cast<long long>(result.num_steps), result.simulated_seconds / 3600, result.seconds,
      static_cast<double>(result.num_lives) / result.seconds);
  if (result.violation.empty()) return 0;
  printf("seed %llu: %s\n", static_cast<unsigned long long>(result.failed_seed),
         result.violation.c_str());
  return 1;
}

}  // namespace
}  // namespace switchyard::simulation

int main(int argc, char** argv) { return switchyard::simulation::Main(argc, argv); }
