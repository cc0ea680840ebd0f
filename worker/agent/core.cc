#include "worker/agent/core.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "worker/agent/failure.h"

namespace switchyard {
namespace {

// From a Stop order without one.
constexpr absl::Duration kDefaultGrace = absl::Seconds(30);

template <typename Order>
AttemptId IdOf(const Order& order) {
  return {JobId(order.job()), order.attempt()};
}

absl::Duration FromProto(const google::protobuf::Duration& duration) {
  return absl::Seconds(duration.seconds()) + absl::Nanoseconds(duration.nanos());
}

absl::Duration GraceOf(const v1::Stop& stop) {
  return stop.has_grace_period() ? FromProto(stop.grace_period()) : kDefaultGrace;
}

v1::FailureReason StorageReason(const absl::Status& status) {
  return absl::IsResourceExhausted(status) ? v1::DISK_FULL : v1::STORAGE_IO;
}

}  // namespace

absl::Duration KillBudget(absl::Duration lease_ttl) {
  return std::min(absl::Seconds(15), lease_ttl / 4);
}

std::string MakeIncarnation(absl::Duration now, uint64_t random) {
  return absl::StrFormat("%016x-%016x", absl::ToInt64Nanoseconds(now), random);
}

StopRequest KillRequest(StopCause cause, std::string reason) {
  StopRequest request;
  request.cause = cause;
  request.reason = std::move(reason);
  request.kill = true;
  return request;
}

v1::Finished FinishedByStop(const StopRequest& stop, const std::string& node) {
  v1::Finished finished;
  switch (stop.cause) {
    case StopCause::kLease:
      *finished.mutable_failure() = ServiceFailure(v1::NODE_LOST, stop.reason, node);
      break;
    case StopCause::kShutdown:
      *finished.mutable_failure() = ServiceFailure(v1::DRAINED, stop.reason, node);
      break;
    case StopCause::kOrder:
    case StopCause::kStale:
      finished.set_stopped(true);
      break;
  }
  return finished;
}

// ---- memory ----

void AgentMemory::Apply(const JournalRecord& record) {
  int32_t& highest = highest_attempt[record.attempt.job];
  highest = std::max(highest, record.attempt.number);
  if (record.kind == JournalRecord::Kind::kAssign) {
    attempts[record.attempt].assign.ParseFromString(record.order);
    return;
  }
  const auto it = attempts.find(record.attempt);
  if (it == attempts.end()) return;
  switch (record.kind) {
    case JournalRecord::Kind::kStart:
      it->second.start.emplace().ParseFromString(record.order);
      break;
    case JournalRecord::Kind::kStop:
      it->second.stop.emplace().ParseFromString(record.order);
      it->second.stop_time = record.time;
      break;
    case JournalRecord::Kind::kForget:
      attempts.erase(it);
      break;
    case JournalRecord::Kind::kFence:
    case JournalRecord::Kind::kAssign:
      break;
  }
}

std::vector<JournalRecord> AgentMemory::Records() const {
  using Kind = JournalRecord::Kind;
  std::vector<JournalRecord> records;
  for (const auto& [job, number] : highest_attempt) {
    records.push_back({Kind::kFence, {job, number}, absl::ZeroDuration(), ""});
  }
  for (const auto& [id, attempt] : attempts) {
    records.push_back(
        {Kind::kAssign, id, absl::ZeroDuration(), attempt.assign.SerializeAsString()});
    if (attempt.start.has_value()) {
      records.push_back(
          {Kind::kStart, id, absl::ZeroDuration(), attempt.start->SerializeAsString()});
    }
    if (attempt.stop.has_value()) {
      records.push_back({Kind::kStop, id, attempt.stop_time, attempt.stop->SerializeAsString()});
    }
  }
  return records;
}

// ---- start ----

AgentCore::AgentCore(AgentCoreOptions options, AgentJournal& journal, const AgentMemory& memory,
                     const std::set<AttemptId>& finished)
    : options_(std::move(options)), journal_(journal), highest_attempt_(memory.highest_attempt) {
  if (options_.deadline > absl::ZeroDuration()) kill_time_ = options_.deadline;
  for (const auto& [id, remembered] : memory.attempts) {
    Attempt& attempt = attempts_[id];
    attempt.assign = remembered.assign;
    attempt.start = remembered.start;
    attempt.phase = finished.contains(id)          ? Phase::kEnded
                    : remembered.start.has_value() ? Phase::kStarted
                                                   : Phase::kWaiting;
    if (remembered.stop.has_value()) {
      attempt.remembered_stop = remembered.stop;
      attempt.stop_deadline = remembered.stop_time + GraceOf(*remembered.stop);
    }
  }
}

AgentActions AgentCore::Recover(absl::Duration now) {
  AgentActions actions;
  for (auto& [id, attempt] : attempts_) {
    if (attempt.phase == Phase::kStarted) actions.push_back(AdoptGang{id});
    if (attempt.phase == Phase::kWaiting) {
      attempt.wait_deadline = now + options_.stale_gang_timeout;
    }
  }
  std::vector<std::pair<AttemptId, StopRequest>> stops;
  for (auto& [id, attempt] : attempts_) {
    if (!attempt.remembered_stop.has_value() || attempt.phase == Phase::kEnded) continue;
    StopRequest request;
    request.reason = attempt.remembered_stop->reason();
    request.checkpoint = attempt.remembered_stop->checkpoint();
    request.grace = std::max(attempt.stop_deadline - now, absl::ZeroDuration());
    stops.emplace_back(id, std::move(request));
  }
  for (const auto& [id, request] : stops) Stop(id, request, actions);
  LaunchWaiting(actions);
  return actions;
}

// ---- messages to the coordinator ----

std::vector<AttemptId> AgentCore::AnsweredFor() const {
  std::vector<AttemptId> ids;
  for (const auto& [id, attempt] : attempts_) ids.push_back(id);
  return ids;
}

std::vector<AttemptId> AgentCore::Live() const {
  std::vector<AttemptId> ids;
  for (const auto& [id, attempt] : attempts_) {
    if (attempt.phase != Phase::kEnded) ids.push_back(id);
  }
  return ids;
}

std::vector<int> AgentCore::OfferedDevices() const {
  std::vector<int> devices;
  for (const int device : options_.devices) {
    if (!withheld_.contains(device)) devices.push_back(device);
  }
  return devices;
}

int64_t AgentCore::NextHeartbeat(absl::Duration now) {
  sent_heartbeats_.emplace_back(++last_heartbeat_, now);
  return last_heartbeat_;
}

// ---- what the coordinator says ----

absl::Status AgentCore::CheckEpoch(int64_t epoch) {
  if (epoch < highest_epoch_) {
    return absl::AbortedError(
        absl::StrCat("the coordinator has epoch ", epoch, ", but epoch ", highest_epoch_,
                     " was seen: it is an old one, or lost its database. To follow it all the "
                     "same, restart this agent"));
  }
  highest_epoch_ = epoch;
  return absl::OkStatus();
}

void AgentCore::ExtendLease(absl::Duration sent, AgentActions& actions) {
  lease_start_ = sent;
  const absl::Duration end = lease_start_ + lease_ttl_;
  kill_time_ = end - KillBudget(lease_ttl_);
  actions.push_back(MoveDeadline{end - KillBudget(lease_ttl_) / 2});
}

absl::StatusOr<AgentActions> AgentCore::OnRegistered(const v1::RegisterResponse& response,
                                                     absl::Duration sent,
                                                     const ReportNumbers& reports,
                                                     absl::Duration now) {
  RETURN_IF_ERROR(CheckEpoch(response.coordinator_epoch()));
  AgentActions actions;
  if (response.acknowledged_report() + 1 < reports.first ||
      response.acknowledged_report() >= reports.next) {
    actions.push_back(RenewIncarnation{});
    return actions;
  }
  if (response.has_heartbeat_interval()) {
    heartbeat_interval_ =
        std::max(FromProto(response.heartbeat_interval()), absl::Milliseconds(10));
  }
  if (response.has_lease_ttl()) lease_ttl_ = FromProto(response.lease_ttl());
  ExtendLease(sent, actions);
  is_registered_ = true;
  last_ack_ = now;
  sent_heartbeats_.clear();
  last_heartbeat_ = 0;
  connected_ = true;
  std::vector<AttemptId> stale;
  for (const v1::AttemptRef& ref : response.stale_attempts()) stale.push_back(IdOf(ref));
  for (AgentAction& action : OnStale(stale)) actions.push_back(std::move(action));
  KillWithoutLease(now, actions);          // the answer may have come too late to be of use
  for (auto& [id, attempt] : attempts_) {  // those that waited for this
    if (attempt.phase != Phase::kPrepared || !MayLaunch(attempt)) continue;
    attempt.phase = Phase::kStarted;
    actions.push_back(LaunchGang{id});
  }
  return actions;
}

absl::StatusOr<AgentActions> AgentCore::OnSessionResponse(const v1::SessionResponse& response,
                                                          absl::Duration now) {
  RETURN_IF_ERROR(CheckEpoch(response.coordinator_epoch()));
  AgentActions actions;
  switch (response.order_case()) {
    case v1::SessionResponse::kHeartbeatAck:
      OnAck(response.heartbeat_ack().heartbeat(), now, actions);
      break;
    case v1::SessionResponse::kAssign:
      OnAssign(response.assign(), now, actions);
      break;
    case v1::SessionResponse::kStart:
      OnStart(response.start(), now, actions);
      break;
    case v1::SessionResponse::kStop:
      OnStop(response.stop(), now, actions);
      break;
    case v1::SessionResponse::ORDER_NOT_SET:
      SY_LOG(WARNING) << "an order that this version does not know is ignored";
      break;
  }
  return actions;
}

void AgentCore::OnAck(int64_t heartbeat, absl::Duration now, AgentActions& actions) {
  absl::Duration sent = lease_start_;
  while (!sent_heartbeats_.empty() && sent_heartbeats_.front().first <= heartbeat) {
    sent = std::max(sent, sent_heartbeats_.front().second);
    sent_heartbeats_.pop_front();
  }
  last_ack_ = now;
  ++num_acks_;
  if (sent > lease_start_) ExtendLease(sent, actions);
}

bool AgentCore::IsNew(const AttemptId& id) const {
  const auto it = highest_attempt_.find(id.job);
  return it == highest_attempt_.end() || id.number > it->second;
}

bool AgentCore::IsOvertaken(const AttemptId& id) const {
  const auto it = highest_attempt_.find(id.job);
  return it != highest_attempt_.end() && id.number < it->second;
}

absl::Status AgentCore::Remember(JournalRecord record) {
  int32_t& highest = highest_attempt_[record.attempt.job];
  highest = std::max(highest, record.attempt.number);
  const absl::Status status = journal_.Append(record);
  if (!status.ok()) {
    SY_LOG(ERROR) << "journal: " << status << " job=" << record.attempt.job
                  << " attempt=" << record.attempt.number;
  }
  return status;
}

void AgentCore::Refuse(const AttemptId& id, v1::FailureReason reason, const std::string& message,
                       AgentActions& actions) {
  SY_LOG(WARNING) << "order refused: " << message << " job=" << id.job << " attempt=" << id.number;
  // Should it fail, only a repeated order could come: it is answered by the same refusal.
  Remember({JournalRecord::Kind::kFence, id, absl::ZeroDuration(), ""}).IgnoreError();
  v1::Report report;
  *report.mutable_finished()->mutable_failure() = ServiceFailure(reason, message, options_.node);
  actions.push_back(SendReport{id, std::move(report)});
}

void AgentCore::AnswerAgain(const AttemptId& id, AgentActions& actions) {
  if (attempts_.contains(id) || IsOvertaken(id)) return;
  SY_LOG(WARNING) << "order repeated for an attempt that was refused or has ended job=" << id.job
                  << " attempt=" << id.number;
  v1::Report report;
  *report.mutable_finished()->mutable_failure() = ServiceFailure(
      v1::EXIT_UNKNOWN,
      absl::StrCat("the agent of node ", options_.node,
                   " has refused or ended this attempt, and its word of it was lost"),
      options_.node);
  actions.push_back(SendReport{id, std::move(report)});
}

absl::Status AgentCore::CheckDevices(const AttemptId& id, const v1::Assign& assign) const {
  if (assign.devices().empty()) return absl::InvalidArgumentError("the order names no device");
  std::set<int> wanted;
  for (const int index : assign.devices()) {
    const bool exists = std::count(options_.devices.begin(), options_.devices.end(), index) > 0;
    if (!exists || !wanted.insert(index).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("device ", index, exists ? " is named twice" : " does not exist",
                       ", this node has ", options_.devices.size(), " devices"));
    }
    if (withheld_.contains(index)) {
      return absl::ResourceExhaustedError(
          absl::StrCat("device ", index, " is withheld: other processes use it"));
    }
  }
  for (const auto& [other_id, other] : attempts_) {
    // An older attempt of the same job is over for the coordinator.
    if (other.phase == Phase::kEnded || (other_id.job == id.job && other_id.number < id.number)) {
      continue;
    }
    for (const int held : other.assign.devices()) {
      if (!wanted.contains(held)) continue;
      return absl::ResourceExhaustedError(absl::StrCat(
          "device ", held, " is held by attempt ", other_id.number, " of ", other_id.job.value()));
    }
  }
  return absl::OkStatus();
}

