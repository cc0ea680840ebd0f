#include "worker/agent/agent.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/random/random.h"
#include "absl/strings/str_cat.h"
#include "base/backoff.h"
#include "base/failpoint.h"
#include "base/json.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "worker/agent/host_stats.h"
#include "worker/agent/positions.h"

namespace switchyard {
namespace {

Failpoint before_report("agent.report.before_send", FailpointKind::kEvent);
Failpoint after_report("agent.report.after_answer", FailpointKind::kEvent);

constexpr absl::Duration kCallTimeout = absl::Seconds(30);
// Upper bound of a wait that also has to notice an order to stop.
constexpr absl::Duration kWaitSlice = absl::Milliseconds(250);
constexpr absl::Duration kReportGrace = absl::Seconds(10);
constexpr absl::Duration kDeviceInterval = absl::Seconds(2);
constexpr int64_t kBatchBytes = 1 << 20;

std::string NewIncarnation() {
  absl::BitGen random;
  return MakeIncarnation(RealClock::Get().Monotonic(), absl::Uniform<uint64_t>(random));
}

std::string NewFolderId() {
  absl::BitGen random;
  return absl::StrCat(absl::Hex(absl::Uniform<uint64_t>(random), absl::kZeroPad16),
                      absl::Hex(absl::Uniform<uint64_t>(random), absl::kZeroPad16));
}

std::string IdentityPath(const std::string& state_dir) { return state_dir + "/identity.json"; }

absl::Status WriteIdentity(const std::string& state_dir, const AgentIdentity& identity) {
  const Json json{{"incarnation", identity.incarnation},
                  {"boot_id", identity.boot_id},
                  {"report_base", identity.report_base},
                  {"folder_id", identity.folder_id},
                  {"boots", identity.boots}};
  return ReplaceFile(IdentityPath(state_dir), DumpJson(json) + "\n");
}

// NotFound: the folder is new.
absl::StatusOr<AgentIdentity> ReadIdentity(const std::string& state_dir) {
  ASSIGN_OR_RETURN(const Json json, ReadJsonFile(IdentityPath(state_dir)));
  AgentIdentity identity;
  ASSIGN_OR_RETURN(identity.incarnation, JsonGet<std::string>(json, "incarnation"));
  ASSIGN_OR_RETURN(identity.boot_id, JsonGet<std::string>(json, "boot_id"));
  ASSIGN_OR_RETURN(identity.report_base, JsonGet<int64_t>(json, "report_base"));
  // Not in folders made before there was one.
  ASSIGN_OR_RETURN(identity.folder_id, JsonGetOr<std::string>(json, "folder_id", ""));
  ASSIGN_OR_RETURN(identity.boots, JsonGetOr<int64_t>(json, "boots", 0));
  return identity;
}

// Devices that were in use by processes which no attempt answers for, as the life before saw it.
absl::StatusOr<std::set<int>> ReadWithheld(const std::string& state_dir) {
  absl::StatusOr<Json> json = ReadJsonFile(WithheldPath(state_dir));
  if (absl::IsNotFound(json.status())) return std::set<int>();
  RETURN_IF_ERROR(json.status());
  ASSIGN_OR_RETURN(const auto devices, JsonGet<std::vector<int64_t>>(*json, "devices"));
  std::set<int> withheld;
  for (const int64_t device : devices) withheld.insert(static_cast<int>(device));
  return withheld;
}

AgentCoreOptions CoreOptions(const AgentConfig& config, const std::vector<DeviceInfo>& devices,
                             const LeaseFile& lease) {
  AgentCoreOptions options;
  options.node = config.node;
  for (const DeviceInfo& device : devices) options.devices.push_back(device.index);
  options.deadline = absl::Nanoseconds(lease.deadline.load());
  return options;
}

}  // namespace

absl::Duration RetryDelay(int failures, absl::Duration lease_ttl) {
  BackoffPolicy policy{absl::Milliseconds(200), absl::Seconds(5), 2.0};
  policy.max = std::min(policy.max, lease_ttl / 8);
  absl::BitGen random;
  return BackoffDelay(policy, failures, absl::Uniform(random, 0.0, 1.0));
}

// ---- start and end ----

absl::StatusOr<std::unique_ptr<Agent>> Agent::Start(const AgentConfig& config,
                                                    std::vector<DeviceInfo> devices,
                                                    std::shared_ptr<AgentMetrics> metrics,
                                                    Clock& clock) {
  RETURN_IF_ERROR(MakeFolders(config.state_dir));
  Opened opened;
  const std::string lock_path = config.state_dir + "/lock";
  opened.lock.Reset(::open(lock_path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
  if (!opened.lock.valid()) return ErrnoStatus("open", lock_path, errno);
  if (::flock(opened.lock.get(), LOCK_EX | LOCK_NB) != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("lock ", lock_path, ": another agent uses this state folder"));
  }
  std::error_code error;
  opened.state_folder = std::filesystem::canonical(config.state_dir, error);
  if (error) return ErrnoStatus("find the real path of", config.state_dir, error.value());

  const std::string boot_id = ReadBootId();
  absl::StatusOr<AgentIdentity> identity = ReadIdentity(config.state_dir);
  if (!identity.ok() && !absl::IsNotFound(identity.status())) return identity.status();
  opened.rebooted = identity.ok() && identity->boot_id != boot_id;
  if (identity.ok()) opened.identity = *identity;
  const std::string lease_path = LeasePath(config.state_dir);
  if (const int failed = opened.lease.Open(lease_path, true); failed != 0) {
    return ErrnoStatus("map", lease_path, failed);
  }
  if (!identity.ok() || opened.rebooted) {
    opened.identity.incarnation = NewIncarnation();
    opened.identity.boot_id = boot_id;
    opened.identity.boots += 1;
    opened.lease->deadline.store(0);  // of another boot's clock
  }
  if (opened.identity.folder_id.empty()) opened.identity.folder_id = NewFolderId();
  ASSIGN_OR_RETURN(opened.journal,
                   FileJournal::Open(config.state_dir + "/journal", &opened.memory));
  ASSIGN_OR_RETURN(opened.spool, FileSpoolStorage::Open(config.state_dir + "/spool"));
  ASSIGN_OR_RETURN(opened.withheld, ReadWithheld(config.state_dir));
  return std::unique_ptr<Agent>(
      new Agent(config, std::move(devices), std::move(metrics), clock, std::move(opened)));
}

Agent::Agent(const AgentConfig& config, std::vector<DeviceInfo> devices,
             std::shared_ptr<AgentMetrics> metrics, Clock& clock, Opened opened)
    : config_(config),
      devices_(std::move(devices)),
      metrics_(std::move(metrics)),
      clock_(clock),
      opened_(std::move(opened)),
      refused_(::eventfd(0, EFD_CLOEXEC)),
      client_(config.coordinator),
      spool_(clock, opened_.spool.get(), opened_.identity.report_base),
      identity_(opened_.identity),
      core_(CoreOptions(config, devices_, *opened_.lease.get()), *opened_.journal, opened_.memory,
            RecoverSpool()) {
  SweepUnknown();
  {
    MonitorLock lock(&mu_);
    if (opened_.rebooted) identity_.report_base = spool_.Rebase();
    const absl::Status written = WriteIdentity(config_.state_dir, identity_);
    if (!written.ok()) SY_LOG(ERROR) << "identity: " << written;
    for (const auto& [id, attempt] : core_.attempts()) {
      if (attempt.phase == AgentCore::Phase::kEnded) reported_.insert(id);
    }
    withheld_ = opened_.withheld;  // before they are offered; the time thread looks at them again
    TakeActionsLocked(core_.OnDevicesWithheld(withheld_)).IgnoreError();
    TakeActionsLocked(core_.Recover(clock_.Monotonic())).IgnoreError();
  }
  metrics_->SetSource([this] { return Snapshot(); });
  act_thread_ = Thread("act", [this](const StopToken& stop) { ActLoop(stop); });
  time_thread_ = Thread("time", [this](const StopToken& stop) { TimeLoop(stop); });
  report_thread_ = Thread("report", [this](const StopToken& stop) { ReportLoop(stop); });
  session_thread_ = Thread("session", [this](const StopToken& stop) { SessionLoop(stop); });
}

std::set<AttemptId> Agent::RecoverSpool() {
  std::map<AttemptId, MappedFile<AttemptPositions>> positions;
  // Of a rank of an attempt; null: not known here any more.
  const auto find = [&](const AttemptId& id, int rank) -> RankPositions* {
    const auto known = opened_.memory.attempts.find(id);
    const absl::StatusOr<std::string> folder = AttemptFolder(config_.state_dir, id);
    if (known == opened_.memory.attempts.end() || !folder.ok()) return nullptr;
    const int index = rank - known->second.assign.first_rank();
    if (rank >= 0 && (index < 0 || index >= ShimStatus::kMaxRanks)) return nullptr;
    MappedFile<AttemptPositions>& file = positions[id];
    if (file.get() == nullptr) {
      if (file.Open(absl::StrCat(*folder, "/", kPositionsFile), false) != 0) return nullptr;
    }
    return rank < 0 ? &file->prep : &file->ranks[index];
  };
  const RecoveredSpool recovered =
      spool_.Recover([&](const AttemptId& id, int rank, const std::string& stream) {
        LogPiece piece;
        const std::string folder = AttemptFolder(config_.state_dir, id).value_or("");
        const std::string path = rank < 0 ? absl::StrCat(folder, "/prep.", stream)
                                          : RankFile(folder, rank, stream.c_str());
        piece.source = std::make_shared<const LogSource>(LogSource{id, rank, stream, path});
        RankPositions* place = find(id, rank);
        if (place != nullptr) piece.size = AttemptPositions::Noted(*place, stream).load();
        return piece;
      });
  for (const auto& [key, position] : recovered.frames) {
    RankPositions* place = find(key.first, key.second);
    if (place != nullptr) Raise(place->frames_reported, position);
  }
  for (const auto& [key, end] : recovered.logs) {
    RankPositions* place = find(std::get<0>(key), std::get<1>(key));
    if (place != nullptr) Raise(AttemptPositions::Noted(*place, std::get<2>(key)), end);
  }
  return recovered.finished;
}

void Agent::SweepUnknown() const {
  std::set<std::string> known;
  for (const auto& [id, attempt] : opened_.memory.attempts) {
    known.insert(AttemptFolder(config_.state_dir, id).value_or(""));
  }
  std::vector<std::string> unknown;
  std::error_code error;
  std::filesystem::directory_iterator it(config_.state_dir + "/attempts", error);
  for (const std::filesystem::directory_iterator end; !error && it != end; it.increment(error)) {
    if (!known.contains(it->path().string())) unknown.push_back(it->path().string());
  }
  for (const std::string& folder : unknown) {
    SY_LOG(WARNING) << "removing an attempt that is not in the journal: " << folder;
    ShimGang::Adopt(folder).status().IgnoreError();  // destroyed at once: that kills it
    std::filesystem::remove_all(folder, error);
    if (error) SY_LOG(WARNING) << "remove " << folder << ": " << error.message();
  }
}

Agent::~Agent() {
  metrics_->SetSource(nullptr);
  session_thread_.RequestStop();
  {
    MonitorLock lock(&mu_);
    EndSessionLocked("the agent ends");
  }
  session_thread_.StopAndJoin();
  report_thread_.StopAndJoin();
  time_thread_.StopAndJoin();
  KillAttempts(absl::InfiniteDuration());
  {
    MonitorLock lock(&mu_);
    acting_ends_ = true;
  }
  act_thread_.StopAndJoin();
  std::map<AttemptId, std::shared_ptr<Attempt>> attempts;  // destroyed while what they use is there
  MonitorLock lock(&mu_);
  attempts.swap(attempts_);
}

bool Agent::Shutdown() {
  const absl::Duration deadline =
      clock_.Monotonic() + config_.shutdown_grace + config_.term_grace + kReportGrace;
  Drive([this](AgentCore& core) { return core.OnShutdown(config_.shutdown_grace); });
  bool complete;
  {
    MonitorLock lock(&mu_);
    complete =
        mu_.AwaitWithTimeout([this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return NoneLiveLocked(); },
                             deadline - clock_.Monotonic());
  }
  return spool_.WaitUntilEmpty(std::min(deadline - clock_.Monotonic(), kReportGrace)) && complete;
}

void Agent::KillAttempts(absl::Duration timeout) {
  const absl::Duration deadline = clock_.Monotonic() + timeout;
  const std::vector<std::shared_ptr<Attempt>> attempts = LiveAttempts();
  for (const auto& attempt : attempts) {
    attempt->Stop(KillRequest(StopCause::kShutdown, "the agent ends"));
  }
  // An attempt's own thread may hold a reference for a moment; it must not be the last one.
  for (const auto& attempt : attempts) attempt->WaitFinished(deadline - clock_.Monotonic());
}

AgentSnapshot Agent::Snapshot() const {
  AgentSnapshot snapshot;
  snapshot.pending_reports = spool_.num_pending();
  snapshot.dropped_log_bytes = spool_.dropped_log_bytes();
  size_t busy = 0;
  for (const auto& attempt : LiveAttempts()) {
    busy += attempt->devices().size();
    snapshot.attempts[attempt->id()] = attempt->pids();
  }
  MonitorLock lock(&mu_);
  snapshot.busy_devices = static_cast<int>(busy);
  snapshot.withheld_devices = static_cast<int>(withheld_.size());
  snapshot.free_devices =
      static_cast<int>(devices_.size() - std::min(devices_.size(), busy + withheld_.size()));
  snapshot.last_heartbeat_ack = last_ack_time_;
  snapshot.connected = session_ != nullptr && core_.connected();
  return snapshot;
}

std::string Agent::incarnation() const {
  MonitorLock lock(&mu_);
  return identity_.incarnation;
}

absl::Duration Agent::LeaseTtl() const {
  MonitorLock lock(&mu_);
  return core_.lease_ttl();
}

absl::Status Agent::refusal() const {
  MonitorLock lock(&mu_);
  return refusal_;
}

// ---- the core ----

absl::Status Agent::TakeActionsLocked(absl::StatusOr<AgentActions> actions) {
  RETURN_IF_ERROR(actions.status());
  for (AgentAction& action : *actions) {
    if (const auto* move = std::get_if<MoveDeadline>(&action)) {
      const int64_t deadline = absl::ToInt64Nanoseconds(move->deadline);
      const bool back = deadline < opened_.lease->deadline.exchange(deadline);
      // Shims have set their timers: one that expects a later time would come too late.
      for (const auto& [id, attempt] : attempts_) {
        if (back) attempt->DeadlineMovedBack();
      }
    } else if (const auto* end = std::get_if<EndSession>(&action)) {
      EndSessionLocked(end->why);
    } else if (std::holds_alternative<RenewIncarnation>(action)) {
      RenewIncarnationLocked();
    } else {
      actions_.push_back(std::move(action));
    }
  }
  return absl::OkStatus();
}

void Agent::EndSessionLocked(const std::string& why) {
  if (session_ == nullptr) return;
  SY_LOG(INFO) << "session is ended: " << why;
  session_->Cancel();
  core_.OnSessionEnded();
}

void Agent::RenewIncarnationLocked() {
  identity_.incarnation = NewIncarnation();
  identity_.report_base = spool_.Rebase();
  SY_LOG(WARNING) << "the coordinator's memory of this agent's reports does not fit: new "
                     "incarnation "
                  << identity_.incarnation;
  const absl::Status written = WriteIdentity(config_.state_dir, identity_);
  if (!written.ok()) SY_LOG(ERROR) << "identity: " << written;
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
        MonitorLock lock(&mu_);
        refusal_ = status;
      }
      ::eventfd_write(refused_.get(), 1);
      return;
    }
    failures = was_up ? 0 : failures + 1;
    const absl::Duration delay = RetryDelay(failures, LeaseTtl());
    SY_LOG(WARNING) << "no session with the coordinator at " << config_.coordinator << ": "
                    << status << "; next try in " << absl::FormatDuration(delay);
    client_.WaitBeforeRetry(delay, stop);
  }
}

