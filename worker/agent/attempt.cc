#include "worker/agent/attempt.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <limits>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "worker/agent/host_stats.h"

namespace switchyard {
namespace {

absl::Duration Now() { return RealClock::Get().Monotonic(); }

// Enough for a rank that is busy importing libraries; the config fits the socket's buffer anyway.
constexpr absl::Duration kSendTimeout = absl::Seconds(5);

std::string LogName(int rank) { return absl::StrCat("rank-", rank); }

}  // namespace

Attempt::Attempt(const AgentConfig& config, v1::Assign assign, std::vector<DeviceInfo> devices,
                 ReportSpool& spool, AgentMetrics& metrics, CommitFunction commit)
    : config_(config),
      assign_(std::move(assign)),
      id_{JobId(assign_.job()), assign_.attempt()},
      devices_(std::move(devices)),
      spool_(spool),
      metrics_(metrics),
      commit_(std::move(commit)),
      oom_kills_before_(ReadOomKills()),
      wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  thread_ = Thread("attempt", [this](const StopToken&) { Run(); });
}

Attempt::~Attempt() {
  StopRequest request;
  request.cause = StopCause::kShutdown;
  request.reason = "the agent ends";
  request.kill = true;
  Stop(request);
  thread_.StopAndJoin();
}

void Attempt::Start(const v1::Start& start) {
  absl::MutexLock lock(&mu_);
  if (start_.has_value()) return;
  start_ = start;
  ::eventfd_write(wake_.get(), 1);
}

void Attempt::Stop(const StopRequest& request) {
  absl::MutexLock lock(&mu_);
  const absl::Duration term_time = Now() + request.grace;
  if (!stop_.has_value()) {
    stop_ = PendingStop{request, term_time};
  } else {
    stop_->request.kill |= request.kill;
    stop_->term_time = std::min(stop_->term_time, term_time);
  }
  ::eventfd_write(wake_.get(), 1);
}

bool Attempt::finished() const {
  absl::MutexLock lock(&mu_);
  return finished_;
}

bool Attempt::WaitFinished(absl::Duration timeout) {
  absl::MutexLock lock(&mu_);
  return mu_.AwaitWithTimeout(absl::Condition(&finished_), timeout);
}

std::vector<pid_t> Attempt::pids() const {
  absl::MutexLock lock(&mu_);
  return pids_;
}

std::optional<Attempt::PendingStop> Attempt::pending_stop() const {
  absl::MutexLock lock(&mu_);
  return stop_;
}

void Attempt::Run() {
  std::optional<v1::Finished> finished = Prepare();
  if (!finished.has_value()) finished = AwaitStart();
  if (!finished.has_value()) finished = RunGang();

  SY_LOG(INFO) << "attempt finished job=" << id_.job << " attempt=" << id_.number
               << " succeeded=" << finished->succeeded() << " stopped=" << finished->stopped()
               << " reason=" << v1::FailureReason_Name(finished->failure().reason());
  metrics_.AttemptFinished(id_, finished->succeeded() ? AttemptOutcome::kSucceeded
                                : finished->stopped() ? AttemptOutcome::kStopped
                                                      : AttemptOutcome::kFailed);
  v1::Report report;
  *report.mutable_finished() = *std::move(finished);
  spool_.Add(id_, std::move(report));
  absl::MutexLock lock(&mu_);
  finished_ = true;
}

v1::Finished Attempt::Failed(v1::Failure failure) const {
  v1::Finished finished;
  *finished.mutable_failure() = std::move(failure);
  return finished;
}

v1::Finished Attempt::Stopped(const StopRequest& request) const {
  switch (request.cause) {
    case StopCause::kLease:
      return Failed(ServiceFailure(v1::NODE_LOST, request.reason, config_.node));
    case StopCause::kShutdown:
      return Failed(ServiceFailure(v1::DRAINED, request.reason, config_.node));
    case StopCause::kOrder:
    case StopCause::kStale:
      break;
  }
  v1::Finished finished;
  finished.set_stopped(true);
  return finished;
}

bool Attempt::OomKillSeen() const { return ReadOomKills() > oom_kills_before_; }

void Attempt::ReportEvent(absl::string_view kind, const std::string& message) {
  v1::Report report;
  report.mutable_event()->set_kind(std::string(kind));
  report.mutable_event()->set_message(message);
  report.mutable_event()->set_attempt(id_.number);
  spool_.Add(id_, std::move(report));
}

