#include "client/follow.h"

#include "absl/random/random.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/backoff.h"
#include "client/progress.h"

namespace switchyard {
namespace {

// The server's word that this stream is over, though the job may not be.
bool ComesBack(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kDeadlineExceeded:
    case absl::StatusCode::kResourceExhausted:  // we read too slowly; it gave us up
    case absl::StatusCode::kCancelled:          // the server stops, or nothing was heard
    case absl::StatusCode::kUnknown:
    case absl::StatusCode::kInternal:  // a broken connection in the middle of a frame
      return true;
    default:
      return false;
  }
}

class Follower {
 public:
  Follower(Connection& connection, Terminal& terminal, const std::string& name,
           const FollowOptions& options)
      : connection_(connection), terminal_(terminal), options_(options), live_(terminal) {
    request_.set_name(name);
    request_.set_include_metrics(true);
  }

  int Run() {
    absl::Status status = FetchJob(CallPolicy());
    if (!status.ok()) return Fail(status);
    if (!options_.from_start) request_.set_after_step(job_.progress().step());
    if (options_.format == Format::kTable) {
      live_.Print(
          absl::StrCat("watching ", job_.name(), " (", v1::Job::State_Name(job_.state()),
                       IsFinal(job_.state()) ? ")" : "); Ctrl-C detaches, the job goes on"));
    }
    absl::BitGen random;
    absl::Time lost = absl::InfinitePast();  // since when there is no connection
    int tries = 0;
    while (true) {
      bool heard = false;
      status = ReadStream(heard);
      if (terminal_.interrupt.triggered()) return Detach();
      if (heard) {
        lost = absl::InfinitePast();
        tries = 0;
      }
      // Events are durable and replayed in order, so after a final one nothing is missing.
      if (saw_final_) return Finish();
      if (absl::IsOutOfRange(status) && !request_.resume_token().empty()) {
        // Restored from a backup, or pruned. Numbers of before may mean other events now.
        Say(absl::StrCat(absl::string_view(status.message()),
                         "; showing all events that are kept"));
        request_.clear_resume_token();
        request_.clear_after_sequence();
        continue;
      }
      if (!ComesBack(status)) return Fail(status);
      if (status.ok() && heard) continue;
      if (status.ok()) {
        // A stream that ended at once: of a final job whose last event we have, or of a bad server.
        const absl::Status fetched = FetchJob(CallPolicy());
        if (fetched.ok() && IsFinal(job_.state())) return Finish();
      }
      const absl::Time now = terminal_.now();
      if (lost == absl::InfinitePast()) {
        lost = now;
        if (!status.ok()) {
          Say(absl::StrCat("lost the coordinator at ", connection_.server(), " (",
                           absl::string_view(status.message()), "); trying again"));
        }
      }
      if (now - lost > options_.patience) return Fail(status);
      const absl::Duration delay = BackoffDelay({options_.backoff, options_.max_backoff, 2.0},
                                                tries++, absl::Uniform(random, 0.0, 1.0));
      if (terminal_.interrupt.WaitFor(delay)) return Detach();
    }
  }

 private:
  absl::Status FetchJob(const CallPolicy& policy) {
    v1::GetJobRequest request;
    request.set_name(request_.name());
    absl::StatusOr<v1::GetJobResponse> response =
        connection_.Call(&v1::JobService::Stub::GetJob, request, policy);
    if (response.ok()) job_ = response->job();
    return response.status();
  }

  // One stream from where the last one ended. `heard`: at least one message came.
  absl::Status ReadStream(bool& heard) {
    grpc::ClientContext context;
    // No deadline of its own: a watch lasts as long as the job; the guard notices a dead peer.
    StreamGuard guard(context, terminal_.interrupt, options_.silence);
    const auto stream = connection_.stub().WatchJob(&context, request_);
    v1::WatchJobResponse response;
    while (stream->Read(&response)) {
      guard.Touch();
      heard = true;
      // Opaque, and exact: numbers alone would miss steps that a later attempt repeats.
      if (!response.resume_token().empty()) request_.set_resume_token(response.resume_token());
      if (response.has_job()) job_ = response.job();
      if (response.has_event()) Show(response.event());
      if (response.has_metrics()) Show(response.metrics());
      if (options_.format != Format::kTable && !response.has_heartbeat()) {
        terminal_.out << DumpJson(MessageToJson(response)) << "\n" << std::flush;
      }
    }
    return FromGrpc(stream->Finish());
  }

  void Show(const v1::Event& event) {
    request_.set_after_sequence(event.sequence());
    if (IsFinal(event.state())) {
      saw_final_ = true;
      final_state_ = event.state();
    }
    if (options_.format != Format::kTable) return;
    if (event.kind() == "STATE") {
      const std::string state = v1::Job::State_Name(event.state());
      live_.Print(event.message().empty() ? state : absl::StrCat(state, ": ", event.message()));
    } else {
      live_.Print(absl::StrCat(event.kind(), ": ", event.message()));
    }
  }

