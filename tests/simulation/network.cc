#include "tests/simulation/network.h"

#include <utility>
#include <vector>

namespace switchyard::simulation {
namespace {

// How long a kernel goes on to send what its process, perhaps long dead, has handed over.
constexpr absl::Duration kHeldFor = absl::Minutes(2);
constexpr double kDuplicate = 0.02;
constexpr double kLate = 0.02;
constexpr size_t kRecent = 8;

bool IsCut(const Link& link, Direction direction) {
  return direction == Direction::kUp ? link.cut_up : link.cut_down;
}

}  // namespace

Network::~Network() {
  std::vector<std::deque<std::function<void()>>> messages;
  for (Pipe* pipe : *pipes_) messages.push_back(std::move(pipe->waiting_));
}

void Network::Arrive(Link& link, Direction direction, absl::Duration sent,
                     std::function<void()> action) {
  if (!IsCut(link, direction)) {
    action();
    return;
  }
  if (world_.now() - sent > kHeldFor) return;
  world_.After(world_.random().Between(absl::Seconds(0.5), absl::Seconds(8)),
               [this, &link, direction, sent, action = std::move(action)]() mutable {
                 Arrive(link, direction, sent, std::move(action));
               });
}

void Network::Send(Link& link, Direction direction, std::function<void()> action) {
  if (Lost(link)) {
    world_.Count("network: message lost");
    return;
  }
  absl::Duration delay = world_.random().Spread(link.min_delay, link.max_delay);
  if (world_.random().Chance(kLate)) {
    world_.Count("network: message late");
    delay += world_.random().Spread(absl::Seconds(1), absl::Seconds(60));
  }
  world_.After(delay,
               [this, &link, direction, sent = world_.now(), action = std::move(action)]() mutable {
                 Arrive(link, direction, sent, std::move(action));
               });
}

void Network::Call(Link& link, absl::Duration timeout, std::function<absl::Status()> serve,
                   std::function<void(const absl::Status&)> done) {
  auto finish = [done = std::move(done),
                 finished = std::make_shared<bool>(false)](const absl::Status& status) {
    if (std::exchange(*finished, true)) return;
    done(status);
  };
  const auto give_up = [this, finish](absl::Duration after, absl::Status status) {
    world_.After(after, [finish, status = std::move(status)] { finish(status); });
  };
  give_up(timeout, absl::DeadlineExceededError("simulated: no answer in time"));
  const auto request = [this, &link, serve = std::move(serve), finish, give_up] {
    listener_.Enter([this, &link, serve, finish, give_up](bool up) {
      absl::Status status = absl::UnavailableError("simulated: connection refused");
      if (up) status = serve();
      if (up && !listener_.answers()) {  // it died on the way
        give_up(world_.random().Spread(absl::Milliseconds(1), absl::Seconds(5)),
                absl::UnavailableError("simulated: connection reset"));
        return;
      }
      Send(link, Direction::kDown, [finish, status = std::move(status)] { finish(status); });
    });
  };
  Send(link, Direction::kUp, request);
  link.recent.push_back({world_.now(), request});
  if (link.recent.size() > kRecent) link.recent.pop_front();
  if (world_.random().Chance(kDuplicate)) {
    world_.Count("network: request twice");
    world_.After(world_.random().Spread(absl::Milliseconds(1), kHeldFor),
                 [this, &link, request] { Send(link, Direction::kUp, request); });
  }
}

void Network::Replay(Link& link) {
  for (const Sent& sent : link.recent) {
    if (world_.now() - sent.when > kHeldFor) continue;
    world_.Count("network: request twice");
    world_.After(world_.random().Between(absl::Seconds(3), absl::Minutes(1)),
                 [this, &link, request = sent.request] { Send(link, Direction::kUp, request); });
  }
}

void Pipe::Send(std::function<void()> action) {
  waiting_.push_back(std::move(action));
  if (waiting_.size() > 1) return;
  Random& random = network_.world().random();
  absl::Duration delay = random.Spread(link_.min_delay, link_.max_delay);
  if (random.Chance(link_.loss)) {  // sent again by TCP
    network_.world().Count("network: stream delayed");
    delay += random.Spread(absl::Milliseconds(200), absl::Seconds(10));
  }
  Arm(delay);
}

void Pipe::Arm(absl::Duration delay) {
  network_.world().After(delay, [self = shared_from_this()] {
    Random& random = self->network_.world().random();
    if (IsCut(self->link_, self->direction_)) {
      self->Arm(random.Between(absl::Seconds(0.5), absl::Seconds(8)));
      return;
    }
    const std::function<void()> action = std::move(self->waiting_.front());
    self->waiting_.pop_front();
    if (!self->waiting_.empty()) {
      self->Arm(random.Spread(absl::Microseconds(10), absl::Milliseconds(5)));
    }
    action();
  });
}

}  // namespace switchyard::simulation