void Attempt::WaitForNews(const std::vector<CapturedProcess*>& processes, absl::Duration deadline) {
  std::vector<pollfd> fds{{wake_.get(), POLLIN, 0}};
  absl::Duration wait = deadline - Now();
  for (const CapturedProcess* process : processes) {
    if (!process->closed()) wait = std::min(wait, process->AppendPollFds(fds));
  }
  for (const Rank& rank : ranks_) {
    if (rank.link_open) fds.push_back({rank.link->fd(), POLLIN, 0});
  }
  int timeout_ms = -1;
  if (wait < absl::InfiniteDuration()) {
    timeout_ms = static_cast<int>(
        std::clamp<int64_t>(absl::ToInt64Milliseconds(wait + absl::Microseconds(999)), 0,
                            std::numeric_limits<int>::max()));
  }
  ::poll(fds.data(), fds.size(), timeout_ms);
  eventfd_t unused;
  ::eventfd_read(wake_.get(), &unused);
  for (CapturedProcess* process : processes) process->Pump();
}

std::optional<v1::Finished> Attempt::Prepare() {
  const auto failed = [this](v1::FailureReason reason, const absl::Status& status) {
    return Failed(ServiceFailure(
        reason, absl::StrCat("prepare on node ", config_.node, ": ", status.message()),
        config_.node));
  };
  absl::StatusOr<std::string> folder = AttemptFolder(config_.state_dir, id_);
  if (!folder.ok()) return failed(v1::CONFIG_INVALID, folder.status());
  folder_ = *folder;
  absl::StatusOr<Json> spec = SpecToJson(assign_.spec());
  if (!spec.ok()) return failed(v1::CONFIG_INVALID, spec.status());
  spec_ = *std::move(spec);
  const std::string model_config = assign_.spec().model().path() + "/config.json";
  if (::access(model_config.c_str(), R_OK) != 0) {
    return failed(v1::CONFIG_INVALID, ErrnoStatus("open the model's", model_config, errno));
  }
  const std::string config_path = folder_ + "/prep.json";
  absl::Status written = MakeFolders(folder_);
  if (written.ok()) written = MakeFolders(assign_.job_dir());
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
      CapturedProcess::Start(options, id_, -1, folder_, "prep", spool_);
  if (!started.ok()) return failed(v1::INTERNAL, started.status());
  CapturedProcess& prep = **started;
  SY_LOG(INFO) << "preparing data job=" << id_.job << " attempt=" << id_.number
               << " pid=" << prep.pid();

  while (!prep.closed()) {
    WaitForNews({&prep}, kill_time_);
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
    return Stopped(stop->request);
  }
  const ExitStatus& status = prep.exit_status();
  if (status.code != 0 || status.signal != 0) {
    return Failed(DescribePrepFailure(status, prep.LastErrorLines(), OomKillSeen(), config_.node));
  }
  absl::StatusOr<PrepResult> result = ParsePrepOutput(prep.stdout_log().tail());
  if (!result.ok()) return failed(v1::INTERNAL, result.status());
  prep_ = *std::move(result);
  return std::nullopt;
}

std::optional<v1::Finished> Attempt::AwaitStart() {
  absl::StatusOr<int> port = FindFreePort(config_.address);
  if (!port.ok()) {
    return Failed(ServiceFailure(v1::INTERNAL, std::string(port.status().message()), config_.node));
  }
  v1::Report report;
  report.mutable_prepared()->set_port(*port);
  report.mutable_prepared()->set_data_report(prep_.data_report);
  report.mutable_prepared()->set_train_rows(prep_.train_rows);
  spool_.Add(id_, std::move(report));
  while (true) {
    {
      absl::MutexLock lock(&mu_);
      if (stop_.has_value()) return Stopped(stop_->request);
      if (start_.has_value()) return std::nullopt;
    }
    WaitForNews({}, absl::InfiniteDuration());
  }
}