bool AgentCore::HasOlderLive(const AttemptId& id) const {
  return std::any_of(attempts_.begin(), attempts_.end(), [&id](const auto& entry) {
    return entry.first.job == id.job && entry.first.number < id.number &&
           entry.second.phase != Phase::kEnded;
  });
}

void AgentCore::OnAssign(const v1::Assign& assign, absl::Duration now, AgentActions& actions) {
  const AttemptId id = IdOf(assign);
  if (!IsNew(id)) {
    AnswerAgain(id, actions);
    return;
  }
  if (shutting_down_) {
    Refuse(id, v1::DRAINED, absl::StrCat("the agent of node ", options_.node, " is being stopped"),
           actions);
    return;
  }
  if (const absl::Status status = CheckDevices(id, assign); !status.ok()) {
    Refuse(id, v1::INTERNAL, absl::StrCat("assign on node ", options_.node, ": ", status.message()),
           actions);
    return;
  }
  const absl::Status remembered =
      Remember({JournalRecord::Kind::kAssign, id, now, assign.SerializeAsString()});
  if (!remembered.ok()) {
    Refuse(id, StorageReason(remembered),
           absl::StrCat("assign on node ", options_.node, ": ", remembered.message()), actions);
    return;
  }
  SY_LOG(INFO) << "attempt assigned job=" << id.job << " attempt=" << id.number
               << " devices=" << assign.devices_size();
  Attempt& attempt = attempts_[id];
  attempt.assign = assign;
  attempt.wait_deadline = now + options_.stale_gang_timeout;
  for (const AttemptId& older : Live()) {
    if (older.job == id.job && older.number < id.number) {
      Stop(older, KillRequest(StopCause::kStale, "a newer attempt was assigned"), actions);
    }
  }
  LaunchWaiting(actions);
}

