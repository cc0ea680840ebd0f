// logs: bytes of each process, as whole lines with their origin in front.
#include <map>
#include <tuple>

#include "absl/random/random.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/backoff.h"
#include "client/commands.h"
#include "client/follow.h"

namespace switchyard {
namespace {

constexpr absl::Duration kSilence = absl::Minutes(10);
constexpr absl::Duration kPatience = absl::Minutes(10);

std::string RankName(int rank) { return rank < 0 ? "prep" : absl::StrCat("rank ", rank); }

// Joins chunks into lines per process and stream, and remembers where to go on.
class LinePrinter {
 public:
  LinePrinter(Terminal& terminal, bool prefixed) : terminal_(terminal), prefixed_(prefixed) {}

  // Remembers that these bytes were seen.
  void Pass(const v1::LogPosition& position, size_t size) {
    streams_[{position.attempt(), position.rank(), position.stream()}].next =
        position.offset() + static_cast<int64_t>(size);
  }

  void Add(const v1::LogPosition& position, const std::string& data) {
    Stream& stream = streams_[{position.attempt(), position.rank(), position.stream()}];
    stream.partial += data;
    size_t begin = 0;
    for (size_t end = stream.partial.find('\n'); end != std::string::npos;
         end = stream.partial.find('\n', begin)) {
      Line(position, stream.partial.substr(begin, end - begin));
      begin = end + 1;
    }
    stream.partial.erase(0, begin);
    terminal_.out.flush();
  }

  // Text without a newline at its end.
  void Finish() {
    for (auto& [key, stream] : streams_) {
      if (stream.partial.empty()) continue;
      v1::LogPosition position;
      position.set_rank(std::get<1>(key));
      Line(position, stream.partial);
      stream.partial.clear();
    }
    terminal_.out.flush();
  }

  void SetPositions(v1::ReadLogsRequest& request) const {
    request.clear_positions();
    for (const auto& [key, stream] : streams_) {
      v1::LogPosition& position = *request.add_positions();
      position.set_attempt(std::get<0>(key));
      position.set_rank(std::get<1>(key));
      position.set_stream(std::get<2>(key));
      position.set_offset(stream.next);
    }
  }

 private:
  struct Stream {
    int64_t next = 0;  // offset of the first byte not seen
    std::string partial;
  };

  void Line(const v1::LogPosition& position, absl::string_view line) {
    if (prefixed_) terminal_.out << RankName(position.rank()) << " | ";
    terminal_.out << line << "\n";
  }

  Terminal& terminal_;
  const bool prefixed_;
  std::map<std::tuple<int, int, std::string>, Stream> streams_;
};

}  // namespace

int RunLogs(CommandContext& context) {
  Terminal& terminal = context.terminal;
  v1::ReadLogsRequest request;
  request.set_name(context.JobName());
  request.set_follow(context.parsed.Has("follow"));
  for (const std::string& word : context.parsed.All("rank")) {
    int rank = -1;
    if (word != "prep" && (!absl::SimpleAtoi(word, &rank) || rank < 0)) {
      return context.FailUsage(absl::StrCat("--rank ", word, ": expected a number or prep"));
    }
    request.add_ranks(rank);
  }
  int32_t number = 0;
  for (const char* flag : {"tail", "attempt"}) {
    if (!context.parsed.Has(flag)) continue;
    const std::string text = context.parsed.Get(flag);
    if (!absl::SimpleAtoi(text, &number) || number < 1) {
      return context.FailUsage(absl::StrCat("--", flag, " ", text, ": expected a number from 1"));
    }
    if (absl::string_view(flag) == "tail") {
      request.set_tail_lines(number);
    } else {
      request.set_attempt(number);
    }
  }

  LinePrinter printer(terminal, request.ranks_size() != 1);
  const std::string doing = absl::StrCat("read the logs of ", request.name());
  absl::BitGen random;
  absl::Time lost = absl::InfinitePast();
  for (int tries = 0;; ++tries) {
    grpc::ClientContext call;
    absl::Status status;
    {
      StreamGuard guard(call, terminal.interrupt, kSilence);
      const auto stream = context.connection.stub().ReadLogs(&call, request);
      v1::ReadLogsResponse response;
      while (stream->Read(&response)) {
        guard.Touch();
        tries = 0;
        lost = absl::InfinitePast();
        printer.Pass(response.position(), response.data().size());
        printer.SetPositions(request);
        if (context.format == Format::kTable) {
          printer.Add(response.position(), response.data());
        } else {
          Json json = MessageToJson(response);
          json["data"] = response.data();  // text, not base64
          terminal.out << DumpJson(json) << "\n" << std::flush;
        }
      }
      status = FromGrpc(stream->Finish());
      if (guard.fell_silent() && status.code() == absl::StatusCode::kCancelled) {
        status = absl::UnavailableError("nothing was heard for too long");
      }
    }
    if (terminal.interrupt.triggered()) {
      printer.Finish();
      return request.follow() ? kExitDetached : context.Fail(status, doing);
    }
    if (status.ok()) {
      if (!request.follow()) break;
      // The end of a stream is not the end of the job.
      v1::GetJobRequest get;
      get.set_name(request.name());
      absl::StatusOr<v1::GetJobResponse> job =
          context.connection.Call(&v1::JobService::Stub::GetJob, get);
      if (!job.ok()) return context.Fail(job.status(), doing);
      if (IsFinal(job->job().state())) break;
    } else if (status.code() != absl::StatusCode::kUnavailable || !request.follow()) {
      if (status.code() != absl::StatusCode::kUnavailable || tries >= 3) {
        printer.Finish();
        return context.Fail(status, doing);
      }
    }
    if (lost == absl::InfinitePast()) lost = terminal.now();
    if (terminal.now() - lost > kPatience) return context.Fail(status, doing);
    const absl::Duration delay = BackoffDelay({absl::Milliseconds(200), absl::Seconds(5), 2.0},
                                              tries, absl::Uniform(random, 0.0, 1.0));
    if (terminal.interrupt.WaitFor(delay)) return kExitDetached;
  }
  printer.Finish();
  return 0;
}

}  // namespace switchyard
