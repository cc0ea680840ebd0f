#include "worker/agent/attempt.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/log.h"
#include "worker/agent/host_stats.h"

namespace switchyard {
namespace {

absl::Duration Now() { return RealClock::Get().Monotonic(); }

}  // namespace

Attempt::Attempt(const AgentConfig& config, AttemptSetup setup, ReportSpool& spool,
                 AgentMetrics& metrics, AttemptHooks hooks)
    : config_(config),
      setup_(std::move(setup)),
      assign_(setup_.assign),
      id_{JobId(assign_.job()), assign_.attempt()},
      devices_(setup_.devices),
      spool_(spool),
      metrics_(metrics),
      hooks_(std::move(hooks)),
      oom_kills_before_(ReadOomKills()),
      wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      start_(setup_.adopt) {
  thread_ = Thread("attempt", [this](const StopToken&) {
    std::optional<v1::Finished> finished = Run();
    if (finished.has_value()) {
      SY_LOG(INFO) << "attempt finished job=" << id_.job << " attempt=" << id_.number
                   << " succeeded=" << finished->succeeded() << " stopped=" << finished->stopped()
                   << " reason=" << v1::FailureReason_Name(finished->failure().reason());
      metrics_.AttemptFinished(id_, finished->succeeded() ? AttemptOutcome::kSucceeded
                                    : finished->stopped() ? AttemptOutcome::kStopped
                                                          : AttemptOutcome::kFailed);
      hooks_.ended(*std::move(finished));
    } else {
      hooks_.nothing_to_adopt();
    }
    MonitorLock lock(&mu_);
    finished_ = true;
  });
}

Attempt::~Attempt() {
  Stop(KillRequest(StopCause::kShutdown, "the agent ends"));
  thread_.StopAndJoin();
}

void Attempt::Start(const v1::Start& start) {
  MonitorLock lock(&mu_);
  if (start_.has_value()) return;
  start_ = start;
  ::eventfd_write(wake_.get(), 1);
}

void Attempt::Stop(const StopRequest& request) {
  MonitorLock lock(&mu_);
  const absl::Duration term_time = Now() + request.grace;
  if (!stop_.has_value()) {
    stop_ = PendingStop{request, term_time};
  } else {
    stop_->request.kill |= request.kill;
    stop_->term_time = std::min(stop_->term_time, term_time);
  }
  ::eventfd_write(wake_.get(), 1);
}

void Attempt::DeadlineMovedBack() {
  deadline_moved_back_ = true;
  ::eventfd_write(wake_.get(), 1);
}

bool Attempt::finished() const {
  MonitorLock lock(&mu_);
  return finished_;
}

bool Attempt::WaitFinished(absl::Duration timeout) {
  MonitorLock lock(&mu_);
  return mu_.AwaitWithTimeout([this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return finished_; },
                              timeout);
}

std::vector<pid_t> Attempt::pids() const {
  MonitorLock lock(&mu_);
  return pids_;
}

std::optional<Attempt::PendingStop> Attempt::pending_stop() const {
  MonitorLock lock(&mu_);
  return stop_;
}

std::optional<v1::Finished> Attempt::Run() {
  std::optional<v1::Finished> finished = OpenFolder();
  if (finished.has_value()) return finished;
  if (setup_.adopt.has_value()) {
    absl::StatusOr<std::unique_ptr<ShimGang>> gang = ShimGang::Adopt(folder_);
    if (gang.ok()) {
      gang_ = *std::move(gang);
      SY_LOG(INFO) << "trainers adopted job=" << id_.job << " attempt=" << id_.number
                   << " alive=" << gang_->Pids().size();
      return RunGang();
    }
    SY_LOG(WARNING) << "nothing to adopt: " << gang.status() << " job=" << id_.job
                    << " attempt=" << id_.number;
    return std::nullopt;
  }
  finished = Prepare();
  if (!finished.has_value()) finished = AwaitStart();
  if (!finished.has_value()) finished = RunGang();
  return finished;
}

v1::Finished Attempt::Failed(v1::Failure failure) const {
  v1::Finished finished;
  *finished.mutable_failure() = std::move(failure);
  return finished;
}

bool Attempt::OomKillSeen() const { return ReadOomKills() > oom_kills_before_; }

void Attempt::ReportEvent(absl::string_view kind, const std::string& message,
                          const FrameOrigin& origin) {
  v1::Report report;
  report.mutable_event()->set_kind(std::string(kind));
  report.mutable_event()->set_message(message);
  report.mutable_event()->set_attempt(id_.number);
  spool_.Add(id_, std::move(report), origin);
}

void Attempt::WaitForNews(CapturedProcess* process, absl::Duration deadline) {
  std::vector<pollfd> fds{{wake_.get(), POLLIN, 0}};
  absl::Duration wait = deadline - Now();
  if (process != nullptr && !process->closed()) wait = std::min(wait, process->AppendPollFds(fds));
  if (gang_ != nullptr) fds.push_back({gang_->fd(), POLLIN, 0});  // -1 is ignored
  int timeout_ms = -1;
  if (wait < absl::InfiniteDuration()) {
    timeout_ms = static_cast<int>(
        std::clamp<int64_t>(absl::ToInt64Milliseconds(wait + absl::Microseconds(999)), 0,
                            std::numeric_limits<int>::max()));
  }
  ::poll(fds.data(), fds.size(), timeout_ms);
  eventfd_t unused;
  ::eventfd_read(wake_.get(), &unused);
  if (process != nullptr) process->Pump();
  if (gang_ != nullptr) gang_->ReadNews();
}

std::optional<v1::Finished> Attempt::OpenFolder() {
  const auto failed = [this](v1::FailureReason reason, const absl::Status& status) {
    return Failed(ServiceFailure(
        reason, absl::StrCat("prepare on node ", config_.node, ": ", status.message()),
        config_.node));
  };
  absl::StatusOr<std::string> folder = AttemptFolder(config_.state_dir, id_);
  if (!folder.ok()) return failed(v1::CONFIG_INVALID, folder.status());
  folder_ = *folder;
  absl::Status opened = MakeFolders(folder_);
  if (opened.ok()) {
    const std::string path = absl::StrCat(folder_, "/", kPositionsFile);
    if (const int error = positions_.Open(path, true); error != 0) {
      opened = ErrnoStatus("make", path, error);
    }
  }
  if (opened.ok()) return std::nullopt;
  return failed(absl::IsResourceExhausted(opened) ? v1::DISK_FULL : v1::STORAGE_IO, opened);
}

std::optional<v1::Finished> Attempt::Prepare() {
  const auto failed = [this](v1::FailureReason reason, const absl::Status& status) {
    return Failed(ServiceFailure(
        reason, absl::StrCat("prepare on node ", config_.node, ": ", status.message()),
        config_.node));
  };
  absl::StatusOr<Json> spec = SpecToJson(assign_.spec());
  if (!spec.ok()) return failed(v1::CONFIG_INVALID, spec.status());
  spec_ = *std::move(spec);
  const std::string model_config = assign_.spec().model().path() + "/config.json";
  if (::access(model_config.c_str(), R_OK) != 0) {
    return failed(v1::CONFIG_INVALID, ErrnoStatus("open the model's", model_config, errno));
  }
  const std::string config_path = folder_ + "/prep.json";
  absl::Status written = MakeFolders(assign_.job_dir());
  if (written.ok()) written = MakeFolders(TokensFolder(config_.state_dir));
  if (written.ok()) written = ReplaceFile(config_path, DumpJson(Json{{"job", spec_}}, 1));
  if (!written.ok()) {
    return failed(absl::IsResourceExhausted(written) ? v1::DISK_FULL : v1::STORAGE_IO, written);
  }

  SubprocessOptions options;
  options.argv = {
      config_.bin_dir + "/switchyard-prep", "run", "--config", config_path, "--cache-dir",
      TokensFolder(config_.state_dir)};
  absl::StatusOr<std::unique_ptr<CapturedProcess>> started =
      CapturedProcess::Start(options, id_, -1, folder_, "prep", spool_, &positions_->prep);
  if (!started.ok()) return failed(v1::INTERNAL, started.status());
  CapturedProcess& prep = **started;
  SY_LOG(INFO) << "preparing data job=" << id_.job << " attempt=" << id_.number
               << " pid=" << prep.pid();

  while (!prep.closed()) {
    WaitForNews(&prep, kill_time_);
    const absl::Duration now = Now();
    const std::optional<PendingStop> stop = pending_stop();
    if (stop.has_value() && !term_sent_) {
      term_sent_ = true;
      prep.SignalGroup(SIGTERM);  // it holds nothing that needs a grace period
      kill_time_ = now + config_.term_grace;
    }
    if (now >= kill_time_ || (stop.has_value() && stop->request.kill)) {
      prep.SignalGroup(SIGKILL);
      kill_time_ = absl::InfiniteDuration();
    }
  }
  if (const std::optional<PendingStop> stop = pending_stop(); stop.has_value()) {
    return FinishedByStop(stop->request, config_.node);
  }
  const ExitStatus& status = prep.exit_status();
  if (status.code != 0 || status.signal != 0) {
    return Failed(DescribePrepFailure(status, prep.LastErrorLines(), OomKillSeen(), config_.node));
  }
  // The whole of it, unless the disk is full: a report can be longer than what the tail keeps.
  absl::StatusOr<PrepResult> result =
      ParsePrepOutput(prep.stdout_log().ReadAll().value_or(prep.stdout_log().tail()));
  if (!result.ok()) return failed(v1::INTERNAL, result.status());
  prep_ = *std::move(result);
  return std::nullopt;
}

std::optional<v1::Finished> Attempt::AwaitStart() {
  absl::StatusOr<int> port = FindFreePort(config_.address);
  if (!port.ok()) {
    return Failed(ServiceFailure(v1::INTERNAL, std::string(port.status().message()), config_.node));
  }
  v1::Prepared prepared;
  prepared.set_port(*port);
  prepared.set_data_report(prep_.data_report);
  prepared.set_train_rows(prep_.train_rows);
  hooks_.prepared(std::move(prepared));
  while (true) {
    {
      MonitorLock lock(&mu_);
      if (stop_.has_value()) return FinishedByStop(stop_->request, config_.node);
      if (start_.has_value()) return std::nullopt;
    }
    WaitForNews(nullptr, absl::InfiniteDuration());
  }
}

}  // namespace switchyard