  void Show(const v1::StepMetrics& step) {
    request_.set_after_step(step.step());
    const absl::Duration left = time_left_.After(step);
    if (options_.format != Format::kTable) return;
    if (terminal_.redraws) {
      live_.Update(BarProgress(step, left, terminal_.width()));
    } else {
      live_.Print(PlainProgress(step, left));
    }
    if (step.has_validation_loss()) {
      live_.Print(
          absl::StrCat(step.validation_name().empty() ? "validation" : step.validation_name(),
                       " at step ", step.step(), ": loss ", HumanLoss(step.validation_loss())));
    }
  }

  void Say(absl::string_view text) {
    live_.Close();
    terminal_.err << "switchyard: " << text << std::endl;
  }

  int Fail(const absl::Status& status) {
    live_.Close();
    if (terminal_.interrupt.triggered()) return Detach();
    terminal_.err << DescribeError(status, absl::StrCat("watch ", request_.name()),
                                   connection_.server())
                  << std::endl;
    return ExitCode(status);
  }

  int Detach() {
    Say(absl::StrCat("detached; the job goes on.\n  follow it again: switchyard watch ",
                     ShortName(request_.name()), "\n  stop it:         switchyard cancel ",
                     ShortName(request_.name())));
    return kExitDetached;
  }

  int Finish() {
    live_.Close();
    // The job that came with the last event may lack what was reported after it. What the stream
    // said is durable, so without an answer it is only details that are missing.
    FetchJob(CallPolicy()).IgnoreError();
    if (saw_final_) job_.set_state(final_state_);
    const std::string id = ShortName(job_.name());
    switch (job_.state()) {
      case v1::Job::SUCCEEDED:
        if (options_.format == Format::kTable) {
          const v1::Progress& progress = job_.progress();
          terminal_.out << id << " succeeded";
          if (progress.step() > 0) {
            terminal_.out << " after " << progress.step() << " steps, loss "
                          << HumanLoss(progress.loss());
          }
          terminal_.out << "\nits results: switchyard checkpoints " << id << std::endl;
        }
        return 0;
      case v1::Job::CANCELLED:
        terminal_.err << "switchyard: " << id << " was cancelled"
                      << (job_.state_message().empty() ? "" : ": ") << job_.state_message()
                      << std::endl;
        return kExitCancelled;
      default:
        terminal_.err << DescribeFailure(job_);
        return kExitFailed;
    }
  }

  Connection& connection_;
  Terminal& terminal_;
  const FollowOptions& options_;
  LiveLine live_;
  v1::WatchJobRequest request_;
  v1::Job job_;
  TimeLeft time_left_;
  bool saw_final_ = false;
  v1::Job::State final_state_ = v1::Job::STATE_UNSPECIFIED;
};

}  // namespace

bool IsFinal(v1::Job::State state) {
  return state == v1::Job::SUCCEEDED || state == v1::Job::FAILED || state == v1::Job::CANCELLED;
}

std::string DescribeFailure(const v1::Job& job) {
  const v1::Failure& failure = job.failure();
  std::string out =
      absl::StrCat("switchyard: ", ShortName(job.name()), " failed: ",
                   failure.reason() == v1::FAILURE_REASON_UNSPECIFIED
                       ? ""
                       : absl::StrCat(v1::FailureReason_Name(failure.reason()), ": "),
                   failure.message().empty() ? job.state_message() : failure.message(),
                   "\n  where: attempt ", job.current_attempt());
  const std::string rank = failure.rank() < 0 ? "no rank" : absl::StrCat("rank ", failure.rank());
  absl::StrAppend(&out, ", ", rank);
  if (!failure.node().empty()) absl::StrAppend(&out, " on ", failure.node());
  if (failure.step() > 0) absl::StrAppend(&out, ", step ", failure.step());
  if (failure.signal() != 0) {
    absl::StrAppend(&out, ", signal ", failure.signal());
  } else if (failure.exit_code() != 0) {
    absl::StrAppend(&out, ", exit code ", failure.exit_code());
  }
  if (failure.last_lines_size() > 0) {
    absl::StrAppend(&out, "\n  last lines:");
    for (const std::string& line : failure.last_lines()) absl::StrAppend(&out, "\n    ", line);
  }
  absl::StrAppend(&out, "\n  the whole log: switchyard logs ", ShortName(job.name()), "\n");
  return out;
}

int FollowJob(Connection& connection, Terminal& terminal, const std::string& name,
              const FollowOptions& options) {
  return Follower(connection, terminal, name, options).Run();
}

}  // namespace switchyard
