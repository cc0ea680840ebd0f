#include "worker/agent/agent.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <system_error>

#include "absl/random/random.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/backoff.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "worker/agent/host_stats.h"

namespace switchyard {
namespace {

constexpr absl::Duration kCallTimeout = absl::Seconds(30);
// The coordinator reads a whole checkpoint when it verifies checksums.
constexpr absl::Duration kCommitTimeout = absl::Minutes(10);
// Upper bound of a wait that also has to notice an order to stop.
constexpr absl::Duration kWaitSlice = absl::Milliseconds(250);
constexpr absl::Duration kDefaultGrace = absl::Seconds(30);
constexpr absl::Duration kReportGrace = absl::Seconds(10);
constexpr absl::Duration kStaleGangTimeout = absl::Seconds(10);
constexpr int64_t kBatchBytes = 1 << 20;
constexpr BackoffPolicy kBackoff{absl::Milliseconds(200), absl::Seconds(5), 2.0};

std::string RandomId() {
  absl::BitGen random;
  return absl::StrFormat("%016x%016x", absl::Uniform<uint64_t>(random),
                         absl::Uniform<uint64_t>(random));
}

absl::Duration NextDelay(int failures) {
  absl::BitGen random;
  return BackoffDelay(kBackoff, failures, absl::Uniform(random, 0.0, 1.0));
}

absl::Duration FromProto(const google::protobuf::Duration& duration) {
  return absl::Seconds(duration.seconds()) + absl::Nanoseconds(duration.nanos());
}

template <typename Order>
AttemptId IdOf(const Order& order) {
  return {JobId(order.job()), order.attempt()};
}

StopRequest Kill(StopCause cause, std::string reason) {
  StopRequest request;
  request.cause = cause;
  request.reason = std::move(reason);
  request.kill = true;
  return request;
}

void RemoveFolder(const std::string& folder) {
  std::error_code error;
  std::filesystem::remove_all(folder, error);
  if (error) SY_LOG(WARNING) << "remove " << folder << ": " << error.message();
}

}  // namespace

absl::Duration KillBudget(absl::Duration lease_ttl) {
  return std::min(absl::Seconds(15), lease_ttl / 4);
}

absl::StatusOr<std::unique_ptr<Agent>> Agent::Start(const AgentConfig& config,
                                                    std::vector<DeviceInfo> devices,
                                                    std::shared_ptr<AgentMetrics> metrics,
                                                    Clock& clock) {
  RETURN_IF_ERROR(MakeFolders(config.state_dir));
  const std::string lock_path = config.state_dir + "/lock";
  UniqueFd lock(::open(lock_path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
  if (!lock.valid()) return ErrnoStatus("open", lock_path, errno);
  if (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("lock ", lock_path, ": another agent uses this state folder"));
  }
  RemoveFolder(config.state_dir + "/attempts");
  return std::unique_ptr<Agent>(
      new Agent(config, std::move(devices), std::move(metrics), clock, std::move(lock)));
}

Agent::Agent(const AgentConfig& config, std::vector<DeviceInfo> devices,
             std::shared_ptr<AgentMetrics> metrics, Clock& clock, UniqueFd lock)
    : config_(config),
      devices_(std::move(devices)),
      metrics_(std::move(metrics)),
      clock_(clock),
      lock_(std::move(lock)),
      incarnation_(RandomId()),
      client_(config.coordinator),
      spool_(clock) {
  metrics_->SetSource([this] { return Snapshot(); });
  lease_thread_ = Thread("lease", [this](const StopToken& stop) { LeaseLoop(stop); });
  report_thread_ = Thread("report", [this](const StopToken& stop) { ReportLoop(stop); });
  session_thread_ = Thread("session", [this](const StopToken& stop) { SessionLoop(stop); });
}

Agent::~Agent() {
  metrics_->SetSource(nullptr);
  session_thread_.RequestStop();
  RestartSession("the agent ends");
  session_thread_.StopAndJoin();
  report_thread_.StopAndJoin();
  lease_thread_.StopAndJoin();
  std::map<AttemptId, std::shared_ptr<Attempt>> attempts;
  {
    absl::MutexLock lock(&mu_);
    attempts.swap(attempts_);
  }
  for (const auto& [id, attempt] : attempts) {
    attempt->Stop(Kill(StopCause::kShutdown, "the agent ends"));
  }
  // An attempt's own thread may hold a reference for a moment; it must not be the last one.
  for (const auto& [id, attempt] : attempts) attempt->WaitFinished(absl::InfiniteDuration());
}

bool Agent::Shutdown() {
  {
    absl::MutexLock lock(&mu_);
    draining_ = true;
  }
  const absl::Duration deadline =
      clock_.Monotonic() + config_.shutdown_grace + config_.term_grace + kReportGrace;
  StopRequest request;
  request.cause = StopCause::kShutdown;
  request.reason = absl::StrCat("the agent of node ", config_.node, " is being stopped");
  request.grace = config_.shutdown_grace;
  const std::vector<std::shared_ptr<Attempt>> attempts = LiveAttempts();
  for (const auto& attempt : attempts) attempt->Stop(request);
  bool complete = true;
  for (const auto& attempt : attempts) {
    complete &= attempt->WaitFinished(deadline - clock_.Monotonic());
  }
  return spool_.WaitUntilEmpty(std::min(deadline - clock_.Monotonic(), kReportGrace)) && complete;
}

AgentSnapshot Agent::Snapshot() const {
  AgentSnapshot snapshot;
  snapshot.pending_reports = spool_.num_pending();
  size_t busy = 0;
  for (const auto& attempt : LiveAttempts()) {
    busy += attempt->devices().size();
    snapshot.attempts[attempt->id()] = attempt->pids();
  }
  snapshot.busy_devices = static_cast<int>(busy);
  snapshot.free_devices = static_cast<int>(devices_.size() - busy);
  absl::MutexLock lock(&mu_);
  snapshot.last_heartbeat_ack = last_ack_time_;
  snapshot.connected = connected_;
  return snapshot;
}

// ---- session ----

void Agent::SessionLoop(const StopToken& stop) {
  int failures = 0;
  while (!stop.StopRequested()) {
    bool was_up = false;
    const absl::Status status = RunSession(stop, &was_up);
    if (stop.StopRequested()) return;
    failures = was_up ? 0 : failures + 1;
    const absl::Duration delay = NextDelay(failures);
    SY_LOG(WARNING) << "no session with the coordinator at " << config_.coordinator << ": "
                    << status << "; next try in " << absl::FormatDuration(delay);
    stop.WaitForStop(delay);
  }
}

template <typename Request>
void Agent::AddLiveAttempts(Request& request) const {
  for (const auto& attempt : LiveAttempts()) {
    v1::AttemptRef* ref = request.add_live_attempts();
    ref->set_job(attempt->id().job.value());
    ref->set_attempt(attempt->id().number);
  }
}

absl::Status Agent::CheckEpoch(int64_t epoch) {
  absl::MutexLock lock(&mu_);
  if (epoch < highest_epoch_) {
    return absl::AbortedError(
        absl::StrCat("the coordinator at ", config_.coordinator, " has epoch ", epoch,
                     ", but epoch ", highest_epoch_,
                     " was seen: it is an old one, or lost its database. To follow it all the "
                     "same, restart this agent"));
  }
  highest_epoch_ = epoch;
  return absl::OkStatus();
}

absl::Status Agent::Register(const StopToken& stop) {
  v1::RegisterRequest request;
  request.set_node(config_.node);
  request.set_incarnation(incarnation_);
  request.set_boot_id(ReadBootId());
  request.set_address(config_.address);
  request.set_version(kAgentVersion);
  for (const DeviceInfo& info : devices_) {
    v1::Device* device = request.add_devices();
    device->set_index(info.index);
    device->set_kind(info.kind);
    device->set_memory_bytes(info.memory_bytes);
    device->set_uuid(info.uuid);
  }
  AddLiveAttempts(request);
  const absl::Duration sent = clock_.Monotonic();
  ASSIGN_OR_RETURN(const v1::RegisterResponse response,
                   client_.Register(request, kCallTimeout, stop));
  RETURN_IF_ERROR(CheckEpoch(response.coordinator_epoch()));
  {
    absl::MutexLock lock(&mu_);
    if (response.has_heartbeat_interval()) {
      heartbeat_interval_ =
          std::max(FromProto(response.heartbeat_interval()), absl::Milliseconds(10));
    }
    if (response.has_lease_ttl()) lease_ttl_ = FromProto(response.lease_ttl());
    lease_start_ = sent;
    last_ack_ = clock_.Monotonic();
    sent_heartbeats_.clear();
  }
  spool_.Acknowledge(response.acknowledged_report());
  KillStale(response.stale_attempts());
  SY_LOG(INFO) << "registered coordinator=" << config_.coordinator << " node=" << config_.node
               << " epoch=" << response.coordinator_epoch() << " devices=" << devices_.size();
  return absl::OkStatus();
}

absl::Status Agent::RunSession(const StopToken& stop, bool* was_up) {
  RETURN_IF_ERROR(Register(stop));
  std::shared_ptr<CoordinatorSession> session = client_.OpenSession();
  absl::Duration interval;
  int64_t acks_before;
  {
    absl::MutexLock lock(&mu_);
    session_ = session;
    connected_ = true;
    interval = heartbeat_interval_;
    acks_before = acks_;
  }
  if (stop.StopRequested()) session->Cancel();  // the stop may have come before session_ was set
  absl::Status status;
  {
    Thread heartbeats("heartbeat", [&](const StopToken& heartbeat_stop) {
      HeartbeatLoop(*session, interval, heartbeat_stop);
    });
    v1::SessionResponse response;
    while (status.ok() && session->Read(&response)) {
      status = CheckEpoch(response.coordinator_epoch());
      if (!status.ok()) break;
      switch (response.order_case()) {
        case v1::SessionResponse::kHeartbeatAck:
          HandleAck(response.heartbeat_ack().heartbeat());
          break;
        case v1::SessionResponse::kAssign:
          HandleAssign(response.assign());
          break;
        case v1::SessionResponse::kStart:
          HandleStart(response.start());
          break;
        case v1::SessionResponse::kStop:
          HandleStop(response.stop());
          break;
        case v1::SessionResponse::ORDER_NOT_SET:
          SY_LOG(WARNING) << "an order that this version does not know is ignored";
          break;
      }
    }
    session->Cancel();  // so that a heartbeat being written ends
  }
  {
    absl::MutexLock lock(&mu_);
    session_.reset();
    connected_ = false;
    *was_up = acks_ > acks_before;
  }
  const absl::Status finished = session->Finish();
  if (!status.ok()) return status;
  return finished.ok() ? absl::UnavailableError("the coordinator ended the session") : finished;
}

void Agent::HeartbeatLoop(CoordinatorSession& session, absl::Duration interval,
                          const StopToken& stop) {
  for (int64_t number = 1;; ++number) {
    v1::SessionRequest request;
    request.set_node(config_.node);
    request.set_incarnation(incarnation_);
    request.set_heartbeat(number);
    AddLiveAttempts(request);
    {
      absl::MutexLock lock(&mu_);
      sent_heartbeats_.emplace_back(number, clock_.Monotonic());
    }
    if (!session.Write(request) || stop.WaitForStop(interval)) return;
  }
}

void Agent::HandleAck(int64_t heartbeat) {
  absl::MutexLock lock(&mu_);
  while (!sent_heartbeats_.empty() && sent_heartbeats_.front().first <= heartbeat) {
    lease_start_ = std::max(lease_start_, sent_heartbeats_.front().second);
    sent_heartbeats_.pop_front();
  }
  last_ack_ = clock_.Monotonic();
  last_ack_time_ = clock_.Now();
  ++acks_;
}

void Agent::RestartSession(absl::string_view why) {
  absl::MutexLock lock(&mu_);
  if (session_ == nullptr) return;
  SY_LOG(INFO) << "session is ended: " << why;
  session_->Cancel();
  connected_ = false;
}

void Agent::LeaseLoop(const StopToken& stop) {
  absl::Duration wait = kWaitSlice;
  while (!stop.WaitForStop(std::clamp(wait, absl::Milliseconds(5), kWaitSlice))) {
    const absl::Duration now = clock_.Monotonic();
    absl::Duration kill_time;
    bool silent;
    std::string message;
    {
      absl::MutexLock lock(&mu_);
      kill_time = lease_start_ + lease_ttl_ - KillBudget(lease_ttl_);
      // A connection that died without a word: the stream does not end by itself.
      silent = connected_ && now > last_ack_ + 3 * heartbeat_interval_ + absl::Seconds(2);
      message = absl::StrCat("lease ran out on node ", config_.node,
                             ": no heartbeat was acknowledged for ",
                             absl::FormatDuration(now - lease_start_), ", the lease lasts ",
                             absl::FormatDuration(lease_ttl_));
    }
    wait = kill_time - now;
    if (silent) RestartSession("heartbeats are not acknowledged");
    if (wait > absl::ZeroDuration()) continue;
    wait = kWaitSlice;
    for (const auto& attempt : LiveAttempts()) {
      SY_LOG(ERROR) << message << "; killing job=" << attempt->id().job
                    << " attempt=" << attempt->id().number;
      attempt->Stop(Kill(StopCause::kLease, message));
    }
  }
}

// ---- reports ----

void Agent::ReportLoop(const StopToken& stop) {
  int failures = 0;
  while (!stop.StopRequested()) {
    RemoveAcknowledged();
    if (!spool_.WaitForReports(kWaitSlice)) continue;
    {
      absl::MutexLock lock(&mu_);
      if (!mu_.AwaitWithTimeout(absl::Condition(this, &Agent::IsConnectedLocked), kWaitSlice)) {
        continue;
      }
    }
    v1::ReportRequest request;
    request.set_node(config_.node);
    request.set_incarnation(incarnation_);
    for (v1::Report& report : spool_.NextBatch(kBatchBytes)) {
      *request.add_reports() = std::move(report);
    }
    if (request.reports().empty()) continue;  // acknowledged meanwhile, by Register
    const absl::StatusOr<v1::ReportResponse> response = client_.Report(request, kCallTimeout, stop);
    if (response.ok() && response->acknowledged() >= request.reports(0).number()) {
      failures = 0;
      spool_.Acknowledge(response->acknowledged());
      KillStale(response->stale_attempts());
      continue;
    }
    if (stop.StopRequested()) return;
    if (response.ok()) {
      KillStale(response->stale_attempts());
      SY_LOG(WARNING) << "reports from " << request.reports(0).number()
                      << " on were not stored, acknowledged=" << response->acknowledged();
    } else {
      SY_LOG(WARNING) << "send " << request.reports_size() << " reports: " << response.status();
      // A coordinator that does not know us, or no longer: register again.
      if (ErrorReason(response.status()) == "STALE_INCARNATION" ||
          absl::IsNotFound(response.status()) || absl::IsFailedPrecondition(response.status())) {
        RestartSession("the coordinator does not know this agent");
      }
    }
    stop.WaitForStop(NextDelay(failures++));
  }
}

void Agent::RemoveAcknowledged() {
  std::vector<std::shared_ptr<Attempt>> removed;  // destroyed outside the lock: joins a thread
  {
    absl::MutexLock lock(&mu_);
    for (auto it = attempts_.begin(); it != attempts_.end();) {
      if (it->second->finished() && spool_.num_pending(it->first) == 0) {
        removed.push_back(std::move(it->second));
        it = attempts_.erase(it);
      } else {
        ++it;
      }
    }
  }
  for (const auto& attempt : removed) {
    const absl::StatusOr<std::string> folder = AttemptFolder(config_.state_dir, attempt->id());
    if (folder.ok()) RemoveFolder(*folder);
  }
}

absl::StatusOr<v1::Checkpoint> Agent::Commit(v1::CommitCheckpointRequest request,
                                             const StopToken& stop) {
  request.set_node(config_.node);
  request.set_incarnation(incarnation_);
  for (int failures = 0;; ++failures) {
    const absl::StatusOr<v1::CommitCheckpointResponse> response =
        client_.CommitCheckpoint(request, kCommitTimeout, stop);
    if (response.ok()) return response->checkpoint();
    const absl::Status& status = response.status();
    const std::string reason = ErrorReason(status);
    if (reason == "STALE_ATTEMPT") {
      v1::ReportResponse stale;
      v1::AttemptRef* ref = stale.add_stale_attempts();
      ref->set_job(request.job());
      ref->set_attempt(request.attempt());
      KillStale(stale.stale_attempts());
      return status;
    }
    if (reason == "STALE_INCARNATION") {
      RestartSession("the coordinator does not know this agent");
    } else if (!absl::IsUnavailable(status) && !absl::IsDeadlineExceeded(status)) {
      return status;
    }
    SY_LOG(WARNING) << "commit of step " << request.step() << " is tried again: " << status
                    << " job=" << request.job();
    if (stop.WaitForStop(NextDelay(failures))) return status;
  }
}

// ---- orders ----

std::shared_ptr<Attempt> Agent::Find(const AttemptId& id) const {
  absl::MutexLock lock(&mu_);
  const auto it = attempts_.find(id);
  return it == attempts_.end() ? nullptr : it->second;
}

std::vector<std::shared_ptr<Attempt>> Agent::LiveAttempts() const {
  std::vector<std::shared_ptr<Attempt>> live;
  absl::MutexLock lock(&mu_);
  for (const auto& [id, attempt] : attempts_) {
    if (!attempt->finished()) live.push_back(attempt);
  }
  return live;
}

template <typename AttemptRefs>
void Agent::KillStale(const AttemptRefs& attempts) {
  for (const v1::AttemptRef& ref : attempts) {
    const std::shared_ptr<Attempt> attempt = Find(IdOf(ref));
    if (attempt == nullptr || attempt->finished()) continue;
    SY_LOG(WARNING) << "killing a stale attempt job=" << ref.job() << " attempt=" << ref.attempt();
    attempt->Stop(Kill(StopCause::kStale, "the coordinator gave this attempt up"));
  }
}

void Agent::ReportRefusal(const AttemptId& id, v1::FailureReason reason,
                          absl::string_view message) {
  SY_LOG(WARNING) << "order refused: " << message << " job=" << id.job << " attempt=" << id.number;
  v1::Report report;
  *report.mutable_finished()->mutable_failure() = ServiceFailure(reason, message, config_.node);
  spool_.Add(id, std::move(report));
}

absl::StatusOr<std::vector<DeviceInfo>> Agent::ClaimDevices(const v1::Assign& assign) {
  if (assign.devices().empty()) return absl::InvalidArgumentError("the order names no device");
  std::vector<DeviceInfo> claimed;
  for (const int index : assign.devices()) {
    const auto device = std::find_if(devices_.begin(), devices_.end(),
                                     [index](const DeviceInfo& d) { return d.index == index; });
    const bool twice = std::any_of(claimed.begin(), claimed.end(),
                                   [index](const DeviceInfo& d) { return d.index == index; });
    if (device == devices_.end() || twice) {
      return absl::InvalidArgumentError(
          absl::StrCat("device ", index, twice ? " is named twice" : " does not exist",
                       ", this node has ", devices_.size(), " devices"));
    }
    claimed.push_back(*device);
  }
  for (const auto& attempt : LiveAttempts()) {
    for (const DeviceInfo& held : attempt->devices()) {
      const bool wanted = std::any_of(claimed.begin(), claimed.end(), [&held](const DeviceInfo& d) {
        return d.index == held.index;
      });
      if (!wanted) continue;
      // An older attempt of the same job is over for the coordinator: its end is only a matter of
      // the kernel's speed.
      if (attempt->id().job.value() == assign.job() && attempt->id().number < assign.attempt()) {
        attempt->Stop(Kill(StopCause::kStale, "a newer attempt was assigned"));
        if (attempt->WaitFinished(kStaleGangTimeout)) break;
      }
      return absl::ResourceExhaustedError(absl::StrCat("device ", held.index,
                                                       " is held by attempt ", attempt->id().number,
                                                       " of ", attempt->id().job.value()));
    }
  }
  return claimed;
}

void Agent::HandleAssign(const v1::Assign& assign) {
  const AttemptId id = IdOf(assign);
  bool draining;
  {
    absl::MutexLock lock(&mu_);
    int32_t& highest = highest_attempt_[id.job];
    if (id.number <= highest) {
      // A repeated order, or one that was overtaken: what is to be said of it is in the spool.
      if (id.number < highest) {
        SY_LOG(WARNING) << "an old attempt is refused, seen=" << highest << " job=" << id.job
                        << " attempt=" << id.number;
      }
      return;
    }
    highest = id.number;
    draining = draining_;
  }
  if (draining) {
    ReportRefusal(id, v1::DRAINED,
                  absl::StrCat("the agent of node ", config_.node, " is being stopped"));
    return;
  }
  absl::StatusOr<std::vector<DeviceInfo>> devices = ClaimDevices(assign);
  if (!devices.ok()) {
    ReportRefusal(id, v1::INTERNAL,
                  absl::StrCat("assign on node ", config_.node, ": ", devices.status().message()));
    return;
  }
  SY_LOG(INFO) << "attempt assigned job=" << id.job << " attempt=" << id.number
               << " devices=" << absl::StrJoin(assign.devices(), ",");
  auto attempt =
      std::make_shared<Attempt>(config_, assign, *std::move(devices), spool_, *metrics_,
                                [this](const v1::CommitCheckpointRequest& request,
                                       const StopToken& stop) { return Commit(request, stop); });
  absl::MutexLock lock(&mu_);
  attempts_[id] = std::move(attempt);
}

void Agent::HandleStart(const v1::Start& start) {
  const AttemptId id = IdOf(start);
  if (const std::shared_ptr<Attempt> attempt = Find(id); attempt != nullptr) {
    attempt->Start(start);
    return;
  }
  {
    absl::MutexLock lock(&mu_);
    int32_t& highest = highest_attempt_[id.job];
    if (id.number <= highest) return;  // it has ended, and that was reported
    highest = id.number;
  }
  ReportRefusal(id, v1::EXIT_UNKNOWN,
                absl::StrCat("start on node ", config_.node,
                             ": this agent process was never assigned the attempt"));
}

void Agent::HandleStop(const v1::Stop& stop) {
  const AttemptId id = IdOf(stop);
  if (const std::shared_ptr<Attempt> attempt = Find(id); attempt != nullptr) {
    StopRequest request;
    request.reason = stop.reason();
    request.grace = stop.has_grace_period() ? FromProto(stop.grace_period()) : kDefaultGrace;
    request.checkpoint = stop.checkpoint();
    attempt->Stop(request);
    return;
  }
  {
    absl::MutexLock lock(&mu_);
    int32_t& highest = highest_attempt_[id.job];
    if (id.number <= highest) return;
    highest = id.number;  // should its Assign still be on the way, it is refused
  }
  v1::Report report;
  report.mutable_finished()->set_stopped(true);
  spool_.Add(id, std::move(report));
}

}  // namespace switchyard