absl::Status Agent::Register(const StopToken& stop) {
  v1::RegisterRequest request;
  request.set_node(config_.node);
  request.set_boot_id(ReadBootId());
  request.set_state_folder(opened_.state_folder);
  if (const std::string machine = ReadMachineId(); !machine.empty()) {
    request.set_agent_id(absl::StrCat(machine, "/", opened_.identity.folder_id));
    request.set_boots(opened_.identity.boots);
  }
  request.set_address(config_.address);
  request.set_version(kAgentVersion);
  {
    MonitorLock lock(&mu_);
    request.set_incarnation(identity_.incarnation);
    const std::vector<int> offered = core_.OfferedDevices();
    for (const DeviceInfo& info : devices_) {
      if (std::find(offered.begin(), offered.end(), info.index) == offered.end()) continue;
      v1::Device* device = request.add_devices();
      device->set_index(info.index);
      device->set_kind(info.kind);
      device->set_memory_bytes(info.memory_bytes);
      device->set_uuid(info.uuid);
    }
    for (const AttemptId& id : core_.AnsweredFor()) {
      v1::AttemptRef* ref = request.add_live_attempts();
      ref->set_job(id.job.value());
      ref->set_attempt(id.number);
    }
  }
  const absl::Duration sent = clock_.Monotonic();
  ASSIGN_OR_RETURN(const v1::RegisterResponse response,
                   client_.Register(request, kCallTimeout, stop));
  {
    MonitorLock lock(&mu_);
    RETURN_IF_ERROR(TakeActionsLocked(
        core_.OnRegistered(response, sent, spool_.numbers(), clock_.Monotonic())));
    if (identity_.incarnation != request.incarnation()) {
      return absl::UnavailableError("registering again with a new incarnation");
    }
  }
  Acknowledge(request.incarnation(), response.acknowledged_report());
  SY_LOG(INFO) << "registered coordinator=" << config_.coordinator << " node=" << config_.node
               << " epoch=" << response.coordinator_epoch() << " devices=" << request.devices_size()
               << " attempts=" << request.live_attempts_size();
  return absl::OkStatus();
}

