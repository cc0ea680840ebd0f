// Drives every open stream of the server from one thread.
//
// Why: a watch, a log follow and an agent's session are idle nearly always. With gRPC's synchronous
// API each would hold a thread; here it is an entry in a map. The streams use gRPC's callback API,
// whose threads only set flags and wake the pump. The pump makes one step at a time for each stream
// that was woken: it reads the next few rows or bytes at the stream's cursor and starts one write.
// The next step follows when that write is done, so a slow reader costs one message of memory, and
// nothing is ever queued for it. Woken streams take turns in the order in which they were woken, so
// that a few busy readers cannot hold up an agent's heartbeats.
//
// Unary calls stay on the synchronous API with a bounded number of threads: they are short.
#ifndef SWITCHYARD_SERVER_API_STREAM_PUMP_H_
#define SWITCHYARD_SERVER_API_STREAM_PUMP_H_

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <tuple>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/types/optional.h"
#include "base/clock.h"
#include "base/monitor.h"
#include "base/thread.h"

namespace switchyard {

class PumpedStream {
 public:
  virtual ~PumpedStream() = default;

  struct Wakeup {
    bool topic_changed = false;  // something about the stream's topic was committed
    bool stopping = false;       // end the stream now
  };
  // On the pump's thread only. Answers the monotonic time of the next step at the latest; nothing
  // after Finish(): the stream is never touched again and may delete itself.
  virtual absl::optional<absl::Duration> Step(const Wakeup& wakeup) = 0;
};

enum class StreamKind { kWatch, kSession };

class StreamPump {
 public:
  explicit StreamPump(Clock& clock);
  ~StreamPump() { Stop(); }

  // A new stream's id, before it is added: its callbacks may come first.
  uint64_t NewId() ABSL_LOCKS_EXCLUDED(mu_);
  // Steps the stream soon, and whenever it or its topic is woken. False: the pump has stopped; the
  // caller finishes the stream.
  bool Add(uint64_t id, StreamKind kind, PumpedStream* stream, const std::string& topic)
      ABSL_LOCKS_EXCLUDED(mu_);
  void SetTopic(uint64_t id, const std::string& topic) ABSL_LOCKS_EXCLUDED(mu_);

  // From any thread; never blocks. Unknown ids and topics are ignored.
  void Wake(uint64_t id) ABSL_LOCKS_EXCLUDED(mu_);
  void WakeTopic(const std::string& topic) ABSL_LOCKS_EXCLUDED(mu_);

  int Count(StreamKind kind) ABSL_LOCKS_EXCLUDED(mu_);

  // Ends all streams and the thread. Idempotent.
  void Stop() ABSL_LOCKS_EXCLUDED(mu_);

 private:
  struct Entry {
    PumpedStream* stream = nullptr;
    StreamKind kind = StreamKind::kWatch;
    std::string topic;
    bool topic_changed = false;
    absl::Duration due;  // as in due_
    uint64_t turn = 0;   // as in due_
  };
  using Due = std::tuple<absl::Duration, uint64_t, uint64_t>;  // time, turn, stream
  void Loop(const StopToken& stop) ABSL_LOCKS_EXCLUDED(mu_);
  void Reschedule(uint64_t id, Entry& entry, absl::Duration due) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Timers that have run out take their turn among the woken.
  void PromoteDue(absl::Duration now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool HasWoken() const ABSL_SHARED_LOCKS_REQUIRED(mu_);
  bool IsDue() const ABSL_SHARED_LOCKS_REQUIRED(mu_);

  Clock& clock_;
  Monitor mu_;
  uint64_t next_id_ ABSL_GUARDED_BY(mu_) = 1;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::map<uint64_t, Entry> streams_ ABSL_GUARDED_BY(mu_);
  uint64_t next_turn_ ABSL_GUARDED_BY(mu_) = 1;
  std::set<Due> due_ ABSL_GUARDED_BY(mu_);
  std::set<std::pair<std::string, uint64_t>> topics_ ABSL_GUARDED_BY(mu_);

  Thread thread_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_SERVER_API_STREAM_PUMP_H_