void AgentCore::LaunchWaiting(AgentActions& actions) {
  for (auto& [id, attempt] : attempts_) {
    if (attempt.phase != Phase::kWaiting || HasOlderLive(id)) continue;
    attempt.phase = Phase::kPreparing;
    actions.push_back(LaunchPrep{id});
  }
}

void AgentCore::OnStart(const v1::Start& start, absl::Duration now, AgentActions& actions) {
  const AttemptId id = IdOf(start);
  const auto it = attempts_.find(id);
  if (it == attempts_.end()) {
    if (!IsNew(id)) {
      AnswerAgain(id, actions);
      return;
    }
    Refuse(id, v1::EXIT_UNKNOWN,
           absl::StrCat("start on node ", options_.node,
                        ": this agent was never assigned the attempt"),
           actions);
    return;
  }
  Attempt& attempt = it->second;
  if (attempt.phase == Phase::kEnded || attempt.start.has_value()) return;
  KillWithoutLease(now, actions);
  if (attempt.killed || attempt.remembered_stop.has_value() || shutting_down_) return;  // it ends
  const absl::Status remembered =
      Remember({JournalRecord::Kind::kStart, id, absl::ZeroDuration(), start.SerializeAsString()});
  if (!remembered.ok()) {
    // Trainers whose start is not in the journal could be started a second time.
    const std::string message =
        absl::StrCat("start on node ", options_.node, ": ", remembered.message());
    actions.push_back(StopAttempt{id, KillRequest(StopCause::kOrder, message)});
    v1::Finished finished;
    *finished.mutable_failure() = ServiceFailure(StorageReason(remembered), message, options_.node);
    End(id, std::move(finished), actions);
    return;
  }
  attempt.start = start;
  if (attempt.phase == Phase::kPrepared) {
    attempt.phase = Phase::kStarted;
    actions.push_back(LaunchGang{id});
  }
}

