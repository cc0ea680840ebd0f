// What an agent decides, without threads, clocks, files or network: orders, heartbeats, the ends of
// processes and the time go in, actions come out. `Agent` is its shell in production; the
// deterministic simulation (tests/simulation) is another one.
//
// Life of an attempt on this node:
//
//   Assign ─► WAITING ─────► PREPARING ──OnPrepared──► PREPARED ──Start──► STARTED ──OnEnded──►
//   ENDED
//             (an older       (LaunchPrep)                       (LaunchGang)                   │
//              attempt of                                                     OnReportsDrained ─►
//              gone the job ends)
//
// Lease: attempts may run until (send time of the last acknowledged heartbeat) + TTL. A kill budget
// before that the agent kills all of them; half of it later their shims do, should this agent be
// stopped. So by the end of the lease none is left, and the coordinator, who counts from the time
// of receipt, always acts later.
//
// Durable: the orders accepted and the highest attempt number seen of each job are in the journal
// before any action follows from them. An agent that starts again continues from there.
#ifndef SWITCHYARD_WORKER_AGENT_CORE_H_
#define SWITCHYARD_WORKER_AGENT_CORE_H_

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/ids.h"
#include "switchyard/v1/agent_link.pb.h"

namespace switchyard {

// How long before the end of its lease an agent begins to kill: service.md 2.4's 15 s, less for the
// short leases of tests.
absl::Duration KillBudget(absl::Duration lease_ttl);

// A new incarnation (base/ids.h). `now`: monotonic.
std::string MakeIncarnation(absl::Duration now, uint64_t random);

// ---- what survives the agent's process ----

// One accepted order, or a fence.
struct JournalRecord {
  enum class Kind : uint8_t {
    kFence = 1,   // the job's attempts up to this number are refused
    kAssign = 2,  // order: serialized v1::Assign; also a fence
    kStart = 3,   // order: serialized v1::Start
    kStop = 4,    // order: serialized v1::Stop, received at `time`
    kForget = 5,  // the attempt has ended, and the coordinator knows all of it
  };
  Kind kind = Kind::kFence;
  AttemptId attempt;
  absl::Duration time;  // Clock::Monotonic
  std::string order;
};

class AgentJournal {
 public:
  virtual ~AgentJournal() = default;
  // Durable when it returns OK. Errors: ResourceExhausted for a full disk, Unavailable.
  virtual absl::Status Append(const JournalRecord& record) = 0;
};

// The journal's records put together.
struct AgentMemory {
  struct Attempt {
    v1::Assign assign;
    std::optional<v1::Start> start;
    std::optional<v1::Stop> stop;
    absl::Duration stop_time;
  };
  std::map<JobId, int32_t> highest_attempt;
  std::map<AttemptId, Attempt> attempts;

