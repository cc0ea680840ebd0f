#include "tests/simulation/node.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/backoff.h"
#include "server/error.h"

namespace switchyard::simulation {
namespace {

// As worker/agent/failure.h, which cannot be included next to server/job_state.h.
v1::Failure MakeFailure(v1::FailureReason reason, const std::string& message,
                        const std::string& node) {
  v1::Failure failure;
  failure.set_reason(reason);
  failure.set_message(message);
  failure.set_rank(-1);
  failure.set_node(node);
  return failure;
}

}  // namespace

SimNode::SimNode(Cluster& cluster, const std::string& name, int num_devices, int num_boots_before)
    : cluster_(cluster), name_(name), num_devices_(num_devices), num_boots_(num_boots_before) {
  Random& random = world().random();
  // Clocks that differ by up to 0.5 % between two machines.
  rate_ = 1 + 0.0025 * (2 * random.Unit() - 1);
  link_.max_delay = random.Spread(absl::Milliseconds(1), absl::Milliseconds(500));
  Boot();
}

SimNode::~SimNode() = default;

void SimNode::Boot() {
  ++num_boots_;
  boot_id_ = absl::StrCat("boot-", name_, "-", num_boots_);
  boot_time_ = world().now();
  frozen_until_ = agent_stopped_until_ = absl::ZeroDuration();
}

absl::Duration SimNode::Now() const {
  // Some seconds are over when the first process runs.
  return absl::Seconds(7) + (cluster_.world.now() - boot_time_) * rate_;
}

absl::Duration SimNode::WorldTime(absl::Duration node_time) const {
  if (node_time == absl::InfiniteDuration()) return node_time;
  return boot_time_ + (node_time - absl::Seconds(7)) / rate_ + absl::Nanoseconds(1);
}

bool SimNode::frozen() const { return frozen_until_ > cluster_.world.now(); }

absl::Duration SimNode::AgentHeldUp() const {
  return std::max(std::max(frozen_until_, agent_stopped_until_) - cluster_.world.now(),
                  absl::ZeroDuration());
}

void SimNode::StartAgent() {
  if (agent_ != nullptr) return;
  agent_ = std::make_shared<SimAgent>(*this);
  agent_->Start();
}

void SimNode::KillAgent() {
  if (agent_ == nullptr) return;
  agent_->Die();
  agent_.reset();
  agent_stopped_until_ = absl::ZeroDuration();
}

void SimNode::TerminateAgent(absl::Duration grace) {
  if (agent_ == nullptr) return;
  agent_->Shutdown(grace);
  world().After(grace + world().random().Between(absl::Seconds(1), absl::Seconds(20)),
                [this, weak = std::weak_ptr<SimAgent>(agent_)] {
                  if (weak.lock() == agent_) KillAgent();
                });
}

void SimNode::Freeze(absl::Duration until) {
  frozen_until_ = std::max(frozen_until_, until);
  for (const auto& [id, part] : disk_.parts) part->thawed = frozen_until_;
}

void SimNode::Reboot() {
  world().Trace("reboot ", name_);
  KillAgent();
  for (const auto& [id, part] : disk_.parts) {
    if (!part->alive) continue;
    part->alive = false;  // without a word on the disk
    cluster_.trainers.Ended(*part);
  }
  Boot();
}

void SimNode::StartPart(const v1::Assign& assign) {
  auto part = std::make_shared<Part>(*this, assign);
  part->deadline = disk_.deadline;
  disk_.parts[part->id] = part;
  world().Trace("part starts ", part->id.job.value(), "/", part->id.number, " on ", name_);
  cluster_.trainers.Join(part);
  cluster_.on_part_started(*part);
  WatchDeadline(part);
  world().After(world().random().Spread(absl::Milliseconds(10), absl::Seconds(5)), [this, part] {
    if (!part->alive) return;
    part->frames.push_back({RankFrame::Kind::kRunning, 0, false, "", 0});
    TellAgent(part);
  });
}

void SimNode::EndPart(Part& part, PartEnd end) {
  if (!part.alive) return;
  world().Trace("part ends ", part.id.job.value(), "/", part.id.number, " on ", name_, ": ",
                end.done ? "done" : end.message);
  part.alive = false;
  part.end = std::move(end);
  cluster_.trainers.Ended(part);
  if (agent_ != nullptr) agent_->OnPartNews(part.id);
}

void SimNode::KillPart(const std::shared_ptr<Part>& part, absl::Duration delay,
                       const std::string& why) {
  world().After(delay, [this, part, why] {
    if (!part->alive) return;
    if (frozen()) {
      KillPart(part,
               frozen_until_ - world().now() +
                   world().random().Spread(absl::Microseconds(10), absl::Milliseconds(50)),
               why);
      return;
    }
    EndPart(*part, {false, v1::TRAINER_SIGNAL, why});
  });
}

void SimNode::WatchDeadline(const std::shared_ptr<Part>& part) {
  world().At(WorldTime(part->deadline), [this, part] {
    if (!part->alive) return;
    if (frozen()) {
      KillPart(part, frozen_until_ - world().now(), "the shim's deadline is over");
    } else if (Now() < part->deadline) {
      WatchDeadline(part);
    } else {
      world().Count("shim: killed past the deadline");
      EndPart(*part, {false, v1::TRAINER_SIGNAL, "the shim's deadline is over"});
    }
  });
}

void SimNode::MoveDeadline(absl::Duration deadline) {
  disk_.deadline = deadline;
  disk_.deadline_boot = boot_id_;
  for (const auto& [id, part] : disk_.parts) {
    if (part->alive) part->deadline = deadline;
  }
}

void SimNode::TellAgent(const std::shared_ptr<Part>& part) {
  if (agent_ != nullptr) agent_->OnPartNews(part->id);
}

// ---- agent ----

SimAgent::SimAgent(SimNode& node) : node_(node), world_(node.world()) {}

void SimAgent::BeginIncarnation() {
  SimNode::Disk& disk = node_.disk();
  disk.incarnation = MakeIncarnation(node_.Now(), world_.random().Next());
  disk.incarnation_boot = node_.boot_id();
  disk.next_number = static_cast<int64_t>(disk.spool.size()) + 1;
}

absl::Status SimAgent::Append(const JournalRecord& record) {
  if (node_.disk().full) {
    world_.Count("agent: journal refused by a full disk");
    return absl::ResourceExhaustedError("simulated: disk full");
  }
  node_.disk().journal.push_back(record);
  return absl::OkStatus();
}

void SimAgent::Start() {
  world_.Count("agent: starts");
  SimNode::Disk& disk = node_.disk();
  if (disk.incarnation_boot != node_.boot_id()) BeginIncarnation();
  world_.Trace("agent starts on ", node_.name(), " incarnation ", incarnation());
  AgentMemory memory;
  for (const JournalRecord& record : disk.journal) memory.Apply(record);
  disk.journal = memory.Records();
  std::set<AttemptId> finished;
  for (const SimNode::Report& report : disk.spool) {
    if (report.report.has_finished()) finished.insert(report.id);
  }
  AgentCoreOptions options;
  options.node = node_.name();
  for (int i = 0; i < node_.num_devices(); ++i) options.devices.push_back(i);
  if (disk.deadline_boot == node_.boot_id()) options.deadline = disk.deadline;
  core_ = std::make_unique<AgentCore>(std::move(options), *this, memory, finished);
  Run([this] {
    Carry(core_->Recover(node_.Now()));
    Register();
  });
}

void SimAgent::Die() {
  dead_ = true;
  if (stream_ != nullptr) {
    stream_->on_message = nullptr;
    stream_->on_end = nullptr;
  }
}

void SimAgent::Run(std::function<void()> action) {
  if (dead_) return;
  if (const absl::Duration wait = node_.AgentHeldUp(); wait > absl::ZeroDuration()) {
    Later(wait + world_.random().Spread(absl::Microseconds(1), absl::Milliseconds(50)),
          std::move(action));
    return;
  }
  action();
  ArmTimer();
}

void SimAgent::Later(absl::Duration delay, std::function<void()> action) {
  world_.After(delay, [weak = weak_from_this(), action = std::move(action)]() mutable {
    if (const std::shared_ptr<SimAgent> self = weak.lock()) self->Run(std::move(action));
  });
}

void SimAgent::ArmTimer() {
  if (dead_) return;
  const absl::Duration when = node_.WorldTime(core_->NextTime());
  if (when == absl::InfiniteDuration() || (when >= armed_ && armed_ > world_.now())) return;
  armed_ = std::max(when, world_.now() + absl::Milliseconds(1));
  Later(armed_ - world_.now(), [this, at = armed_] {
    if (armed_ == at) armed_ = absl::InfiniteDuration();
    Carry(core_->OnTime(node_.Now()));
  });
}

void SimAgent::Carry(const AgentActions& actions) {
  for (const AgentAction& action : actions) {
    std::visit([this](const auto& a) { Do(a); }, action);
  }
}

void SimAgent::Do(const LaunchPrep& action) {
  preparing_.insert(action.id);
  Random& random = world_.random();
  const bool bad = random.Chance(0.01);
  const bool crash = random.Chance(0.02);
  Later(random.Spread(absl::Milliseconds(50), absl::Seconds(20)),
        [this, id = action.id, bad, crash] {
          if (preparing_.erase(id) == 0) return;
          if (bad || crash) {
            world_.Count("prep: failed");
            v1::Finished finished;
            *finished.mutable_failure() = MakeFailure(bad ? v1::DATA_INVALID : v1::TRAINER_EXIT,
                                                      "simulated end of prep", node_.name());
            Carry(core_->OnEnded(id, std::move(finished)));
            return;
          }
          v1::Prepared prepared;
          prepared.set_port(29500);
          Carry(core_->OnPrepared(id, std::move(prepared), node_.Now()));
        });
}

void SimAgent::Do(const LaunchGang& action) {
  const AgentCore::Attempt* attempt = core_->Find(action.id);
  if (attempt == nullptr) {
    world_.Violate("an agent launches an attempt that it does not know");
    return;
  }
  node_.StartPart(attempt->assign);
}

void SimAgent::Do(const AdoptGang& action) {
  const auto it = node_.disk().parts.find(action.id);
  if (it == node_.disk().parts.end()) {
    Later(absl::Milliseconds(5), [this, id = action.id] { Carry(core_->OnNothingToAdopt(id)); });
    return;
  }
  world_.Count(it->second->alive ? "agent: adopted a living gang" : "agent: found an ended gang");
  OnPartNews(action.id);
}

void SimAgent::Do(const StopAttempt& action) {
  const AttemptId id = action.id;
  world_.Trace("agent ", node_.name(), action.request.kill ? " kills " : " stops ", id.job.value(),
               "/", id.number, ": ", action.request.reason);
  const auto given = stops_.find(id);
  if (given == stops_.end()) {
    stops_[id] = action.request;
  } else {
    given->second.kill |= action.request.kill;
  }
  preparing_.erase(id);
  const auto it = node_.disk().parts.find(id);
  if (it == node_.disk().parts.end()) {  // only prep, or nothing, ran
    Later(world_.random().Spread(absl::Milliseconds(1), absl::Milliseconds(500)), [this, id] {
      if (node_.disk().parts.contains(id) || !stops_.contains(id)) return;
      Carry(core_->OnEnded(id, FinishedByStop(stops_.at(id), node_.name())));
    });
    return;
  }
  const std::shared_ptr<Part>& part = it->second;
  if (!part->alive) return;  // its end is on the way
  if (action.request.kill) {
    node_.KillPart(part, world_.random().Spread(absl::Milliseconds(1), absl::Seconds(1)),
                   "killed by the agent");
    return;
  }
  part->stop = true;
  part->stop_checkpoint |= action.request.checkpoint;
  // The ranks agree at a step; should they not, SIGTERM and SIGKILL follow.
  Later(action.request.grace + absl::Seconds(5), [this, part] {
    node_.KillPart(part, absl::Milliseconds(5), "SIGKILL after the grace period");
  });
}

void SimAgent::Do(const SendReport& action) { AddReport(action.id, action.report); }

void SimAgent::Do(const ForgetAttempt& action) {
  node_.disk().parts.erase(action.id);
  node_.disk().commits.erase(action.id);
  stops_.erase(action.id);
}

void SimAgent::Do(const MoveDeadline& action) { node_.MoveDeadline(action.deadline); }

void SimAgent::Do(const EndSession& action) { CloseSession(action.why); }

void SimAgent::Do(const RenewIncarnation&) {
  world_.Count("agent: renewed its incarnation");
  BeginIncarnation();
  RegisterLater();
}

// ---- session ----

ReportNumbers SimAgent::Numbers() const {
  const SimNode::Disk& disk = node_.disk();
  return {disk.next_number - static_cast<int64_t>(disk.spool.size()), disk.next_number};
}

void SimAgent::RegisterLater() {
  constexpr BackoffPolicy kPolicy{absl::Milliseconds(200), absl::Seconds(5), 2.0};
  if (std::exchange(registering_, true)) return;
  Later(BackoffDelay(kPolicy, failures_++, world_.random().Unit()), [this] {
    registering_ = false;
    Register();
  });
}

void SimAgent::Register() {
  if (std::exchange(registering_, true)) return;
  v1::RegisterRequest request;
  request.set_node(node_.name());
  request.set_incarnation(incarnation());
  request.set_boot_id(node_.boot_id());
  request.set_state_folder("/var/lib/agent");
  request.set_address("10.0.0.1");
  for (const int index : core_->OfferedDevices()) {
    v1::Device* device = request.add_devices();
    device->set_index(index);
    device->set_kind("gpu");
  }
  for (const AttemptId& id : core_->AnsweredFor()) {
    v1::AttemptRef* ref = request.add_live_attempts();
    ref->set_job(id.job.value());
    ref->set_attempt(id.number);
  }
  auto response = std::make_shared<v1::RegisterResponse>();
  SimCoordinator& coordinator = node_.cluster().coordinator;
  const absl::Duration sent = node_.Now();
  node_.cluster().network.Call(
      node_.link(), absl::Seconds(30),
      [&coordinator, request, response]() -> absl::Status {
        absl::StatusOr<v1::RegisterResponse> answer = coordinator.gateway().Register(request);
        if (answer.ok()) *response = *std::move(answer);
        return answer.status();
      },
      [weak = weak_from_this(), response, sent](const absl::Status& status) {
        const std::shared_ptr<SimAgent> self = weak.lock();
        if (self == nullptr) return;
        self->Run([self = self.get(), response, sent, status] {
          self->registering_ = false;
          if (!status.ok()) {
            self->RegisterLater();
            return;
          }
          absl::StatusOr<AgentActions> actions =
              self->core_->OnRegistered(*response, sent, self->Numbers(), self->node_.Now());
          if (!actions.ok()) {
            self->world_.Count("agent: refused an old epoch");
            self->RegisterLater();
            return;
          }
          self->world_.Count("agent: registered");
          self->Carry(*actions);
          if (!self->core_->connected()) return;  // it takes a new incarnation first
          self->Acknowledge(response->acknowledged_report());
          self->OpenSession();
        });
      });
}

void SimAgent::OpenSession() {
  failures_ = 0;
  ++session_;
  SimCoordinator& coordinator = node_.cluster().coordinator;
  stream_ = coordinator.OpenStream(node_.cluster().network, node_.link());
  stream_->on_message = [weak = weak_from_this(),
                         session = session_](const v1::SessionResponse& response) {
    const std::shared_ptr<SimAgent> self = weak.lock();
    if (self == nullptr) return;
    self->Run([self = self.get(), session, response] {
      if (session != self->session_ || self->stream_ == nullptr) return;
      const bool old = response.coordinator_epoch() < self->core_->highest_epoch();
      absl::StatusOr<AgentActions> actions =
          self->core_->OnSessionResponse(response, self->node_.Now());
      if (actions.ok() && old) self->world_.Violate("an order of an old epoch was carried out");
      if (!actions.ok()) {
        self->world_.Count("agent: refused an old epoch");
        self->CloseSession("an old epoch");
        return;
      }
      self->Carry(*actions);
    });
  };
  stream_->on_end = [weak = weak_from_this(), session = session_](const absl::Status& status) {
    const std::shared_ptr<SimAgent> self = weak.lock();
    if (self == nullptr) return;
    self->Run([self = self.get(), session, status] {
      if (session == self->session_) self->CloseSession(status.ToString());
    });
  };
  Heartbeat(session_);
  SendReports();
}

void SimAgent::CloseSession(const std::string& why) {
  if (stream_ == nullptr) return;
  world_.Trace("session ends on ", node_.name(), ": ", why);
  stream_->on_message = nullptr;
  stream_->on_end = nullptr;
  stream_ = nullptr;
  core_->OnSessionEnded();
  RegisterLater();
}

void SimAgent::Heartbeat(int64_t session) {
  if (session != session_ || stream_ == nullptr) return;
  v1::SessionRequest request;
  request.set_node(node_.name());
  request.set_incarnation(incarnation());
  for (const AttemptId& id : core_->Live()) {
    v1::AttemptRef* ref = request.add_live_attempts();
    ref->set_job(id.job.value());
    ref->set_attempt(id.number);
  }
  request.set_heartbeat(core_->NextHeartbeat(node_.Now()));
  stream_->up->Send([&coordinator = node_.cluster().coordinator, stream = stream_, request] {
    coordinator.OnHeartbeat(stream, request);
  });
  Later(core_->heartbeat_interval(), [this, session] { Heartbeat(session); });
}

// ---- reports ----

void SimAgent::AddReport(const AttemptId& id, v1::Report report) {
  SimNode::Disk& disk = node_.disk();
  report.set_job(id.job.value());
  report.set_attempt(id.number);
  disk.spool.push_back({id, std::move(report)});
  ++disk.next_number;
  Later(absl::Milliseconds(1), [this] { SendReports(); });
}

void SimAgent::SendReports() {
  SimNode::Disk& disk = node_.disk();
  if (reporting_ || disk.spool.empty() || !core_->connected()) return;
  reporting_ = true;
  v1::ReportRequest request;
  request.set_node(node_.name());
  request.set_incarnation(incarnation());
  int64_t number = Numbers().first;
  for (const SimNode::Report& report : disk.spool) {
    if (request.reports_size() == 20) break;
    *request.add_reports() = report.report;
    request.mutable_reports(request.reports_size() - 1)->set_number(number++);
  }
  auto response = std::make_shared<v1::ReportResponse>();
  SimCoordinator& coordinator = node_.cluster().coordinator;
  node_.cluster().network.Call(
      node_.link(), absl::Seconds(30),
      [&coordinator, &world = world_, request, response]() -> absl::Status {
        absl::StatusOr<v1::ReportResponse> answer = coordinator.gateway().Report(request);
        if (answer.ok()) *response = *std::move(answer);
        if (GetErrorDetails(answer.status()).reason == "STALE_INCARNATION") {
          world.Count("fence: reports of a stale incarnation refused");
        }
        return answer.status();
      },
      [weak = weak_from_this(), response, incarnation = incarnation(),
       first = request.reports(0).number()](const absl::Status& status) {
        const std::shared_ptr<SimAgent> self = weak.lock();
        if (self == nullptr) return;
        self->Run([self = self.get(), response, status, first, incarnation] {
          self->reporting_ = false;
          const bool current = incarnation == self->incarnation();
          if (status.ok() && current) {
            std::vector<AttemptId> stale;
            for (const v1::AttemptRef& ref : response->stale_attempts()) {
              stale.push_back({JobId(ref.job()), ref.attempt()});
            }
            self->Acknowledge(response->acknowledged());
            self->Carry(self->core_->OnStale(stale));
            if (response->acknowledged() >= first) self->report_failures_ = 0;
          } else if (current && GetErrorDetails(status).reason == "STALE_INCARNATION") {
            self->CloseSession("the coordinator does not know this agent");
          }
          constexpr BackoffPolicy kPolicy{absl::Milliseconds(200), absl::Seconds(5), 2.0};
          const absl::Duration delay = status.ok() ? absl::Milliseconds(1)
                                                   : BackoffDelay(kPolicy, self->report_failures_++,
                                                                  self->world_.random().Unit());
          self->Later(delay, [self] { self->SendReports(); });
        });
      });
}

void SimAgent::Acknowledge(int64_t number) {
  SimNode::Disk& disk = node_.disk();
  while (!disk.spool.empty() && Numbers().first <= number) {
    const SimNode::Report report = std::move(disk.spool.front());
    disk.spool.pop_front();
    if (report.report.has_finished()) node_.cluster().on_end_acknowledged(node_, report.id);
  }
  for (const AttemptId& id : core_->AnsweredFor()) {
    if (core_->Find(id)->phase != AgentCore::Phase::kEnded) continue;
    const bool pending = std::any_of(disk.spool.begin(), disk.spool.end(),
                                     [&](const SimNode::Report& r) { return r.id == id; });
    if (!pending) Carry(core_->OnReportsDrained(id));
  }
}

// ---- what the ranks say ----

void SimAgent::OnPartNews(const AttemptId& id) {
  Later(world_.random().Spread(absl::Microseconds(50), absl::Milliseconds(50)),
        [this, id] { ReadPart(id); });
}

void SimAgent::ReadPart(const AttemptId& id) {
  const auto it = node_.disk().parts.find(id);
  if (it == node_.disk().parts.end()) return;
  Part& part = *it->second;
  const AgentCore::Attempt* attempt = core_->Find(id);
  if (attempt == nullptr || attempt->phase != AgentCore::Phase::kStarted) return;
  std::deque<RankFrame>& commits = node_.disk().commits[id];
  while (!part.frames.empty()) {
    const RankFrame frame = std::move(part.frames.front());
    part.frames.pop_front();
    v1::Report report;
    switch (frame.kind) {
      case RankFrame::Kind::kRunning:
        report.mutable_running();
        break;
      case RankFrame::Kind::kStep:
        report.mutable_step()->set_step(frame.step);
        break;
      case RankFrame::Kind::kCheckpoint:
        commits.push_back(frame);
        continue;
    }
    AddReport(id, std::move(report));
  }
  if (part.alive) {
    SendCommit(id);
    return;
  }
  const bool by_stop = stops_.contains(id);
  const PartEnd end = part.end.value_or(PartEnd{});
  if (end.done && !commits.empty() && !by_stop) {  // its last checkpoint first
    SendCommit(id);
    return;
  }
  commits.clear();
  v1::Finished finished;
  if (by_stop && (end.done || end.reason == v1::TRAINER_SIGNAL)) {
    finished = FinishedByStop(stops_.at(id), node_.name());
  } else if (end.done) {
    finished.set_succeeded(true);
  } else {
    *finished.mutable_failure() = MakeFailure(end.reason, end.message, node_.name());
    v1::Report failed;
    *failed.mutable_rank_failed()->mutable_failure() = finished.failure();
    AddReport(id, std::move(failed));
  }
  // The devices are free a moment after the processes are gone.
  Later(world_.random().Spread(absl::Milliseconds(1), absl::Milliseconds(300)),
        [this, id, finished] { Carry(core_->OnEnded(id, finished)); });
}

void SimAgent::SendCommit(const AttemptId& id) {
  const std::deque<RankFrame>& commits = node_.disk().commits[id];
  if (commits.empty() || !committing_.insert(id).second) return;
  const RankFrame frame = commits.front();
  v1::CommitCheckpointRequest request;
  request.set_node(node_.name());
  request.set_incarnation(incarnation());
  request.set_job(id.job.value());
  request.set_attempt(id.number);
  request.set_step(frame.step);
  request.set_staging_path(frame.staging_path);
  request.set_manifest_crc32c(frame.crc);
  request.set_final(frame.final);
  SimCoordinator& coordinator = node_.cluster().coordinator;
  node_.cluster().network.Call(
      node_.link(), absl::Minutes(1),
      [&coordinator, request] { return coordinator.gateway().CommitCheckpoint(request).status(); },
      [weak = weak_from_this(), id, frame](const absl::Status& status) {
        const std::shared_ptr<SimAgent> self = weak.lock();
        if (self == nullptr) return;
        self->Run([self = self.get(), id, frame, status] {
          self->committing_.erase(id);
          self->OnCommitAnswer(id, frame, status);
        });
      });
}

void SimAgent::OnCommitAnswer(const AttemptId& id, const RankFrame& frame,
                              const absl::Status& status) {
  std::deque<RankFrame>& commits = node_.disk().commits[id];
  if (commits.empty() || commits.front().step != frame.step) return;  // given up meanwhile
  const std::string reason = GetErrorDetails(status).reason;
  if (reason == "STALE_ATTEMPT") {
    world_.Count("fence: commit of a stale attempt refused");
    commits.clear();
    Carry(core_->OnStale({id}));
    return;
  }
  if (reason == "STALE_INCARNATION") {
    world_.Count("fence: commit of a stale incarnation refused");
    CloseSession("the coordinator does not know this agent");
  }
  if (reason == "STALE_INCARNATION" || absl::IsUnavailable(status) ||
      absl::IsDeadlineExceeded(status) || absl::IsResourceExhausted(status)) {
    Later(world_.random().Between(absl::Milliseconds(100), absl::Seconds(5)),
          [this, id] { SendCommit(id); });
    return;
  }
  commits.pop_front();
  world_.Tally(status.ok() ? "commit: accepted" : absl::StrCat("commit: refused ", reason));
  node_.cluster().trainers.Committed(id, frame.step, status.ok());
  ReadPart(id);
}

void SimAgent::Shutdown(absl::Duration grace) {
  Run([this, grace] { Carry(core_->OnShutdown(grace)); });
}

}  // namespace switchyard::simulation