void AgentCore::OnStop(const v1::Stop& stop, absl::Duration now, AgentActions& actions) {
  const AttemptId id = IdOf(stop);
  const auto it = attempts_.find(id);
  if (it == attempts_.end()) {
    if (IsOvertaken(id)) return;
    // Should its Assign still be on the way, it is refused.
    if (IsNew(id)) Remember({JournalRecord::Kind::kFence, id, now, ""}).IgnoreError();
    v1::Report report;
    report.mutable_finished()->set_stopped(true);
    actions.push_back(SendReport{id, std::move(report)});
    return;
  }
  Attempt& attempt = it->second;
  const absl::Duration deadline = now + GraceOf(stop);
  if (attempt.phase == Phase::kEnded) return;
  if (attempt.remembered_stop.has_value() && attempt.stop_deadline <= deadline) return;
  // Should it fail, the coordinator repeats the order after a start of this agent.
  Remember({JournalRecord::Kind::kStop, id, now, stop.SerializeAsString()}).IgnoreError();
  attempt.remembered_stop = stop;
  attempt.stop_deadline = deadline;
  StopRequest request;
  request.reason = stop.reason();
  request.grace = GraceOf(stop);
  request.checkpoint = stop.checkpoint();
  Stop(id, request, actions);
}

AgentActions AgentCore::OnStale(const std::vector<AttemptId>& attempts) {
  AgentActions actions;
  for (const AttemptId& id : attempts) {
    const Attempt* attempt = Find(id);
    if (attempt == nullptr || attempt->phase == Phase::kEnded || attempt->killed) continue;
    SY_LOG(WARNING) << "killing a stale attempt job=" << id.job << " attempt=" << id.number;
    Stop(id, KillRequest(StopCause::kStale, "the coordinator gave this attempt up"), actions);
  }
  return actions;
}