absl::Status Agent::RunSession(const StopToken& stop, bool* was_up) {
  RETURN_IF_ERROR(Register(stop));
  std::shared_ptr<CoordinatorSession> session = client_.OpenSession();
  absl::Duration interval;
  int64_t acks_before;
  {
    MonitorLock lock(&mu_);
    session_ = session;
    interval = core_.heartbeat_interval();
    acks_before = core_.num_acks();
  }
  if (stop.StopRequested()) session->Cancel();  // the stop may have come before session_ was set
  absl::Status status;
  {
    Thread heartbeats("heartbeat", [&](const StopToken& heartbeat_stop) {
      HeartbeatLoop(*session, interval, heartbeat_stop);
    });
    v1::SessionResponse response;
    while (status.ok() && session->Read(&response)) {
      MonitorLock lock(&mu_);
      status = TakeActionsLocked(core_.OnSessionResponse(response, clock_.Monotonic()));
      if (status.ok() && response.has_heartbeat_ack()) last_ack_time_ = clock_.Now();
    }
    session->Cancel();  // so that a heartbeat being written ends
  }
  {
    MonitorLock lock(&mu_);
    session_.reset();
    core_.OnSessionEnded();
    *was_up = core_.num_acks() > acks_before;
  }
  const absl::Status finished = session->Finish();
  if (!status.ok()) return status;
  return finished.ok() ? absl::UnavailableError("the coordinator ended the session") : finished;
}

