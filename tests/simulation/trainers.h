// Fake trainers: gangs that step together, write small checkpoints on a real file system, and end
// in every way that real ones do. What a part of a gang leaves on its node survives the agent
// there.
#ifndef SWITCHYARD_TESTS_SIMULATION_TRAINERS_H_
#define SWITCHYARD_TESTS_SIMULATION_TRAINERS_H_

#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "absl/types/optional.h"
#include "base/ids.h"
#include "switchyard/v1/agent_link.pb.h"
#include "tests/simulation/world.h"

namespace switchyard::simulation {

namespace v1 = ::switchyard::v1;

class SimNode;

// How the processes of a part ended.
struct PartEnd {
  bool done = false;  // all exited 0 with a done frame, or as ordered
  v1::FailureReason reason = v1::EXIT_UNKNOWN;
  std::string message;
};

// What a rank says to its agent.
struct RankFrame {
  enum class Kind { kRunning, kStep, kCheckpoint };
  Kind kind = Kind::kRunning;
  int64_t step = 0;
  bool final = false;
  std::string staging_path;
  uint32_t crc = 0;
};

// One node's part of a gang: its shim, trainers and attempt folder.
struct Part {
  Part(SimNode& on, const v1::Assign& order)
      : node(on), assign(order), id{JobId(order.job()), order.attempt()} {}
  SimNode& node;
  const v1::Assign assign;
  const AttemptId id;
  bool alive = true;
  int64_t life = 0;              // of the machine: dies with it
  absl::Duration deadline;       // the node's clock; the shim kills past it
  absl::Duration thawed;         // true time of the machine's last thaw
  std::deque<RankFrame> frames;  // not yet read by an agent
  absl::optional<PartEnd> end;   // durable, as the shim writes it
  bool stop = false;             // the stop frame was given
  bool stop_checkpoint = false;
};

// Cuts a checkpoint of theirs off, changes a byte of it or takes its manifest away. False: it has
// no files.
bool DamageCheckpoint(const std::string& folder, Random& random);

class Trainers {
 public:
  explicit Trainers(World& world) : world_(world) {}

  // The part's processes are there. Takes part in the gang until it ends.
  void Join(const std::shared_ptr<Part>& part);
  // The processes are gone, for a reason of their own, or killed.
  void Ended(Part& part);
  // The coordinator's answer to a checkpoint of this gang. False: it will never be published.
  void Committed(const AttemptId& id, int64_t step, bool ok);
  // Parts with living processes.
  const std::vector<std::shared_ptr<Part>>& alive(const JobId& job);

 private:
  enum class Fate {
    kFinish,
    kCrash,
    kHang,
    kBadData,
    kNoFinalCheckpoint,
    kTornCheckpoint,
    kCannotResume,  // what it should resume from is damaged
  };
  struct Gang {
    AttemptId id;
    int num_nodes = 1;
    int64_t step = 0;
    int64_t last_step = 0;
    int64_t checkpoint_every = 0;
    int64_t fate_step = 0;
    Fate fate = Fate::kFinish;
    absl::Duration step_time;
    absl::Duration waiting_since;         // for another rank; infinite: not waiting
    absl::optional<int64_t> uncommitted;  // the last checkpoint, waited for
    bool hung = false;
    bool final_written = false;
    std::vector<std::shared_ptr<Part>> parts;
    bool over = false;
  };
  void Tick(const std::shared_ptr<Gang>& gang);
  void Step(Gang& gang);
  void Checkpoint(Gang& gang, bool final);
  void EndAll(Gang& gang, const PartEnd& end);

  World& world_;
  std::map<AttemptId, std::shared_ptr<Gang>> gangs_;
  std::map<JobId, std::vector<std::shared_ptr<Part>>> alive_;
};

}  // namespace switchyard::simulation

#endif  // SWITCHYARD_TESTS_SIMULATION_TRAINERS_H_