void AgentCore::Stop(const AttemptId& id, const StopRequest& request, AgentActions& actions) {
  Attempt& attempt = attempts_.at(id);
  if (attempt.phase == Phase::kEnded) return;
  attempt.killed |= request.kill;
  if (attempt.phase == Phase::kWaiting) {
    End(id, FinishedByStop(request, options_.node), actions);
  } else {
    actions.push_back(StopAttempt{id, request});
  }
}

void AgentCore::End(const AttemptId& id, v1::Finished finished, AgentActions& actions) {
  attempts_.at(id).phase = Phase::kEnded;
  v1::Report report;
  *report.mutable_finished() = std::move(finished);
  actions.push_back(SendReport{id, std::move(report)});
  LaunchWaiting(actions);
}

// ---- what happens on the node ----

const AgentCore::Attempt* AgentCore::Find(const AttemptId& id) const {
  const auto it = attempts_.find(id);
  return it == attempts_.end() ? nullptr : &it->second;
}

AgentActions AgentCore::OnPrepared(const AttemptId& id, v1::Prepared prepared, absl::Duration now) {
  AgentActions actions;
  const auto it = attempts_.find(id);
  if (it == attempts_.end() || it->second.phase != Phase::kPreparing) return actions;
  KillWithoutLease(now, actions);
  Attempt& attempt = it->second;
  attempt.phase = Phase::kPrepared;
  if (attempt.killed) return actions;
  if (attempt.start.has_value()) {  // prepared again, after a start of this agent
    // The coordinator may have given the attempt up meanwhile, for a lease that ended with a boot
    // or for a failure that was reported just before this agent's earlier life ended. OnRegistered
    // goes on, unless it names the attempt as stale.
    if (!is_registered_ || !MayLaunch(attempt)) return actions;
    attempt.phase = Phase::kStarted;
    actions.push_back(LaunchGang{id});
    return actions;
  }
  v1::Report report;
  *report.mutable_prepared() = std::move(prepared);
  actions.push_back(SendReport{id, std::move(report)});
  return actions;
}

