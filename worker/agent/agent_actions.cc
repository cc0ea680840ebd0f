// How an agent carries out what its core decides, and serves its attempts.
#include <algorithm>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/failpoint.h"
#include "base/log.h"
#include "worker/agent/agent.h"

namespace switchyard {
namespace {

Failpoint before_commit("agent.commit.before_send", FailpointKind::kEvent);
Failpoint after_commit("agent.commit.after_answer", FailpointKind::kEvent);
Failpoint before_remove("agent.forget.before_remove", FailpointKind::kEvent);

// The coordinator reads a whole checkpoint when it verifies checksums.
constexpr absl::Duration kCommitTimeout = absl::Minutes(10);

// Names the attempt's processes and its cgroup: unique on this machine, for as long as the folder
// is, also among several agents.
std::string ScopeOf(const std::string& folder) {
  uint32_t hash = 2166136261u;  // FNV-1a: the same in every process
  for (const char c : folder) hash = (hash ^ static_cast<unsigned char>(c)) * 16777619u;
  return absl::StrFormat("switchyard-%08x-%s", hash,
                         std::filesystem::path(folder).filename().string());
}

}  // namespace

void Agent::ActLoop(const StopToken&) {
  while (true) {
    AgentAction action;
    {
      MonitorLock lock(&mu_);
      mu_.Await([this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return HasActionLocked(); });
      if (actions_.empty()) return;
      action = std::move(actions_.front());
    }
    Act(action);
    // Only now, so that an empty queue means that all is done.
    MonitorLock lock(&mu_);
    actions_.pop_front();
  }
}

void Agent::Act(const AgentAction& action) {
  if (const auto* prep = std::get_if<LaunchPrep>(&action)) {
    Launch(prep->id, /*adopt=*/false);
  } else if (const auto* adopt = std::get_if<AdoptGang>(&action)) {
    Launch(adopt->id, /*adopt=*/true);
  } else if (const auto* gang = std::get_if<LaunchGang>(&action)) {
    v1::Start start;
    std::shared_ptr<Attempt> attempt;
    {
      MonitorLock lock(&mu_);
      const AgentCore::Attempt* known = core_.Find(gang->id);
      const auto it = attempts_.find(gang->id);
      if (known == nullptr || !known->start.has_value() || it == attempts_.end()) return;
      start = *known->start;
      attempt = it->second;
    }
    attempt->Start(start);
  } else if (const auto* stop = std::get_if<StopAttempt>(&action)) {
    if (const std::shared_ptr<Attempt> attempt = Find(stop->id)) attempt->Stop(stop->request);
  } else if (const auto* report = std::get_if<SendReport>(&action)) {
    spool_.Add(report->id, report->report);
    if (!report->report.has_finished()) return;
    MonitorLock lock(&mu_);
    reported_.insert(report->id);
  } else if (const auto* forget = std::get_if<ForgetAttempt>(&action)) {
    std::shared_ptr<Attempt> attempt;  // destroyed outside the lock: joins a thread
    {
      MonitorLock lock(&mu_);
      reported_.erase(forget->id);
      const auto it = attempts_.find(forget->id);
      if (it != attempts_.end()) {
        attempt = std::move(it->second);
        attempts_.erase(it);
      }
    }
    attempt.reset();
    const absl::StatusOr<std::string> folder = AttemptFolder(config_.state_dir, forget->id);
    if (!folder.ok()) return;
    before_remove.Pass();
    std::error_code error;
    std::filesystem::remove_all(*folder, error);
    if (error) SY_LOG(WARNING) << "remove " << *folder << ": " << error.message();
  }
}

AttemptHooks Agent::MakeHooks(const AttemptId& id) {
  AttemptHooks hooks;
  hooks.prepared = [this, id](v1::Prepared prepared) {
    Drive([&](AgentCore& core) {
      return core.OnPrepared(id, std::move(prepared), clock_.Monotonic());
    });
  };
  hooks.ended = [this, id](v1::Finished finished) {
    Drive([&](AgentCore& core) { return core.OnEnded(id, std::move(finished)); });
  };
  hooks.nothing_to_adopt = [this, id] {
    Drive([&](AgentCore& core) { return core.OnNothingToAdopt(id); });
  };
  hooks.commit = [this](const v1::CommitCheckpointRequest& request, const StopToken& stop) {
    return Commit(request, stop);
  };
  hooks.busy_devices = [this](const std::vector<DeviceInfo>& devices) {
    return BusyDevices(devices);
  };
  hooks.withhold = [this](const std::vector<int>& devices) {
    MonitorLock lock(&mu_);
    std::set<int> withheld = withheld_;
    withheld.insert(devices.begin(), devices.end());
    SetWithheldLocked(std::move(withheld));
  };
  return hooks;
}

void Agent::Launch(const AttemptId& id, bool adopt) {
  AttemptSetup setup;
  {
    MonitorLock lock(&mu_);
    const AgentCore::Attempt* known = core_.Find(id);
    if (known == nullptr) return;
    setup.assign = known->assign;
    if (adopt) setup.adopt = known->start;
  }
  setup.rebooted = opened_.rebooted;
  for (const int index : setup.assign.devices()) {
    const auto device = std::find_if(devices_.begin(), devices_.end(),
                                     [index](const DeviceInfo& d) { return d.index == index; });
    // An agent that was started with fewer devices still adopts what runs on the others.
    setup.devices.push_back(device != devices_.end() ? *device : DeviceInfo{index, "cpu", 0, ""});
  }
  const absl::StatusOr<std::string> folder = AttemptFolder(opened_.state_folder, id);
  if (folder.ok()) setup.scope = ScopeOf(*folder);
  auto attempt =
      std::make_shared<Attempt>(config_, std::move(setup), spool_, *metrics_, MakeHooks(id));
  MonitorLock lock(&mu_);
  attempts_[id].swap(attempt);  // the one that found nothing to adopt goes outside the lock
}

std::shared_ptr<Attempt> Agent::Find(const AttemptId& id) const {
  MonitorLock lock(&mu_);
  const auto it = attempts_.find(id);
  return it == attempts_.end() ? nullptr : it->second;
}

std::vector<std::shared_ptr<Attempt>> Agent::LiveAttempts() const {
  std::vector<std::shared_ptr<Attempt>> live;
  MonitorLock lock(&mu_);
  for (const auto& [id, attempt] : attempts_) {
    if (!attempt->finished()) live.push_back(attempt);
  }
  return live;
}

void Agent::KillStale(const google::protobuf::RepeatedPtrField<v1::AttemptRef>& attempts) {
  std::vector<AttemptId> ids;
  for (const v1::AttemptRef& ref : attempts) ids.push_back({JobId(ref.job()), ref.attempt()});
  Drive([&](AgentCore& core) { return core.OnStale(ids); });
}

absl::StatusOr<v1::Checkpoint> Agent::Commit(v1::CommitCheckpointRequest request,
                                             const StopToken& stop) {
  request.set_node(config_.node);
  for (int failures = 0;; ++failures) {
    request.set_incarnation(incarnation());
    before_commit.Pass();
    const absl::StatusOr<v1::CommitCheckpointResponse> response =
        client_.CommitCheckpoint(request, kCommitTimeout, stop);
    after_commit.Pass();
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
      MonitorLock lock(&mu_);
      EndSessionLocked("the coordinator does not know this agent");
    } else if (!absl::IsUnavailable(status) && !absl::IsDeadlineExceeded(status)) {
      return status;
    }
    SY_LOG(WARNING) << "commit of step " << request.step() << " is tried again: " << status
                    << " job=" << request.job();
    if (stop.WaitForStop(RetryDelay(failures, LeaseTtl()))) return status;
  }
}

