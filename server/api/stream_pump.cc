#include "server/api/stream_pump.h"

#include <algorithm>
#include <limits>

namespace switchyard {
namespace {

constexpr absl::Duration kNow = -absl::InfiniteDuration();

}  // namespace

StreamPump::StreamPump(Clock& clock) : clock_(clock) {
  thread_ = Thread("stream-pump", [this](const StopToken& stop) { Loop(stop); });
}

uint64_t StreamPump::NewId() {
  MonitorLock lock(&mu_);
  return next_id_++;
}

bool StreamPump::Add(uint64_t id, StreamKind kind, PumpedStream* stream, const std::string& topic) {
  MonitorLock lock(&mu_);
  if (stopping_) return false;
  Entry& entry = streams_[id];
  entry = {stream, kind, topic, /*topic_changed=*/true, kNow, next_turn_++};
  due_.insert({entry.due, entry.turn, id});
  topics_.insert({topic, id});
  return true;
}

void StreamPump::SetTopic(uint64_t id, const std::string& topic) {
  MonitorLock lock(&mu_);
  const auto it = streams_.find(id);
  if (it == streams_.end()) return;
  topics_.erase({it->second.topic, id});
  it->second.topic = topic;
  it->second.topic_changed = true;
  topics_.insert({topic, id});
  Reschedule(id, it->second, kNow);
}

void StreamPump::Reschedule(uint64_t id, Entry& entry, absl::Duration due) {
  if (entry.due == kNow && due == kNow) return;  // keeps its turn
  due_.erase({entry.due, entry.turn, id});
  entry.due = due;
  entry.turn = next_turn_++;
  due_.insert({entry.due, entry.turn, id});
}

void StreamPump::PromoteDue(absl::Duration now) {
  const auto first_timed = [this]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    return due_.upper_bound(Due{kNow, std::numeric_limits<uint64_t>::max(), 0});
  };
  for (auto it = first_timed(); it != due_.end() && std::get<0>(*it) <= now; it = first_timed()) {
    const uint64_t id = std::get<2>(*it);
    Reschedule(id, streams_.at(id), kNow);
  }
}

void StreamPump::Wake(uint64_t id) {
  MonitorLock lock(&mu_);
  const auto it = streams_.find(id);
  if (it != streams_.end()) Reschedule(id, it->second, kNow);
}

void StreamPump::WakeTopic(const std::string& topic) {
  MonitorLock lock(&mu_);
  for (auto it = topics_.lower_bound({topic, 0}); it != topics_.end() && it->first == topic; ++it) {
    Entry& entry = streams_.at(it->second);
    entry.topic_changed = true;
    Reschedule(it->second, entry, kNow);
  }
}

int StreamPump::Count(StreamKind kind) {
  MonitorLock lock(&mu_);
  return static_cast<int>(std::count_if(streams_.begin(), streams_.end(), [&](const auto& item) {
    return item.second.kind == kind;
  }));
}

void StreamPump::Stop() {
  {
    MonitorLock lock(&mu_);
    stopping_ = true;
    for (auto& [id, entry] : streams_) Reschedule(id, entry, kNow);
  }
  thread_.StopAndJoin();
}

bool StreamPump::HasWoken() const { return !due_.empty() && std::get<0>(*due_.begin()) == kNow; }

bool StreamPump::IsDue() const { return stopping_ || HasWoken(); }

void StreamPump::Loop(const StopToken&) {
  while (true) {
    uint64_t id = 0;
    PumpedStream* stream = nullptr;
    PumpedStream::Wakeup wakeup;
    {
      MonitorLock lock(&mu_);
      const absl::Duration now = clock_.Monotonic();
      PromoteDue(now);
      if (due_.empty() || std::get<0>(*due_.begin()) > now) {
        if (stopping_ && streams_.empty()) return;
        // While stopping, only a write in flight is waited for, and its end wakes us.
        const absl::Duration wait =
            due_.empty() ? absl::Hours(1) : std::get<0>(*due_.begin()) - now;
        if (stopping_) {
          mu_.AwaitWithTimeout([this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return HasWoken(); },
                               wait);
        } else {
          mu_.AwaitWithTimeout([this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return IsDue(); }, wait);
        }
        continue;
      }
      id = std::get<2>(*due_.begin());
      Entry& entry = streams_.at(id);
      stream = entry.stream;
      wakeup = {entry.topic_changed, stopping_};
      entry.topic_changed = false;
      // Steps again at a wakeup that comes during the step.
      Reschedule(id, entry, absl::InfiniteDuration());
    }
    const absl::optional<absl::Duration> next = stream->Step(wakeup);
    MonitorLock lock(&mu_);
    const auto it = streams_.find(id);
    if (!next) {
      due_.erase({it->second.due, it->second.turn, id});
      topics_.erase({it->second.topic, id});
      streams_.erase(it);
    } else if (it->second.due != kNow) {
      Reschedule(id, it->second, *next);
    }
  }
}

}  // namespace switchyard
