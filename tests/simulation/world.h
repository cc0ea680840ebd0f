// Time, chance and what happened: the frame of one simulated history. Everything runs on one
// thread, one event after the other; time passes only between events.
#ifndef SWITCHYARD_TESTS_SIMULATION_WORLD_H_
#define SWITCHYARD_TESTS_SIMULATION_WORLD_H_

#include <cstdint>
#include <functional>
#include <map>
#include <queue>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "tests/simulation/random.h"

namespace switchyard::simulation {

class World {
 public:
  // `verbose`: prints every trace line to stdout.
  World(uint64_t seed, bool verbose) : random_(seed), verbose_(verbose) {}

  Random& random() { return random_; }
  // True time, and the coordinator's clock.
  SimClock& clock() { return clock_; }
  absl::Duration now() const { return now_; }

  // Runs `action` at that time, after what was put there before. The past: now.
  void At(absl::Duration when, std::function<void()> action);
  void After(absl::Duration delay, std::function<void()> action) {
    At(now_ + delay, std::move(action));
  }
  // Moves to the next event and runs it. False: there is none.
  bool Step();
  int64_t num_steps() const { return num_steps_; }

  // Ends the history: an invariant does not hold. The first one stays.
  void Violate(const std::string& what);
  const std::string& violation() const { return violation_; }

  // Coverage: `what` happened once more.
  void Count(absl::string_view what) { Tally(std::string(what)); }
  void Tally(const std::string& what) { ++counts_[what]; }
  const std::map<std::string, int64_t>& counts() const { return counts_; }

  // A line of the history.
  template <typename... Args>
  void Trace(absl::string_view what, const Args&... args) {
    Mix(what);
    if (verbose_) Print(absl::StrCat(what, args...));
  }
  // A hash of all trace lines and their times: equal for equal histories.
  uint64_t digest() const { return digest_; }

 private:
  struct Event {
    absl::Duration when;
    int64_t order;
    std::function<void()> action;
    bool operator<(const Event& other) const {  // the queue's top is the largest
      return when != other.when ? when > other.when : order > other.order;
    }
  };
  void Mix(absl::string_view what);
  void Print(const std::string& line) const;

  Random random_;
  const bool verbose_;
  SimClock clock_;
  absl::Duration now_ = absl::ZeroDuration();
  std::priority_queue<Event> events_;
  int64_t next_order_ = 0;
  int64_t num_steps_ = 0;
  std::string violation_;
  std::map<std::string, int64_t> counts_;
  uint64_t digest_ = 0xcbf29ce484222325;
};

}  // namespace switchyard::simulation

#endif  // SWITCHYARD_TESTS_SIMULATION_WORLD_H_