// ---- devices ----

std::vector<int> Agent::BusyDevices(const std::vector<DeviceInfo>& devices) const {
  std::vector<int> gpus;
  for (const DeviceInfo& device : devices) {
    if (!device.is_cpu()) gpus.push_back(device.index);
  }
  if (gpus.empty()) return gpus;
  absl::StatusOr<std::vector<int>> busy = BusyGpus(gpus, config_.nvml_library);
  if (busy.ok()) return *std::move(busy);
  SY_LOG(ERROR) << "devices are not known to be free: " << busy.status();
  return gpus;
}

void Agent::CheckWithheld() {
  std::vector<DeviceInfo> devices;
  {
    MonitorLock lock(&mu_);
    for (const DeviceInfo& device : devices_) {
      if (withheld_.contains(device.index)) devices.push_back(device);
    }
  }
  if (devices.empty()) return;
  const std::vector<int> busy = BusyDevices(devices);
  MonitorLock lock(&mu_);
  std::set<int> withheld = withheld_;
  for (const DeviceInfo& device : devices) {
    if (std::find(busy.begin(), busy.end(), device.index) == busy.end()) {
      SY_LOG(INFO) << "device is free again index=" << device.index;
      withheld.erase(device.index);
    }
  }
  SetWithheldLocked(std::move(withheld));
}

void Agent::SetWithheldLocked(std::set<int> devices) {
  if (devices == withheld_) return;
  withheld_ = std::move(devices);
  // Before the attempt's end is reported: a successor that did not know would offer them.
  const Json json{{"devices", withheld_}};
  const absl::Status written = ReplaceFile(WithheldPath(config_.state_dir), DumpJson(json) + "\n");
  if (!written.ok()) SY_LOG(ERROR) << "withheld devices: " << written;
  TakeActionsLocked(core_.OnDevicesWithheld(withheld_)).IgnoreError();
}

}  // namespace switchyard
