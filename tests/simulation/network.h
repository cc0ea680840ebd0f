// The simulated network between one coordinator and its callers. Messages take time, get lost, come
// twice, come long after their caller has given up, and overtake those of other connections; within
// a stream they keep their order, as TCP has it.
#ifndef SWITCHYARD_TESTS_SIMULATION_NETWORK_H_
#define SWITCHYARD_TESTS_SIMULATION_NETWORK_H_

#include <deque>
#include <functional>
#include <memory>
#include <set>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "tests/simulation/world.h"

namespace switchyard::simulation {

// A request that was sent.
struct Sent {
  absl::Duration when;
  std::function<void()> request;
};

// One machine's connection to the coordinator's machine.
struct Link {
  absl::Duration min_delay = absl::Microseconds(100);
  absl::Duration max_delay = absl::Milliseconds(20);
  double loss = 0;      // share of messages that are lost
  bool cut_up = false;  // nothing gets to the coordinator
  bool cut_down = false;
  std::deque<Sent> recent;  // the last requests, also those that were lost
};

enum class Direction { kUp, kDown };

// Who answers calls. Runs `work` with true while it is up, perhaps later; with false when nobody
// listens. After `work` it may be down.
class Listener {
 public:
  virtual ~Listener() = default;
  virtual void Enter(std::function<void(bool up)> work) = 0;
  // Whether the process that ran `work` can still answer.
  virtual bool answers() const = 0;
};

class Pipe;

class Network {
 public:
  Network(World& world, Listener& listener) : world_(world), listener_(listener) {}
  ~Network();

  // Runs `action` when a message sent now arrives, if it does. A cut holds messages up: they arrive
  // some time after it is healed, unless that takes more than two minutes.
  void Send(Link& link, Direction direction, std::function<void()> action);

  // A unary call: `serve` runs at the listener, at most twice; `done` exactly once, with its status
  // or Unavailable or DeadlineExceeded. `serve` may still run after that.
  void Call(Link& link, absl::Duration timeout, std::function<absl::Status()> serve,
            std::function<void(const absl::Status&)> done);

  // What passes for a proxy that tries again: the last requests of this link come once more, some
  // time after their sender may have died.
  void Replay(Link& link);

  World& world() { return world_; }

 private:
  friend class Pipe;
  bool Lost(Link& link) { return world_.random().Chance(link.loss); }
  void Arrive(Link& link, Direction direction, absl::Duration sent, std::function<void()> action);

  World& world_;
  Listener& listener_;
  // Pipes with messages on their way, which hold what holds the pipe: at the end of the history
  // nobody else would let go of them. Shared, because pipes may outlive this.
  const std::shared_ptr<std::set<Pipe*>> pipes_ = std::make_shared<std::set<Pipe*>>();
};

// One direction of a stream: messages arrive in order. Not destroyed before its last message has
// arrived: hold it by shared_ptr.
class Pipe : public std::enable_shared_from_this<Pipe> {
 public:
  Pipe(Network& network, Link& link, Direction direction)
      : network_(network), link_(link), direction_(direction), pipes_(network.pipes_) {
    pipes_->insert(this);
  }
  ~Pipe() { pipes_->erase(this); }
  void Send(std::function<void()> action);

 private:
  friend class Network;
  void Arm(absl::Duration delay);

  Network& network_;
  Link& link_;
  const Direction direction_;
  const std::shared_ptr<std::set<Pipe*>> pipes_;
  std::deque<std::function<void()>> waiting_;
};

}  // namespace switchyard::simulation

#endif  // SWITCHYARD_TESTS_SIMULATION_NETWORK_H_
