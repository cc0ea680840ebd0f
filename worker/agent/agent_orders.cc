// What an agent does on its coordinator's orders, and for its attempts.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/log.h"
#include "worker/agent/agent.h"

namespace switchyard {
namespace {

// From a Stop order without one.
constexpr absl::Duration kDefaultGrace = absl::Seconds(30);
// The coordinator reads a whole checkpoint when it verifies checksums.
constexpr absl::Duration kCommitTimeout = absl::Minutes(10);
constexpr absl::Duration kStaleGangTimeout = absl::Seconds(10);

template <typename Order>
AttemptId IdOf(const Order& order) {
  return {JobId(order.job()), order.attempt()};
}

}  // namespace

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

void Agent::KillStale(const google::protobuf::RepeatedPtrField<v1::AttemptRef>& attempts) {
  for (const v1::AttemptRef& ref : attempts) {
    const std::shared_ptr<Attempt> attempt = Find(IdOf(ref));
    if (attempt == nullptr || attempt->finished()) continue;
    SY_LOG(WARNING) << "killing a stale attempt job=" << ref.job() << " attempt=" << ref.attempt();
    attempt->Stop(KillRequest(StopCause::kStale, "the coordinator gave this attempt up"));
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
        attempt->Stop(KillRequest(StopCause::kStale, "a newer attempt was assigned"));
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
    request.grace = stop.has_grace_period() ? absl::Seconds(stop.grace_period().seconds()) +
                                                  absl::Nanoseconds(stop.grace_period().nanos())
                                            : kDefaultGrace;
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
    if (stop.WaitForStop(RetryDelay(failures))) return status;
  }
}

}  // namespace switchyard