absl::Status Attempt::StartRanks() {
  Rendezvous rendezvous;
  {
    absl::MutexLock lock(&mu_);
    rendezvous = {start_->master_address(), start_->master_port()};
  }
  const int num_cores = static_cast<int>(std::thread::hardware_concurrency());
  for (int i = 0; i < static_cast<int>(devices_.size()); ++i) {
    const ConfigFrame config = MakeConfigFrame(assign_, spec_, prep_, rendezvous, i,
                                               devices_[static_cast<size_t>(i)], num_cores);
    const Json frame = ToJson(AgentFrame(config));
    const int number = static_cast<int>(config.rank);
    RETURN_IF_ERROR(ReplaceFile(absl::StrCat(folder_, "/", LogName(number), ".config.json"),
                                DumpJson(frame, 1)));
    ASSIGN_OR_RETURN(SocketPair sockets, MakeSocketPair());
    SubprocessOptions options;
    options.argv = {config_.bin_dir + "/switchyard-trainer", "--link-fd",
                    absl::StrCat(kInheritedFd)};
    options.environment = {{"OMP_NUM_THREADS", absl::StrCat(config.threads)},
                           {"CUDA_DEVICE_ORDER", "PCI_BUS_ID"},
                           {"SWITCHYARD_JOB", assign_.job()},
                           {"SWITCHYARD_ATTEMPT", absl::StrCat(assign_.attempt())}};
    options.inherited_fd = sockets.second.get();
    Rank rank;
    rank.rank = number;
    ASSIGN_OR_RETURN(rank.process, CapturedProcess::Start(options, id_, number, folder_,
                                                          LogName(number), spool_));
    rank.link = std::make_unique<FrameChannel>(std::move(sockets.first));
    const absl::Status sent = rank.link->Send(frame, kSendTimeout);
    // A trainer that died at once is found out by its exit, which says more.
    if (!sent.ok()) SY_LOG(WARNING) << "send the config to rank " << number << ": " << sent;
    metrics_.TrainerStarted();
    {
      absl::MutexLock lock(&mu_);
      pids_.push_back(rank.process->pid());
    }
    ranks_.push_back(std::move(rank));
  }
  return absl::OkStatus();
}

v1::Finished Attempt::RunGang() {
  metrics_.GangStarted(id_);
  if (const absl::Status started = StartRanks(); !started.ok()) {
    failure_ = ServiceFailure(
        v1::INTERNAL,
        absl::StrCat("start the trainers on node ", config_.node, ": ", started.message()),
        config_.node);
    kill_time_ = Now();
  }
  SY_LOG(INFO) << "trainers started job=" << id_.job << " attempt=" << id_.number
               << " ranks=" << ranks_.size();
  committer_ = Thread("commit", [this](const StopToken& stop) { CommitLoop(stop); });

  std::vector<CapturedProcess*> processes;
  for (const Rank& rank : ranks_) processes.push_back(rank.process.get());
  const auto all_closed = [&processes] {
    return std::all_of(processes.begin(), processes.end(),
                       [](const CapturedProcess* p) { return p->closed(); });
  };
  while (!all_closed()) {
    absl::Duration deadline = std::min({term_time_, kill_time_, done_deadline_});
    for (const Rank& rank : ranks_) {
      const bool watched = !failure_.has_value() && !stop_sent_ && !rank.process->ended();
      if (watched && rank.error.has_value()) {
        deadline = std::min(deadline, rank.error_time + config_.error_exit_grace);
      }
    }
    WaitForNews(processes, deadline);
    for (Rank& rank : ranks_) ReadFrames(rank);
    const absl::Duration now = Now();
    ApplyStop(now);
    NoteEnds(now);
    RunTimers(now);
  }
  {
    absl::MutexLock lock(&mu_);
    commits_closed_ = true;
    pids_.clear();
  }
  committer_.StopAndJoin();  // before the link that it writes to goes
  return Outcome();
}

void Attempt::ReadFrames(Rank& rank) {
  while (rank.link_open) {
    absl::StatusOr<Json> json = rank.link->Receive(absl::ZeroDuration());
    if (absl::IsDeadlineExceeded(json.status())) return;
    if (!json.ok()) {
      rank.link_open = false;
      if (!IsLinkClosed(json.status())) {
        SY_LOG(WARNING) << "link of rank " << rank.rank << ": " << json.status()
                        << " job=" << id_.job;
      }
      return;
    }
    absl::StatusOr<RankFrame> frame = ParseRankFrame(*json);
    if (!frame.ok()) {
      SY_LOG(WARNING) << "frame of rank " << rank.rank << " is ignored: " << frame.status()
                      << " job=" << id_.job;
      continue;
    }
    HandleFrame(rank, *frame);
  }
}

