#include "server/api/job_streams.h"

#include <algorithm>
#include <deque>
#include <iterator>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "server/api/convert.h"
#include "server/api/out_stream.h"
#include "server/api/resume_token.h"

namespace switchyard {
namespace {

constexpr int kBatch = 32;              // rows read at a time
constexpr size_t kLogChunk = 64 << 10;  // bytes of one ReadLogs message

class Watch final : public OutStream<v1::WatchJobResponse> {
 public:
  Watch(const ServiceContext& context, grpc::CallbackServerContext* call,
        const v1::WatchJobRequest& request)
      : OutStream(context, context.pump, call, "WatchJob"),
        job_(request.name()),
        with_steps_(request.include_metrics()),
        token_(request.resume_token()) {
    position_.event = request.after_sequence();
    position_.replay_after_step = request.after_step();
  }

 private:
  absl::StatusOr<Next> Fill(absl::Duration now) override {
    // The job first: if it is final now, what is read below is all there will ever be.
    ASSIGN_OR_RETURN(const JobRecord job, context_.store.GetJob(job_));
    if (!started_) {
      if (token_.empty()) {
        ASSIGN_OR_RETURN(const StepRecord newest, context_.store.LatestStep(job_));
        position_.replay_until_id = newest.id;
        if (position_.event == 0) position_.event = job.first_event - 1;
      } else {
        ASSIGN_OR_RETURN(position_,
                         ParseResumeToken(token_, context_.store.database_uuid(), job.uid));
      }
      started_ = true;
    }
    // Also in the middle: a reader may be slower than what the history is kept for.
    if (position_.event + 1 < job.first_event) return HistoryPruned(job.first_event);
    // A batch is read when the one before is sent whole. To merge, both must be at hand, and as of
    // one moment; a step that arrives while events are still buffered comes after them.
    const int max_events = events_.empty() ? kBatch : 0;
    const int max_steps = with_steps_ && steps_.empty() ? kBatch : 0;
    if (max_events + max_steps > 0) {
      ASSIGN_OR_RETURN(History history,
                       context_.store.ReadHistory(job_, position_, max_events, max_steps));
      std::move(history.events.begin(), history.events.end(), std::back_inserter(events_));
      std::move(history.steps.begin(), history.steps.end(), std::back_inserter(steps_));
    }
    if (!steps_.empty() && (events_.empty() || steps_.front().after_event < events_.front().seq)) {
      ASSIGN_OR_RETURN(*response_.mutable_metrics(), StepMetricsOf(steps_.front()));
      position_.step_id = steps_.front().id;
      steps_.pop_front();
      return Send(job);
    }
    if (!events_.empty()) {
      *response_.mutable_event() = ToProto(events_.front());
      ASSIGN_OR_RETURN(*response_.mutable_job(), ShowJob(context_.store, job));
      position_.event = events_.front().job_seq;
      events_.pop_front();
      return Send(job);
    }
    if (IsFinal(job.state)) return Next::kEnd;
    if (now - last_write_ < context_.config.watch_heartbeat) return Next::kWait;
    *response_.mutable_heartbeat() = ToProto(context_.clock.Now());
    return Send(job);
  }

  // With a token for what comes after this message.
  Next Send(const JobRecord& job) {
    response_.set_resume_token(MakeResumeToken(context_.store.database_uuid(), job.uid, position_));
    return Next::kMessage;
  }

  const JobId job_;
  const bool with_steps_;
  const std::string token_;
  bool started_ = false;
  HistoryPosition position_;        // of what was sent last
  std::deque<EventRecord> events_;  // at most kBatch
  std::deque<StepRecord> steps_;    // at most kBatch
};

class LogRead final : public OutStream<v1::ReadLogsResponse> {
 public:
  LogRead(const ServiceContext& context, grpc::CallbackServerContext* call,
          const v1::ReadLogsRequest& request)
      : OutStream(context, context.pump, call, "ReadLogs"),
        job_(request.name()),
        request_(request),
        attempt_(request.attempt()) {
    for (const v1::LogPosition& p : request.positions()) {
      offsets_[{p.attempt(), p.rank(), p.stream()}] = p.offset();
      if (attempt_ == 0 || p.attempt() < attempt_) attempt_ = p.attempt();
    }
  }