  // A record that does not fit (an order for an unknown attempt) has no effect.
  void Apply(const JournalRecord& record);
  // The records that put it together again: what a compacted journal holds.
  std::vector<JournalRecord> Records() const;
};

// ---- actions ----

enum class StopCause {
  kOrder,     // the coordinator's Stop: reported as stopped
  kStale,     // the coordinator said that this attempt is over: killed
  kLease,     // no acknowledged heartbeat for too long: killed, reported as NODE_LOST
  kShutdown,  // this agent is being stopped: reported as DRAINED
};

struct StopRequest {
  StopCause cause = StopCause::kOrder;
  std::string reason;
  absl::Duration grace;     // from the stop frame to SIGTERM
  bool checkpoint = false;  // whether the trainers write one first
  bool kill = false;        // SIGKILL at once
};

// SIGKILL at once.
StopRequest KillRequest(StopCause cause, std::string reason);

// Run prep. Answered by OnPrepared or OnEnded.
struct LaunchPrep {
  AttemptId id;
};
// Start the shim with the trainers. Answered by OnEnded.
struct LaunchGang {
  AttemptId id;
};
// After a start of the agent: find the shim of this attempt, or how its trainers ended. Answered by
// OnEnded, or by OnNothingToAdopt when no trainer was ever started.
struct AdoptGang {
  AttemptId id;
};
// In any state after LaunchPrep. The first cause stays; a later one can only make the end earlier.
struct StopAttempt {
  AttemptId id;
  StopRequest request;
};
// Add to the report spool, which numbers it.
struct SendReport {
  AttemptId id;
  v1::Report report;  // only `what` is set
};
// Remove what is left of it.
struct ForgetAttempt {
  AttemptId id;
};
// From this time (monotonic) on shims kill their trainers.
struct MoveDeadline {
  absl::Duration deadline;
};
// End the session, so that the agent registers again.
struct EndSession {
  std::string why;
};
// Take a new incarnation, number the unacknowledged reports from 1, register again: the coordinator
// wants reports that are gone (it was restored from a backup).
struct RenewIncarnation {};

using AgentAction = std::variant<LaunchPrep, LaunchGang, AdoptGang, StopAttempt, SendReport,
                                 ForgetAttempt, MoveDeadline, EndSession, RenewIncarnation>;
using AgentActions = std::vector<AgentAction>;

// The numbers of the report spool.
struct ReportNumbers {
  int64_t first = 1;  // the lowest that can still be sent; `next` when none is pending
  int64_t next = 1;   // of the report added next
};

// The final report of an attempt that was stopped before it ended by itself.
v1::Finished FinishedByStop(const StopRequest& stop, const std::string& node);

struct AgentCoreOptions {
  std::string node;
  std::vector<int> devices;  // indices
  // Of the life before this one: when its shims kill. Zero: there was none.
  absl::Duration deadline;
  // How long an Assign waits for an older attempt of its job to be gone.
  absl::Duration stale_gang_timeout = absl::Seconds(10);
};

// Not thread-safe. Times are Clock::Monotonic (CLOCK_BOOTTIME, so that a suspended machine does not
// believe in an old lease). Actions are to be carried out in order; each input's before those of
// the next.
class AgentCore {
 public:
  // `memory`: the journal's content. `finished`: attempts whose Finished report is in the spool,
  // not acknowledged. The journal must outlive it.
  AgentCore(AgentCoreOptions options, AgentJournal& journal, const AgentMemory& memory,
            const std::set<AttemptId>& finished);

  // Once, first: takes up what the life before left.
  AgentActions Recover(absl::Duration now);

  // ---- messages to the coordinator ----

  // Attempts that this agent answers for: not ended, or ended with unacknowledged reports. What
  // RegisterRequest.live_attempts holds.
  std::vector<AttemptId> AnsweredFor() const;
  // Attempts that have not ended: what a heartbeat holds.
  std::vector<AttemptId> Live() const;
  // Devices to offer: all but the withheld ones.
  std::vector<int> OfferedDevices() const;
  // The number of the heartbeat that is sent now.
  int64_t NextHeartbeat(absl::Duration now);

  // ---- what the coordinator says ----

  // `sent`: when the request was sent.
  // Errors: Aborted: an epoch lower than one seen before, an old coordinator; nothing was done.
  absl::StatusOr<AgentActions> OnRegistered(const v1::RegisterResponse& response,
                                            absl::Duration sent, const ReportNumbers& reports,
                                            absl::Duration now);
  // Errors: as OnRegistered.
  absl::StatusOr<AgentActions> OnSessionResponse(const v1::SessionResponse& response,
                                                 absl::Duration now);
  void OnSessionEnded() { connected_ = false; }
  AgentActions OnStale(const std::vector<AttemptId>& attempts);

  // ---- what happens on the node ----

  AgentActions OnPrepared(const AttemptId& id, v1::Prepared prepared, absl::Duration now);
  // No process of the attempt is left, and its devices are free (or are withheld).
  AgentActions OnEnded(const AttemptId& id, v1::Finished finished);
  AgentActions OnNothingToAdopt(const AttemptId& id);
  // All reports of an ended attempt are acknowledged. Nothing follows while the journal fails: call
  // again.
  AgentActions OnReportsDrained(const AttemptId& id);
  // Devices that a foreign process holds, or a broken one: not offered. Registers again on a
  // change.
  AgentActions OnDevicesWithheld(std::set<int> devices);
  // The agent is being stopped: stops all with `grace`, refuses what comes.
  AgentActions OnShutdown(absl::Duration grace);
  AgentActions OnTime(absl::Duration now);
  // When OnTime is due; InfiniteDuration: never, as things are.
  absl::Duration NextTime() const;

  // ---- state ----