void Attempt::HandleFrame(Rank& rank, const RankFrame& frame) {
  if (std::holds_alternative<HelloFrame>(frame)) {
    rank.said_hello = true;
    const bool all =
        ranks_.size() == devices_.size() &&
        std::all_of(ranks_.begin(), ranks_.end(), [](const Rank& r) { return r.said_hello; });
    if (all && !running_reported_) {
      running_reported_ = true;
      v1::Report report;
      report.mutable_running();
      spool_.Add(id_, std::move(report));
    }
  } else if (const auto* error = std::get_if<ErrorFrame>(&frame)) {
    if (!rank.error.has_value()) rank.error_time = Now();
    rank.error = *error;
  } else if (const auto* done = std::get_if<DoneFrame>(&frame)) {
    rank.done = *done;
  } else if (const auto* warning = std::get_if<WarningFrame>(&frame)) {
    ReportEvent("WARNING", warning->message);
  } else if (rank.rank != 0) {
    // Every rank passes through the same phases; one word of it is enough.
  } else if (const auto* phase = std::get_if<PhaseFrame>(&frame)) {
    ReportEvent("PHASE", phase->message.empty() ? phase->name
                                                : absl::StrCat(phase->name, ": ", phase->message));
  } else if (const auto* plan = std::get_if<PlanFrame>(&frame)) {
    ReportEvent("PHASE", PlanMessage(*plan));
  } else if (const auto* step = std::get_if<StepFrame>(&frame)) {
    last_step_ = step->step;
    metrics_.ObserveStep(id_, *step);
    v1::Report report;
    *report.mutable_step() = ToStepMetrics(*step);
    report.mutable_step()->set_attempt(id_.number);
    const int64_t nanoseconds = absl::ToUnixNanos(RealClock::Get().Now());
    report.mutable_step()->mutable_time()->set_seconds(nanoseconds / 1'000'000'000);
    report.mutable_step()->mutable_time()->set_nanos(
        static_cast<int32_t>(nanoseconds % 1'000'000'000));
    spool_.Add(id_, std::move(report));
  } else if (const auto* validation = std::get_if<ValidationFrame>(&frame)) {
    ReportEvent("VALIDATION",
                absl::StrFormat("step %d: loss %.6g on '%s' (%d tokens)", validation->step,
                                validation->loss, validation->name, validation->tokens));
  } else if (const auto* checkpoint = std::get_if<CheckpointFrame>(&frame)) {
    absl::MutexLock lock(&mu_);
    commits_.push_back(*checkpoint);
  }
}

RankEnd Attempt::DescribeEnd(const Rank& rank) const {
  RankEnd end;
  end.rank = rank.rank;
  if (rank.process->ended()) end.status = rank.process->exit_status();
  end.error = rank.error;
  end.done = rank.done;
  end.oom_kill_seen = OomKillSeen();
  end.last_lines = rank.process->LastErrorLines();
  end.step = last_step_;
  return end;
}

void Attempt::FailGang(const RankEnd& end) {
  failure_ = DescribeRankFailure(end, config_.node);
  SY_LOG(WARNING) << "rank failed, stopping its gang: " << failure_->message() << " job=" << id_.job
                  << " attempt=" << id_.number;
  v1::Report report;
  *report.mutable_rank_failed()->mutable_failure() = *failure_;
  spool_.Add(id_, std::move(report));
  term_time_ = Now();  // its peers wait for it in a collective: no stop frame could reach them
}

void Attempt::NoteEnds(absl::Duration now) {
  const bool stopping = pending_stop().has_value();
  std::vector<RankEnd> failing;
  for (Rank& rank : ranks_) {
    if (!rank.process->ended() || rank.end_seen) continue;
    rank.end_seen = true;
    ReadFrames(rank);  // what it sent last may have come after the frames were read
    const RankEnd end = DescribeEnd(rank);
    if (IsFailure(end, stopping)) {
      failing.push_back(end);
    } else {
      done_deadline_ = std::min(done_deadline_, now + config_.done_grace);
    }
  }
  if (failing.empty() || failure_.has_value()) return;
  if (stopping) {
    term_time_ = std::min(term_time_, now);  // the others cannot agree without it
    return;
  }
  FailGang(failing[FirstFailure(failing)]);
}

void Attempt::ApplyStop(absl::Duration now) {
  const std::optional<PendingStop> stop = pending_stop();
  if (!stop.has_value()) return;
  if (!term_sent_) term_time_ = std::min(term_time_, stop->term_time);
  if (stop->request.kill && !kill_sent_) kill_time_ = std::min(kill_time_, now);
  if (stop_sent_) return;
  stop_sent_ = true;
  SY_LOG(INFO) << "stopping trainers job=" << id_.job << " attempt=" << id_.number << " reason='"
               << stop->request.reason << "' checkpoint=" << stop->request.checkpoint
               << " kill=" << stop->request.kill;
  if (stop->request.kill) return;
  const Json frame = ToJson(AgentFrame(StopFrame{stop->request.reason, stop->request.checkpoint}));
  for (Rank& rank : ranks_) {
    if (rank.process->ended()) continue;
    const absl::Status sent = rank.link->Send(frame, kSendTimeout);
    if (!sent.ok()) SY_LOG(WARNING) << "send stop to rank " << rank.rank << ": " << sent;
  }
}

void Attempt::RunTimers(absl::Duration now) {
  const bool stopping = pending_stop().has_value();
  if (!failure_.has_value() && !stopping) {
    for (const Rank& rank : ranks_) {
      if (failure_.has_value() || rank.process->ended()) continue;
      RankEnd end = DescribeEnd(rank);
      if (rank.error.has_value() && now >= rank.error_time + config_.error_exit_grace) {
        FailGang(end);
      } else if (now >= done_deadline_) {
        end.error = ErrorFrame{FailureReason::kHang,
                               absl::StrCat("still runs ", absl::FormatDuration(config_.done_grace),
                                            " after another rank was done"),
                               last_step_};
        FailGang(end);
      }
    }
  }
  if (now >= done_deadline_) done_deadline_ = absl::InfiniteDuration();
  if (now >= term_time_) {
    term_time_ = absl::InfiniteDuration();
    if (!term_sent_) {
      term_sent_ = true;
      SignalRanks(SIGTERM);
      kill_time_ = std::min(kill_time_,
                            now + (failure_.has_value() ? config_.gang_grace : config_.term_grace));
    }
  }
  if (now >= kill_time_) {
    kill_time_ = absl::InfiniteDuration();
    kill_sent_ = true;
    SignalRanks(SIGKILL);
  }
}

void Attempt::SignalRanks(int signal) {
  for (const Rank& rank : ranks_) rank.process->SignalGroup(signal);
}

v1::Finished Attempt::Outcome() const {
  if (failure_.has_value()) return Failed(*failure_);
  const bool all_done = std::all_of(ranks_.begin(), ranks_.end(), [](const Rank& rank) {
    const ExitStatus& status = rank.process->exit_status();
    return rank.done.has_value() && !rank.done->stopped && status.signal == 0 &&
           status.code == kExitDone;
  });
  if (all_done) {  // even when a stop came at the last moment
    v1::Finished finished;
    finished.set_succeeded(true);
    return finished;
  }
  const std::optional<PendingStop> stop = pending_stop();
  if (stop.has_value()) return Stopped(stop->request);
  return Failed(ServiceFailure(v1::INTERNAL, "bug: the gang ended without a failure or a stop",
                               config_.node));
}

void Attempt::CommitLoop(const StopToken& stop) {
  while (true) {
    CheckpointFrame frame;
    {
      absl::MutexLock lock(&mu_);
      mu_.Await(absl::Condition(this, &Attempt::CommitDueLocked));
      if (commits_closed_) return;
      frame = commits_.front();
      commits_.pop_front();
    }
    v1::CommitCheckpointRequest request;
    request.set_job(id_.job.value());
    request.set_attempt(id_.number);
    request.set_step(frame.step);
    request.set_staging_path(frame.path);
    request.set_manifest_crc32c(frame.manifest_crc32c);
    request.set_final(frame.final);
    request.set_loss(frame.loss);
    request.set_validation_loss(frame.validation_loss.value_or(0));
    const absl::StatusOr<v1::Checkpoint> committed = commit_(request, stop);
    CheckpointResultFrame result;
    result.step = frame.step;
    result.ok = committed.ok();
    if (committed.ok()) {
      result.path = committed->path();
      SY_LOG(INFO) << "checkpoint committed job=" << id_.job << " attempt=" << id_.number
                   << " step=" << frame.step << " path=" << result.path;
    } else {
      result.error = std::string(committed.status().message());
      SY_LOG(WARNING) << "checkpoint refused: " << committed.status() << " job=" << id_.job
                      << " attempt=" << id_.number << " step=" << frame.step;
    }
    for (const Rank& rank : ranks_) {
      if (rank.rank != 0) continue;
      const absl::Status sent = rank.link->Send(ToJson(AgentFrame(result)), kSendTimeout);
      if (!sent.ok()) SY_LOG(WARNING) << "send a checkpoint result to rank 0: " << sent;
    }
  }
}

}  // namespace switchyard
