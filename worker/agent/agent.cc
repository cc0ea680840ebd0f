#include "worker/agent/agent.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <system_error>

#include "absl/random/random.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/backoff.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "worker/agent/host_stats.h"

namespace switchyard {
namespace {

constexpr absl::Duration kCallTimeout = absl::Seconds(30);
// Upper bound of a wait that also has to notice an order to stop.
constexpr absl::Duration kWaitSlice = absl::Milliseconds(250);
constexpr absl::Duration kReportGrace = absl::Seconds(10);
constexpr int64_t kBatchBytes = 1 << 20;

std::string RandomId() {
  absl::BitGen random;
  return absl::StrFormat("%016x%016x", absl::Uniform<uint64_t>(random),
                         absl::Uniform<uint64_t>(random));
}

absl::Duration FromProto(const google::protobuf::Duration& duration) {
  return absl::Seconds(duration.seconds()) + absl::Nanoseconds(duration.nanos());
}

void RemoveFolder(const std::string& folder) {
  std::error_code error;
  std::filesystem::remove_all(folder, error);
  if (error) SY_LOG(WARNING) << "remove " << folder << ": " << error.message();
}

}  // namespace

absl::Duration RetryDelay(int failures) {
  constexpr BackoffPolicy kPolicy{absl::Milliseconds(200), absl::Seconds(5), 2.0};
  absl::BitGen random;
  return BackoffDelay(kPolicy, failures, absl::Uniform(random, 0.0, 1.0));
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
  std::error_code error;
  const std::string state_folder = std::filesystem::canonical(config.state_dir, error);
  if (error) return ErrnoStatus("find the real path of", config.state_dir, error.value());
  RemoveFolder(config.state_dir + "/attempts");
  return std::unique_ptr<Agent>(new Agent(config, std::move(devices), std::move(metrics), clock,
                                          std::move(lock), state_folder));
}

Agent::Agent(const AgentConfig& config, std::vector<DeviceInfo> devices,
             std::shared_ptr<AgentMetrics> metrics, Clock& clock, UniqueFd lock,
             std::string state_folder)
    : config_(config),
      devices_(std::move(devices)),
      metrics_(std::move(metrics)),
      clock_(clock),
      lock_(std::move(lock)),
      state_folder_(std::move(state_folder)),
      refused_(::eventfd(0, EFD_CLOEXEC)),
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
    attempt->Stop(KillRequest(StopCause::kShutdown, "the agent ends"));
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

absl::Status Agent::refusal() const {
  absl::MutexLock lock(&mu_);
  return refusal_;
}

// ---- session ----

void Agent::SessionLoop(const StopToken& stop) {
  int failures = 0;
  while (!stop.StopRequested()) {
    bool was_up = false;
    const absl::Status status = RunSession(stop, &was_up);
    if (stop.StopRequested()) return;
    if (ErrorReason(status) == "STATE_FOLDER_DIFFERS") {
      {
        absl::MutexLock lock(&mu_);
        refusal_ = status;
      }
      ::eventfd_write(refused_.get(), 1);
      return;
    }
    failures = was_up ? 0 : failures + 1;
    const absl::Duration delay = RetryDelay(failures);
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
  request.set_state_folder(state_folder_);
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
      attempt->Stop(KillRequest(StopCause::kLease, message));
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
    stop.WaitForStop(RetryDelay(failures++));
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

}  // namespace switchyard