void Agent::HeartbeatLoop(CoordinatorSession& session, absl::Duration interval,
                          const StopToken& stop) {
  while (true) {
    v1::SessionRequest request;
    request.set_node(config_.node);
    {
      MonitorLock lock(&mu_);
      request.set_incarnation(identity_.incarnation);
      request.set_heartbeat(core_.NextHeartbeat(clock_.Monotonic()));
      for (const AttemptId& id : core_.Live()) {
        v1::AttemptRef* ref = request.add_live_attempts();
        ref->set_job(id.job.value());
        ref->set_attempt(id.number);
      }
    }
    if (!session.Write(request) || stop.WaitForStop(interval)) return;
  }
}

void Agent::TimeLoop(const StopToken& stop) {
  absl::Duration wait = kWaitSlice;
  absl::Duration next_device_check;
  while (!stop.WaitForStop(std::clamp(wait, absl::Milliseconds(5), kWaitSlice))) {
    const absl::Duration now = clock_.Monotonic();
    Drive([&](AgentCore& core) { return core.OnTime(now); });
    {
      MonitorLock lock(&mu_);
      wait = core_.NextTime() - now;
    }
    if (now < next_device_check) continue;
    next_device_check = now + kDeviceInterval;
    CheckWithheld();
  }
}

// ---- reports ----