  enum class Phase { kWaiting, kPreparing, kPrepared, kStarted, kEnded };
  struct Attempt {
    Phase phase = Phase::kWaiting;
    v1::Assign assign;
    std::optional<v1::Start> start;
    bool killed = false;  // a StopAttempt with kill was given
    // The Stop order that ends it soonest, and when its grace period ends.
    std::optional<v1::Stop> remembered_stop;
    absl::Duration stop_deadline;
    absl::Duration wait_deadline;  // in kWaiting
  };
  const std::map<AttemptId, Attempt>& attempts() const { return attempts_; }
  // Null: unknown.
  const Attempt* Find(const AttemptId& id) const;
  bool connected() const { return connected_; }
  int64_t num_acks() const { return num_acks_; }
  int64_t highest_epoch() const { return highest_epoch_; }
  absl::Duration heartbeat_interval() const { return heartbeat_interval_; }
  absl::Duration lease_ttl() const { return lease_ttl_; }

 private:
  absl::Status CheckEpoch(int64_t epoch);
  void OnAck(int64_t heartbeat, absl::Duration now, AgentActions& actions);
  void OnAssign(const v1::Assign& assign, absl::Duration now, AgentActions& actions);
  void OnStart(const v1::Start& start, absl::Duration now, AgentActions& actions);
  void OnStop(const v1::Stop& stop, absl::Duration now, AgentActions& actions);
  void ExtendLease(absl::Duration sent, AgentActions& actions);
  // Kills what lives past the lease. First in each input that could start trainers: a process that
  // was stopped, or a machine that was, may hear of an old order before its timer rings.
  void KillWithoutLease(absl::Duration now, AgentActions& actions);
  // Trainers are to start, and nothing that came since speaks against it.
  bool MayLaunch(const Attempt& attempt) const {
    return attempt.start.has_value() && !attempt.killed && !attempt.remembered_stop.has_value() &&
           !shutting_down_;
  }

  // False: `number` was seen before, or a higher one.
  bool IsNew(const AttemptId& id) const;
  // A higher number was seen: for the coordinator the attempt is over.
  bool IsOvertaken(const AttemptId& id) const;
  // A coordinator that repeats the order for an attempt that is known no more lacks its end: an
  // agent can die between the journal, which fences the attempt off, and the spool. One that has
  // it after all takes the report for a stale one.
  void AnswerAgain(const AttemptId& id, AgentActions& actions);
  // Fences the job's attempts up to `id` off, in memory even when the journal fails.
  absl::Status Remember(JournalRecord record);
  void Refuse(const AttemptId& id, v1::FailureReason reason, const std::string& message,
              AgentActions& actions);
  // Why the devices of an order cannot be had. Those of an older attempt of its job can.
  absl::Status CheckDevices(const AttemptId& id, const v1::Assign& assign) const;
  bool HasOlderLive(const AttemptId& id) const;
  void LaunchWaiting(AgentActions& actions);
  void Stop(const AttemptId& id, const StopRequest& request, AgentActions& actions);
  void End(const AttemptId& id, v1::Finished finished, AgentActions& actions);
  absl::Duration SilentTime() const {
    return last_ack_ + 3 * heartbeat_interval_ + absl::Seconds(2);
  }

  const AgentCoreOptions options_;
  AgentJournal& journal_;
  bool shutting_down_ = false;
  bool connected_ = false;
  int64_t highest_epoch_ = 0;  // not durable: restarting an agent lets it follow a lower one
  absl::Duration heartbeat_interval_ = absl::Seconds(5);
  absl::Duration lease_ttl_ = absl::Seconds(120);
  // No trainers are started before this life's first registration says what is stale.
  bool is_registered_ = false;
  absl::Duration kill_time_ = absl::InfiniteDuration();  // of all attempts, for want of a lease
  absl::Duration lease_start_;  // send time of the last acknowledged message
  absl::Duration deadline_;     // of the shims
  absl::Duration last_ack_;
  int64_t num_acks_ = 0;
  int64_t last_heartbeat_ = 0;
  // Heartbeats of this session on their way: number, send time.
  std::deque<std::pair<int64_t, absl::Duration>> sent_heartbeats_;
  std::map<JobId, int32_t> highest_attempt_;
  std::map<AttemptId, Attempt> attempts_;
  std::set<int> withheld_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_AGENT_CORE_H_
