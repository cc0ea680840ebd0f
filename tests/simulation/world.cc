#include "tests/simulation/world.h"

#include <stdio.h>

#include <algorithm>
#include <utility>

namespace switchyard::simulation {

void World::At(absl::Duration when, std::function<void()> action) {
  events_.push({std::max(when, now_), next_order_++, std::move(action)});
}

bool World::Step() {
  if (events_.empty()) return false;
  // top() is const; the event is popped at once, so that its order does not matter any more.
  Event event = std::move(const_cast<Event&>(events_.top()));
  events_.pop();
  if (event.when > now_) {
    clock_.Advance(event.when - now_);
    now_ = event.when;
  }
  ++num_steps_;
  event.action();
  return true;
}

void World::Violate(const std::string& what) {
  if (!violation_.empty()) return;
  violation_ = absl::StrCat("at ", absl::FormatDuration(now_), ": ", what);
  Trace("VIOLATION ", what);
}

void World::Mix(absl::string_view what) {
  const auto mix = [this](unsigned char c) { digest_ = (digest_ ^ c) * 0x100000001b3; };
  for (const char c : what) mix(static_cast<unsigned char>(c));
  const int64_t time = absl::ToInt64Nanoseconds(now_);
  for (int shift = 0; shift < 64; shift += 8) mix(static_cast<unsigned char>(time >> shift));
}

void World::Print(const std::string& line) const {
  printf("%12.6f %s\n", absl::ToDoubleSeconds(now_), line.c_str());
}

}  // namespace switchyard::simulation
