// The running part of an attempt: its trainers, from their start to the end of the last one.
#include <signal.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "worker/agent/attempt.h"

namespace switchyard {
namespace {

absl::Duration Now() { return RealClock::Get().Monotonic(); }

// Enough for a rank that is busy importing libraries; the config fits the socket's buffer anyway.
constexpr absl::Duration kSendTimeout = absl::Seconds(5);

std::string LogName(int rank) { return absl::StrCat("rank-", rank); }

}  // namespace

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
    pids_.clear();
  }
  FinishCommits();
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
    ++unanswered_commits_;
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

bool Attempt::EndedWell() const {
  return !failure_.has_value() && std::all_of(ranks_.begin(), ranks_.end(), [](const Rank& rank) {
    const ExitStatus& status = rank.process->exit_status();
    return rank.done.has_value() && !rank.done->stopped && status.signal == 0 &&
           status.code == kExitDone;
  });
}

void Attempt::FinishCommits() {
  for (Rank& rank : ranks_) rank.link_open = false;  // all that they sent has been read
  const bool wanted = EndedWell();
  {
    absl::MutexLock lock(&mu_);
    commits_closed_ = true;
    if (!wanted) commits_.clear();
  }
  if (!wanted) committer_.RequestStop();
  while (true) {
    {
      absl::MutexLock lock(&mu_);
      if (commits_done_) break;
      if (stop_.has_value()) {
        commits_.clear();
        committer_.RequestStop();
      }
    }
    WaitForNews({}, absl::InfiniteDuration());
  }
  committer_.StopAndJoin();  // before the link that it writes to goes
}

v1::Finished Attempt::Outcome() const {
  if (failure_.has_value()) return Failed(*failure_);
  bool published;
  {
    absl::MutexLock lock(&mu_);
    published = unanswered_commits_ == 0;
  }
  // Even when a stop came at the last moment; but not when it cut off the last checkpoint.
  if (EndedWell() && published) {
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
      if (commits_.empty()) {
        commits_done_ = true;
        ::eventfd_write(wake_.get(), 1);
        return;
      }
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
    {
      absl::MutexLock lock(&mu_);
      if (committed.ok() || !stop.StopRequested()) --unanswered_commits_;
      if (commits_closed_) continue;  // nobody is there to hear of it
    }
    for (const Rank& rank : ranks_) {
      if (rank.rank != 0) continue;
      const absl::Status sent = rank.link->Send(ToJson(AgentFrame(result)), kSendTimeout);
      if (!sent.ok()) SY_LOG(WARNING) << "send a checkpoint result to rank 0: " << sent;
    }
  }
}

}  // namespace switchyard
