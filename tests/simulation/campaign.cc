#include "tests/simulation/campaign.h"

#include <stdlib.h>
#include <unistd.h>

#include <filesystem>
#include <memory>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/thread.h"
#include "tests/simulation/history.h"

namespace switchyard::simulation {
namespace {

// fsync costs nothing on a memory file system; all else of SQLite is as on a disk.
class MemoryFolder {
 public:
  MemoryFolder() {
    const char* temporary = ::getenv("TMPDIR");
    std::string pattern = ::access("/dev/shm", W_OK) == 0 ? "/dev/shm"
                          : temporary != nullptr          ? temporary
                                                          : "/tmp";
    pattern += "/switchyard-simulation.XXXXXX";
    if (::mkdtemp(pattern.data()) == nullptr) SY_CHECK(false) << "mkdtemp " << pattern;
    path_ = pattern;
  }
  ~MemoryFolder() { std::filesystem::remove_all(path_); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

HistoryResult RunInFolder(uint64_t seed, bool verbose) {
  const MemoryFolder folder;
  HistoryOptions options;
  options.seed = seed;
  options.folder = folder.path();
  options.verbose = verbose;
  return RunHistory(options);
}

// What the threads share.
class Board {
 public:
  Board(const CampaignOptions& options) : options_(options), next_seed_(options.first_seed) {}

  // False: enough.
  bool TakeSeed(uint64_t& seed) ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    if (!result_.violation.empty() || result_.num_lives >= options_.lives ||
        Seconds() > options_.max_seconds) {
      return false;
    }
    seed = next_seed_++;
    return true;
  }

  void Add(uint64_t seed, HistoryResult history) ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    result_.num_histories += 1;
    result_.num_lives += history.num_lives;
    result_.num_steps += history.num_steps;
    result_.simulated_seconds += history.simulated_seconds;
    for (const auto& [what, count] : history.counts) result_.counts[what] += count;
    if (history.violation.empty()) return;
    if (!result_.violation.empty() && result_.failed_seed < seed) return;
    result_.violation = std::move(history.violation);
    result_.failed_seed = seed;
  }

  CampaignResult Take() ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    result_.seconds = Seconds();
    return std::move(result_);
  }

 private:
  double Seconds() const { return absl::ToDoubleSeconds(RealClock::Get().Monotonic() - start_); }

  const CampaignOptions options_;
  const absl::Duration start_ = RealClock::Get().Monotonic();
  absl::Mutex mu_;
  uint64_t next_seed_ ABSL_GUARDED_BY(mu_);
  CampaignResult result_ ABSL_GUARDED_BY(mu_);
};

}  // namespace

CampaignResult RunCampaign(const CampaignOptions& options) {
  SetLogLevel(LogLevel::kNone);
  Board board(options);
  {
    std::vector<Thread> threads;
    for (int i = 0; i < options.num_threads; ++i) {
      threads.emplace_back(absl::StrCat("history-", i), [&board](const StopToken&) {
        uint64_t seed = 0;
        while (board.TakeSeed(seed)) board.Add(seed, RunInFolder(seed, /*verbose=*/false));
      });
    }
  }
  return board.Take();
}

SeedResult RunSeed(uint64_t seed, bool verbose) {
  if (!verbose) SetLogLevel(LogLevel::kNone);
  HistoryResult history = RunInFolder(seed, verbose);
  return {std::move(history.violation), history.digest, std::move(history.counts)};
}

}  // namespace switchyard::simulation