void Agent::Acknowledge(const std::string& incarnation, int64_t number) {
  std::vector<LogPiece> pieces;
  {
    MonitorLock lock(&mu_);
    if (identity_.incarnation != incarnation) return;  // the number means another report
    pieces = spool_.Acknowledge(number);
  }
  std::map<const LogSource*, LogPiece> newest;  // one call per file
  for (const LogPiece& piece : pieces) newest[piece.source.get()] = piece;
  for (const auto& [source, piece] : newest) FreeUpTo(piece);
}

void Agent::ReportLoop(const StopToken& stop) {
  int failures = 0;
  while (!stop.StopRequested()) {
    NoteDrained();
    if (!spool_.WaitForReports(kWaitSlice)) continue;
    v1::ReportRequest request;
    {
      MonitorLock lock(&mu_);
      if (!mu_.AwaitWithTimeout(
              [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return CanReportLocked(); }, kWaitSlice)) {
        continue;
      }
      request.set_incarnation(identity_.incarnation);
    }
    request.set_node(config_.node);
    for (v1::Report& report : spool_.NextBatch(kBatchBytes)) {
      *request.add_reports() = std::move(report);
    }
    // Acknowledged meanwhile, by Register; or numbered anew.
    if (request.reports().empty() || request.incarnation() != incarnation()) continue;
    before_report.Pass();
    const absl::StatusOr<v1::ReportResponse> response = client_.Report(request, kCallTimeout, stop);
    after_report.Pass();
    if (response.ok() && response->acknowledged() >= request.reports(0).number()) {
      failures = 0;
      Acknowledge(request.incarnation(), response->acknowledged());
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
        MonitorLock lock(&mu_);
        EndSessionLocked("the coordinator does not know this agent");
      }
    }
    stop.WaitForStop(RetryDelay(failures++, LeaseTtl()));
  }
}

void Agent::NoteDrained() {
  std::vector<AttemptId> drained;
  {
    MonitorLock lock(&mu_);
    for (const AttemptId& id : reported_) {
      if (spool_.num_pending(id) == 0) drained.push_back(id);
    }
  }
  for (const AttemptId& id : drained) {
    Drive([&](AgentCore& core) { return core.OnReportsDrained(id); });
  }
  MonitorLock lock(&mu_);
  for (const AttemptId& id : drained) {
    // Refused orders have a report, but no attempt. What cannot be forgotten yet is tried again.
    if (core_.Find(id) == nullptr) reported_.erase(id);
  }
}

}  // namespace switchyard