AgentActions AgentCore::OnEnded(const AttemptId& id, v1::Finished finished) {
  AgentActions actions;
  const Attempt* attempt = Find(id);
  if (attempt == nullptr || attempt->phase == Phase::kEnded) return actions;
  End(id, std::move(finished), actions);
  return actions;
}

AgentActions AgentCore::OnNothingToAdopt(const AttemptId& id) {
  AgentActions actions;
  const auto it = attempts_.find(id);
  if (it == attempts_.end() || it->second.phase != Phase::kStarted) return actions;
  it->second.phase = Phase::kPreparing;
  actions.push_back(LaunchPrep{id});
  return actions;
}

AgentActions AgentCore::OnReportsDrained(const AttemptId& id) {
  AgentActions actions;
  const Attempt* attempt = Find(id);
  if (attempt == nullptr || attempt->phase != Phase::kEnded) return actions;
  // Should it fail, what is left of the attempt stays, and the next call tries again: an agent that
  // remembers the order and finds nothing of it would carry it out a second time.
  if (!Remember({JournalRecord::Kind::kForget, id, absl::ZeroDuration(), ""}).ok()) return actions;
  attempts_.erase(id);
  actions.push_back(ForgetAttempt{id});
  return actions;
}

AgentActions AgentCore::OnDevicesWithheld(std::set<int> devices) {
  AgentActions actions;
  if (devices == withheld_) return actions;
  withheld_ = std::move(devices);
  actions.push_back(EndSession{"the devices on offer have changed"});
  return actions;
}

AgentActions AgentCore::OnShutdown(absl::Duration grace) {
  AgentActions actions;
  shutting_down_ = true;
  StopRequest request;
  request.cause = StopCause::kShutdown;
  request.reason = absl::StrCat("the agent of node ", options_.node, " is being stopped");
  request.grace = grace;
  for (const AttemptId& id : Live()) Stop(id, request, actions);
  return actions;
}

AgentActions AgentCore::OnTime(absl::Duration now) {
  AgentActions actions;
  // A connection that died without a word: the stream does not end by itself.
  if (connected_ && now > SilentTime()) {
    connected_ = false;
    actions.push_back(EndSession{"heartbeats are not acknowledged"});
  }
  for (const AttemptId& id : Live()) {
    const Attempt* attempt = Find(id);
    if (attempt->phase == Phase::kWaiting && now >= attempt->wait_deadline) {
      v1::Finished finished;
      *finished.mutable_failure() = ServiceFailure(
          v1::INTERNAL,
          absl::StrCat("assign on node ", options_.node, ": an older attempt of the job is still ",
                       "not gone after ", absl::FormatDuration(options_.stale_gang_timeout)),
          options_.node);
      End(id, std::move(finished), actions);
    }
  }
  KillWithoutLease(now, actions);
  return actions;
}

void AgentCore::KillWithoutLease(absl::Duration now, AgentActions& actions) {
  if (now < kill_time_) return;
  const std::string message =
      absl::StrCat("lease ran out on node ", options_.node, ": no heartbeat was acknowledged ",
                   num_acks_ == 0 && lease_start_ == absl::ZeroDuration()
                       ? "since this agent started"
                       : absl::StrCat("for ", absl::FormatDuration(now - lease_start_),
                                      ", the lease lasts ", absl::FormatDuration(lease_ttl_)));
  for (const AttemptId& id : Live()) {
    if (Find(id)->killed) continue;
    SY_LOG(ERROR) << message << "; killing job=" << id.job << " attempt=" << id.number;
    Stop(id, KillRequest(StopCause::kLease, message), actions);
  }
}

absl::Duration AgentCore::NextTime() const {
  absl::Duration next = connected_ ? SilentTime() : absl::InfiniteDuration();
  for (const auto& [id, attempt] : attempts_) {
    if (attempt.phase == Phase::kEnded) continue;
    if (attempt.phase == Phase::kWaiting) next = std::min(next, attempt.wait_deadline);
    if (!attempt.killed) next = std::min(next, kill_time_);
  }
  return next;
}

}  // namespace switchyard
