// The running part of an attempt: its trainers, from their start, or their adoption, to the end of
// the last one.
#include <fcntl.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/clock.h"
#include "base/failpoint.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "worker/agent/attempt.h"
#include "worker/agent/host_stats.h"

namespace switchyard {
namespace {

Failpoint before_launch("agent.gang.before_launch", FailpointKind::kEvent);
Failpoint after_launch("agent.gang.after_launch", FailpointKind::kEvent);
Failpoint before_end("agent.gang.before_end", FailpointKind::kEvent);

absl::Duration Now() { return RealClock::Get().Monotonic(); }

// For what has no descriptor to wait for: processes being killed, a shim without a connection.
constexpr absl::Duration kPollInterval = absl::Milliseconds(50);
// How often, and how much at a time, log bytes are dropped while the disk is full.
constexpr absl::Duration kRoomInterval = absl::Milliseconds(200);
constexpr int64_t kRoomBytes = 4 << 20;
constexpr absl::Duration kDeviceInterval = absl::Milliseconds(200);
constexpr size_t kTailBytes = 32 << 10;
constexpr int kMaxCascade = 16;

}  // namespace

// ---- start ----

absl::StatusOr<LaunchPlan> Attempt::MakePlan() {
  Rendezvous rendezvous;
  {
    MonitorLock lock(&mu_);
    rendezvous = {start_->master_address(), start_->master_port()};
  }
  LaunchPlan plan;
  plan.scope = setup_.scope;
  plan.lease_path = LeasePath(config_.state_dir);
  std::string why;
  plan.cgroup = MakeCgroup(plan.scope, &why);
  if (plan.cgroup.empty()) {
    ReportEvent("WARNING", absl::StrCat("degraded containment on node ", config_.node, ": ", why,
                                        "; processes that hide from it may survive the attempt"));
  }
  const int num_cores = static_cast<int>(std::thread::hardware_concurrency());
  for (int i = 0; i < static_cast<int>(devices_.size()); ++i) {
    const ConfigFrame config = MakeConfigFrame(assign_, spec_, prep_, rendezvous, i,
                                               devices_[static_cast<size_t>(i)], num_cores);
    RankPlan& rank = plan.ranks.emplace_back();
    rank.rank = static_cast<int>(config.rank);
    rank.argv = {config_.bin_dir + "/switchyard-trainer", "--link-fd", absl::StrCat(kLinkFd)};
    rank.environment = MergedEnvironment({{"OMP_NUM_THREADS", absl::StrCat(config.threads)},
                                          {"CUDA_DEVICE_ORDER", "PCI_BUS_ID"},
                                          {"SWITCHYARD_JOB", assign_.job()},
                                          {"SWITCHYARD_ATTEMPT", absl::StrCat(assign_.attempt())},
                                          {kScopeVariable, plan.scope}});
    RETURN_IF_ERROR(ReplaceFile(RankFile(folder_, rank.rank, "config.json"),
                                DumpJson(ToJson(AgentFrame(config)), 1)));
  }
  return plan;
}

absl::Status Attempt::LaunchGang() {
  if (devices_.size() > ShimStatus::kMaxRanks) {
    return absl::InvalidArgumentError(absl::StrCat("a node can run ", ShimStatus::kMaxRanks,
                                                   " ranks of an attempt, not ", devices_.size()));
  }
  ASSIGN_OR_RETURN(const LaunchPlan plan, MakePlan());
  before_launch.Pass();
  absl::StatusOr<std::unique_ptr<ShimGang>> gang =
      ShimGang::Launch(config_.shim_program, folder_, plan);
  if (!gang.ok()) {
    RemoveCgroup(plan.cgroup);
    return gang.status();
  }
  gang_ = *std::move(gang);
  after_launch.Pass();
  for (size_t i = 0; i < gang_->num_ranks(); ++i) metrics_.TrainerStarted();
  return absl::OkStatus();
}

void Attempt::SetUpRanks() {
  for (size_t i = 0; i < gang_->num_ranks(); ++i) {
    Rank& rank = ranks_.emplace_back();
    rank.rank = assign_.first_rank() + static_cast<int>(i);
    rank.frames = std::make_unique<FrameFile>(RankFile(folder_, rank.rank, "frames"),
                                              PositionsOf(i).frames_folded.load());
    for (const char* stream : {"stdout", "stderr"}) {
      auto source = std::make_shared<const LogSource>(
          LogSource{id_, rank.rank, stream, RankFile(folder_, rank.rank, stream)});
      (stream == std::string("stdout") ? rank.out : rank.err) = std::move(source);
    }
    rank.out_noted = PositionsOf(i).out_noted.load();
    rank.err_noted = PositionsOf(i).err_noted.load();
  }
  if (assign_.first_rank() == 0) {
    progress_.emplace(ProgressLimits{config_.hang_floor, config_.phase_limit},
                      static_cast<ProgressPhase>(positions_->phase.load()), Now());
  }
}

v1::Finished Attempt::RunGang() {
  if (gang_ == nullptr) {
    metrics_.GangStarted(id_);
    if (const absl::Status started = LaunchGang(); !started.ok()) {
      return Failed(ServiceFailure(
          v1::INTERNAL,
          absl::StrCat("start the trainers on node ", config_.node, ": ", started.message()),
          config_.node));
    }
    SY_LOG(INFO) << "trainers started job=" << id_.job << " attempt=" << id_.number
                 << " ranks=" << gang_->num_ranks();
  }
  SetUpRanks();
  committer_ = Thread("commit", [this](const StopToken& stop) { CommitLoop(stop); });
  while (!gang_->Gone()) {
    absl::Duration deadline = NextTimer();
    if (gang_->fd() < 0 || kill_sent_) deadline = std::min(deadline, Now() + kPollInterval);
    WaitForNews(nullptr, deadline);
    WatchGang();
  }
  WatchGang();  // what came last
  if (gang_->shim_was_lost()) NoteLoss();
  {
    MonitorLock lock(&mu_);
    pids_.clear();
  }
  FinishCommits();
  AwaitFreeDevices();
  before_end.Pass();
  return Outcome();
}

void Attempt::WatchGang() {
  for (size_t i = 0; i < ranks_.size(); ++i) {
    ReadFrames(i);
    NoteLogs(i);
  }
  const absl::Duration now = Now();
  if (gang_->status().deadline_fired.load() != 0) {
    Stop(KillRequest(
        StopCause::kLease,
        absl::StrCat("lease ran out on node ", config_.node,
                     " while its agent did not move it on; the shim killed the ranks")));
  }
  std::deque<CheckpointResultFrame> results;
  {
    MonitorLock lock(&mu_);
    results.swap(commit_results_);
    pids_ = gang_->Pids();
  }
  for (const CheckpointResultFrame& result : results) {
    for (size_t i = 0; i < ranks_.size(); ++i) {
      if (ranks_[i].rank != 0) continue;
      // A rank that has ended needs no answer.
      const absl::Status sent = gang_->SendFrame(0, ToJson(AgentFrame(result)));
      if (!sent.ok() && !HasEnded(i)) SY_LOG(WARNING) << "checkpoint result: " << sent;
      if (!ranks_[i].held_frames.empty()) ranks_[i].held_frames.pop_front();
      MoveFolded(i);
    }
  }
  if (deadline_moved_back_.exchange(false) && !gang_->TellDeadline().ok() && gang_->fd() >= 0) {
    deadline_moved_back_ = true;  // its socket is full: with the next news
  }
  ApplyStop(now);
  NoteEnds(now);
  CheckProgress(now);
  RunTimers(now);
  MakeRoom(now);
}

// ---- what ranks say ----

void Attempt::ReadFrames(size_t index) {
  Rank& rank = ranks_[index];
  RankPositions& positions = PositionsOf(index);
  const int64_t limit = static_cast<int64_t>(gang_->rank(index).frames_size.load());
  while (!rank.frames_broken) {
    const int64_t begin = rank.frames->position();
    absl::StatusOr<Json> json = rank.frames->Next(limit);
    if (absl::IsDeadlineExceeded(json.status())) break;
    if (!json.ok()) {
      rank.frames_broken = true;
      SY_LOG(WARNING) << "link of rank " << rank.rank << ": " << json.status()
                      << " job=" << id_.job;
      break;
    }
    const FrameOrigin origin{rank.rank, rank.frames->position()};
    absl::StatusOr<RankFrame> frame = ParseRankFrame(*json);
    if (!frame.ok()) {
      SY_LOG(WARNING) << "frame of rank " << rank.rank << " is ignored: " << frame.status()
                      << " job=" << id_.job;
    } else {
      const bool is_final =
          std::holds_alternative<ErrorFrame>(*frame) || std::holds_alternative<DoneFrame>(*frame);
      const bool is_checkpoint = rank.rank == 0 && std::holds_alternative<CheckpointFrame>(*frame);
      if (is_final || is_checkpoint) rank.held_frames.push_back(begin);
      HandleFrame(index, *frame, origin, origin.position > positions.frames_reported.load());
    }
    NoteReported(index);
    MoveFolded(index);
  }
  NoteReported(index);  // what waited for space before
  MoveFolded(index);
}

void Attempt::NoteReported(size_t index) {
  if (!spool_.all_kept()) return;
  Raise(PositionsOf(index).frames_reported, ranks_[index].frames->position());
}

void Attempt::MoveFolded(size_t index) {
  Rank& rank = ranks_[index];
  int64_t folded = rank.held_frames.empty() ? rank.frames->position() : rank.held_frames.front();
  folded = std::min(folded, PositionsOf(index).frames_reported.load());
  PositionsOf(index).frames_folded.store(folded);
  rank.frames->Free(folded);
}

void Attempt::HandleFrame(size_t index, const RankFrame& frame, const FrameOrigin& origin,
                          bool is_new) {
  Rank& rank = ranks_[index];
  if (std::holds_alternative<HelloFrame>(frame)) {
    PositionsOf(index).said_hello.store(1);
    bool all = true;
    for (size_t i = 0; i < ranks_.size(); ++i) all &= PositionsOf(i).said_hello.load() != 0;
    if (!all || !is_new) return;
    v1::Report report;
    report.mutable_running();
    spool_.Add(id_, std::move(report), origin);
  } else if (const auto* error = std::get_if<ErrorFrame>(&frame)) {
    if (!rank.error.has_value()) rank.error_time = Now();
    rank.error = *error;
  } else if (const auto* done = std::get_if<DoneFrame>(&frame)) {
    rank.done = *done;
  } else if (const auto* warning = std::get_if<WarningFrame>(&frame)) {
    if (is_new) ReportEvent("WARNING", warning->message, origin);
  } else if (rank.rank != 0) {
    // Every rank passes through the same phases; one word of it is enough.
  } else if (const auto* phase = std::get_if<PhaseFrame>(&frame)) {
    const ProgressPhase parsed = ParsePhase(phase->name);
    positions_->phase.store(static_cast<uint32_t>(parsed));
    progress_->OnPhase(parsed, Now());
    if (!is_new) return;
    ReportEvent(
        "PHASE",
        phase->message.empty() ? phase->name : absl::StrCat(phase->name, ": ", phase->message),
        origin);
  } else if (const auto* plan = std::get_if<PlanFrame>(&frame)) {
    if (is_new) ReportEvent("PHASE", PlanMessage(*plan), origin);
  } else if (const auto* step = std::get_if<StepFrame>(&frame)) {
    positions_->last_step.store(step->step);
    metrics_.ObserveStep(id_, *step);
    progress_->OnStep(Now());
    positions_->phase.store(static_cast<uint32_t>(progress_->phase()));
    if (!is_new) return;
    v1::Report report;
    *report.mutable_step() = ToStepMetrics(*step);
    report.mutable_step()->set_attempt(id_.number);
    const int64_t nanoseconds = absl::ToUnixNanos(RealClock::Get().Now());
    report.mutable_step()->mutable_time()->set_seconds(nanoseconds / 1'000'000'000);
    report.mutable_step()->mutable_time()->set_nanos(
        static_cast<int32_t>(nanoseconds % 1'000'000'000));
    spool_.Add(id_, std::move(report), origin);
  } else if (const auto* validation = std::get_if<ValidationFrame>(&frame)) {
    if (!is_new) return;
    ReportEvent("VALIDATION",
                absl::StrFormat("step %d: loss %.6g on '%s' (%d tokens)", validation->step,
                                validation->loss, validation->name, validation->tokens),
                origin);
  } else if (const auto* checkpoint = std::get_if<CheckpointFrame>(&frame)) {
    MonitorLock lock(&mu_);
    commits_.push_back(*checkpoint);
    ++unanswered_commits_;
  }
}

void Attempt::NoteLogs(size_t index) {
  const RankStatus& status = gang_->rank(index);
  for (const bool is_out : {true, false}) {
    const StreamStatus& stream = is_out ? status.out : status.err;
    const std::shared_ptr<const LogSource>& source = is_out ? ranks_[index].out : ranks_[index].err;
    int64_t& noted = is_out ? ranks_[index].out_noted : ranks_[index].err_noted;
    const int64_t size = static_cast<int64_t>(stream.size.load());
    const int num_gaps = static_cast<int>(stream.num_gaps.load());
    while (noted < size) {
      const int64_t begin = noted;
      int64_t end = size;
      bool is_gap = false;
      for (int i = 0; i < num_gaps; ++i) {
        const int64_t gap_begin = static_cast<int64_t>(stream.gaps[i].begin.load());
        const int64_t gap_end = static_cast<int64_t>(stream.gaps[i].end.load());
        if (gap_begin <= begin && begin < gap_end) {
          is_gap = true;
          end = std::min(gap_end, size);
          break;
        }
        if (begin < gap_begin) end = std::min(end, gap_begin);
      }
      if (is_gap) {
        v1::Report report;
        report.mutable_log_gap()->set_rank(source->rank);
        report.mutable_log_gap()->set_stream(source->stream);
        report.mutable_log_gap()->set_offset(begin);
        report.mutable_log_gap()->set_bytes(end - begin);
        spool_.Add(id_, std::move(report));
      } else {
        spool_.AddLog(source, begin, end - begin);
      }
      noted = end;
    }
    if (spool_.all_kept()) {
      AttemptPositions::Noted(PositionsOf(index), source->stream).store(noted);
    }
  }
}

void Attempt::MakeRoom(absl::Duration now) {
  if (gang_->status().disk_full.load() == 0 || now < next_room_) return;
  next_room_ = now + kRoomInterval;
  for (const LogPiece& piece : spool_.DropOldestLogs(kRoomBytes)) FreePiece(piece);
}

std::vector<std::string> Attempt::LastErrorLines(size_t index) const {
  const int64_t size = static_cast<int64_t>(gang_->rank(index).err.size.load());
  const int64_t begin = std::max<int64_t>(0, size - static_cast<int64_t>(kTailBytes));
  const UniqueFd fd(::open(ranks_[index].err->path.c_str(), O_RDONLY | O_CLOEXEC));
  std::string tail(static_cast<size_t>(size - begin), '\0');
  const ssize_t n = fd.valid() ? ::pread(fd.get(), tail.data(), tail.size(), begin) : 0;
  tail.resize(static_cast<size_t>(std::max<ssize_t>(n, 0)));
  return LastLines(tail, 20);
}

// ---- how ranks end ----

ExitStatus Attempt::ExitOf(size_t index) const {
  ExitStatus status;
  status.code = gang_->rank(index).code.load();
  status.signal = gang_->rank(index).signal.load();
  return status;
}

RankEnd Attempt::DescribeEnd(size_t index) const {
  RankEnd end;
  end.rank = ranks_[index].rank;
  if (HasEnded(index)) end.status = ExitOf(index);
  end.error = ranks_[index].error;
  end.done = ranks_[index].done;
  end.oom_kill_seen = OomKillSeen();
  end.last_lines = LastErrorLines(index);
  end.step = positions_->last_step.load();
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
  for (size_t i = 0; i < ranks_.size(); ++i) {
    if (!HasEnded(i) || ranks_[i].end_seen) continue;
    ranks_[i].end_seen = true;
    ReadFrames(i);  // what it sent last may have come after the frames were read
    NoteLogs(i);
    const RankEnd end = DescribeEnd(i);
    if (IsFailure(end, stopping)) {
      failing.push_back(end);
    } else {
      done_deadline_ = std::min(done_deadline_, now + config_.done_grace);
    }
  }
  if (failing.empty()) return;
  if (stopping && !failure_.has_value()) {
    term_time_ = std::min(term_time_, now);  // the others cannot agree without it
    return;
  }
  if (!failure_.has_value()) {
    const size_t first = FirstFailure(failing);
    const RankEnd cause = failing[first];
    failing.erase(failing.begin() + static_cast<int64_t>(first));
    FailGang(cause);
  }
  for (const RankEnd& end : failing) {
    if (failure_->cascade_size() < kMaxCascade && !EndedByUs(end, term_sent_)) {
      AddCascade(DescribeRankFailure(end, config_.node), *failure_);
    }
  }
}

// Trainers are gone, and nobody saw how.
void Attempt::NoteLoss() {
  if (failure_.has_value() || pending_stop().has_value()) return;
  failure_ = setup_.rebooted
                 ? ServiceFailure(v1::NODE_REBOOT,
                                  absl::StrCat("node ", config_.node,
                                               " was started anew; the ranks it ran are gone"),
                                  config_.node)
                 : ServiceFailure(v1::EXIT_UNKNOWN,
                                  absl::StrCat("the shim of the attempt on node ", config_.node,
                                               " was killed, and its ranks with it"),
                                  config_.node);
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
  for (size_t i = 0; i < ranks_.size(); ++i) {
    if (HasEnded(i)) continue;
    const absl::Status sent = gang_->SendFrame(ranks_[i].rank, frame);
    if (!sent.ok()) SY_LOG(WARNING) << "send stop to rank " << ranks_[i].rank << ": " << sent;
  }
}

absl::Duration Attempt::NextTimer() const {
  absl::Duration next = std::min({term_time_, kill_time_, done_deadline_});
  if (gang_->status().disk_full.load() != 0) next = std::min(next, next_room_);
  if (failure_.has_value() || stop_sent_) return next;
  if (progress_.has_value()) next = std::min(next, progress_->Deadline());
  for (size_t i = 0; i < ranks_.size(); ++i) {
    if (ranks_[i].error.has_value() && !HasEnded(i)) {
      next = std::min(next, ranks_[i].error_time + config_.error_exit_grace);
    }
  }
  return next;
}

void Attempt::CheckProgress(absl::Duration now) {
  if (!progress_.has_value() || now < progress_->Deadline()) return;
  if (failure_.has_value() || pending_stop().has_value() || HasEnded(0) ||
      ranks_[0].done.has_value() || ranks_[0].error.has_value()) {
    progress_.reset();  // other timers watch over what is left
    return;
  }
  std::vector<std::string> states;
  for (size_t i = 0; i < ranks_.size(); ++i) {
    states.push_back(
        absl::StrCat("rank ", ranks_[i].rank, " ", DescribeProcess(gang_->rank(i).pid.load())));
  }
  RankEnd end = DescribeEnd(0);
  end.error = ErrorFrame{FailureReason::kHang,
                         absl::StrCat(progress_->Describe(now), "; ", absl::StrJoin(states, ", ")),
                         end.step};
  progress_.reset();
  FailGang(end);
}

void Attempt::RunTimers(absl::Duration now) {
  if (!failure_.has_value() && !pending_stop().has_value()) {
    for (size_t i = 0; i < ranks_.size(); ++i) {
      if (failure_.has_value() || HasEnded(i)) continue;
      RankEnd end = DescribeEnd(i);
      if (ranks_[i].error.has_value() && now >= ranks_[i].error_time + config_.error_exit_grace) {
        FailGang(end);
      } else if (now >= done_deadline_) {
        end.error = ErrorFrame{FailureReason::kHang,
                               absl::StrCat("still runs ", absl::FormatDuration(config_.done_grace),
                                            " after another rank was done"),
                               end.step};
        FailGang(end);
      }
    }
  }
  if (now >= done_deadline_) done_deadline_ = absl::InfiniteDuration();
  if (now >= term_time_) {
    term_time_ = absl::InfiniteDuration();
    if (!term_sent_) {
      term_sent_ = true;
      // A shim that does not take it cannot pass it on; killing needs no shim.
      const absl::Status sent = gang_->Signal(SIGTERM);
      if (!sent.ok() && !gang_->Pids().empty()) {
        SY_LOG(WARNING) << "send SIGTERM: " << sent << " job=" << id_.job;
      }
      kill_time_ = std::min(kill_time_,
                            now + (failure_.has_value() ? config_.gang_grace : config_.term_grace));
    }
  }
  if (now >= kill_time_) {
    kill_time_ = absl::InfiniteDuration();
    kill_sent_ = true;
  }
  if (kill_sent_) gang_->Kill();
}

// ---- the end ----

bool Attempt::EndedWell() const {
  if (failure_.has_value()) return false;
  for (size_t i = 0; i < ranks_.size(); ++i) {
    const ExitStatus status = ExitOf(i);
    if (!HasEnded(i) || !ranks_[i].done.has_value() || ranks_[i].done->stopped ||
        status.signal != 0 || status.code != kExitDone) {
      return false;
    }
  }
  return true;
}

void Attempt::FinishCommits() {
  const bool wanted = EndedWell();
  {
    MonitorLock lock(&mu_);
    commits_closed_ = true;
    if (!wanted) commits_.clear();
  }
  if (!wanted) committer_.RequestStop();
  while (true) {
    {
      MonitorLock lock(&mu_);
      if (commits_done_) break;
      if (stop_.has_value()) {
        commits_.clear();
        committer_.RequestStop();
      }
    }
    WaitForNews(nullptr, absl::InfiniteDuration());
  }
  committer_.StopAndJoin();
}

void Attempt::AwaitFreeDevices() {
  const absl::Duration deadline = Now() + config_.device_free_timeout;
  while (true) {
    const std::vector<int> busy = hooks_.busy_devices(devices_);
    if (busy.empty()) return;
    if (Now() >= deadline) {
      ReportEvent("WARNING",
                  absl::StrCat("on node ", config_.node, " devices ", absl::StrJoin(busy, ", "),
                               " are still in use though no process of the attempt is "
                               "left: they are not offered until they are free"));
      hooks_.withhold(busy);
      return;
    }
    WaitForNews(nullptr, Now() + kDeviceInterval);
  }
}

v1::Finished Attempt::Outcome() const {
  if (failure_.has_value()) return Failed(*failure_);
  bool published;
  {
    MonitorLock lock(&mu_);
    published = unanswered_commits_ == 0;
  }
  // Even when a stop came at the last moment; but not when it cut off the last checkpoint.
  if (EndedWell() && published) {
    v1::Finished finished;
    finished.set_succeeded(true);
    return finished;
  }
  const std::optional<PendingStop> stop = pending_stop();
  if (stop.has_value()) return FinishedByStop(stop->request, config_.node);
  return Failed(ServiceFailure(v1::INTERNAL, "bug: the gang ended without a failure or a stop",
                               config_.node));
}

void Attempt::CommitLoop(const StopToken& stop) {
  while (true) {
    CheckpointFrame frame;
    {
      MonitorLock lock(&mu_);
      mu_.Await([this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return CommitDueLocked(); });
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
    const absl::StatusOr<v1::Checkpoint> committed = hooks_.commit(request, stop);
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
    MonitorLock lock(&mu_);
    if (committed.ok() || !stop.StopRequested()) --unanswered_commits_;
    commit_results_.push_back(std::move(result));
    ::eventfd_write(wake_.get(), 1);
  }
}

}  // namespace switchyard