 private:
  using File = std::tuple<int32_t, int32_t, std::string>;  // attempt, rank, stream

  absl::StatusOr<Next> Fill(absl::Duration now) override {
    // First: once the job is final, or a later attempt has begun, this one's files are whole.
    ASSIGN_OR_RETURN(const JobRecord job, context_.store.GetJob(job_));
    if (request_.attempt() > job.current_attempt || request_.attempt() < 0) {
      return MakeError(
          absl::StatusCode::kNotFound, "ATTEMPT_NOT_FOUND",
          absl::StrCat("read logs of job ", job_.value(), ": attempt ", request_.attempt(),
                       " does not exist, the newest is ", job.current_attempt),
          {{"attempt", absl::StrCat(request_.attempt())}});
    }
    // A follower that came while the job was queued begins with the first attempt, even when it is
    // over by the time that it is looked for.
    if (attempt_ == 0) attempt_ = std::max(1, job.current_attempt);
    while (true) {
      ASSIGN_OR_RETURN(const bool more, FillFrom(attempt_));
      if (more) return Next::kMessage;
      started_ = true;
      if (request_.attempt() != 0 || attempt_ >= job.current_attempt) break;
      ++attempt_;
    }
    if (!request_.follow() || IsFinal(job.state)) return Next::kEnd;
    // The named attempt has ended although the job goes on with another.
    if (request_.attempt() != 0 && request_.attempt() < job.current_attempt) return Next::kEnd;
    last_write_ = now;  // logs have no heartbeats; commits wake us
    return Next::kWait;
  }

  bool Wanted(int32_t rank) const {
    return request_.ranks().empty() || std::find(request_.ranks().begin(), request_.ranks().end(),
                                                 rank) != request_.ranks().end();
  }

  absl::StatusOr<bool> FillFrom(int32_t attempt) {
    for (LogPlace place : context_.logs.List(job_, attempt)) {
      if (!Wanted(place.rank)) continue;
      const auto [it, is_new] = offsets_.try_emplace({attempt, place.rank, place.stream}, 0);
      // Files that appear later are read from their start.
      if (is_new && !started_ && request_.tail_lines() > 0) {
        ASSIGN_OR_RETURN(it->second, context_.logs.TailOffset(job_, place, request_.tail_lines()));
      }
      place.offset = it->second;
      ASSIGN_OR_RETURN(std::string data, context_.logs.Read(job_, place, kLogChunk));
      if (data.empty()) continue;
      v1::LogPosition* position = response_.mutable_position();
      position->set_attempt(attempt);
      position->set_rank(place.rank);
      position->set_stream(place.stream);
      position->set_offset(place.offset);
      it->second += static_cast<int64_t>(data.size());
      response_.set_data(std::move(data));
      return true;
    }
    return false;
  }

  const JobId job_;
  const v1::ReadLogsRequest request_;
  int32_t attempt_;  // being read; 0: not known yet
  bool started_ = false;
  std::map<File, int64_t> offsets_;
};

}  // namespace

absl::StatusOr<v1::Job> ShowJob(Store& store, const JobRecord& job) {
  ASSIGN_OR_RETURN(const StepRecord step, store.LatestStep(job.id));
  ASSIGN_OR_RETURN(const auto newest, store.ListCheckpoints(job.id, 0, 1));
  ASSIGN_OR_RETURN(const auto conditions, store.ListConditions(job.id));
  return ToProto(job, step, newest.empty() ? 0 : newest[0].step, conditions);
}

grpc::ServerWriteReactor<v1::WatchJobResponse>* StartWatch(const ServiceContext& context,
                                                           grpc::CallbackServerContext* call,
                                                           const v1::WatchJobRequest& request) {
  auto* watch = new Watch(context, call, request);  // deletes itself in OnDone
  watch->Start(ParseJobName(request.name()).status(), TopicOf(JobId(request.name())));
  return watch;
}

grpc::ServerWriteReactor<v1::ReadLogsResponse>* StartReadLogs(const ServiceContext& context,
                                                              grpc::CallbackServerContext* call,
                                                              const v1::ReadLogsRequest& request) {
  auto* read = new LogRead(context, call, request);  // deletes itself in OnDone
  read->Start(ParseJobName(request.name()).status(), TopicOf(JobId(request.name())));
  return read;
}

}  // namespace switchyard
