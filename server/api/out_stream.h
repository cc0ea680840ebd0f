// A server stream that is stepped by a StreamPump: one message at a time, the next when the one
// before is sent.
#ifndef SWITCHYARD_SERVER_API_OUT_STREAM_H_
#define SWITCHYARD_SERVER_API_OUT_STREAM_H_

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <atomic>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/api/context.h"
#include "server/api/status.h"
#include "server/api/stream_pump.h"

namespace switchyard {

// A reader that takes nothing for this long is cut off; it resumes where it was.
inline constexpr absl::Duration kStallLimit = absl::Seconds(60);

// One outgoing stream. Derived classes say what the next message is. Deletes itself when it is
// done.
template <typename Response>
class OutStream : public grpc::ServerWriteReactor<Response>, public PumpedStream {
 public:
  // Stepped by `pump`.
  OutStream(const ServiceContext& context, StreamPump& pump, grpc::CallbackServerContext* call,
            const char* method)
      : context_(context), pump_(pump), call_(call), method_(method), id_(pump.NewId()) {}

  // Ends at once with an error of `request`. Commits about `topic` wake the stream.
  void Start(const absl::Status& request, const std::string& topic) {
    absl::Status status = request.ok() ? context_.CheckReady() : request;
    if (status.ok()) {
      last_write_ = context_.clock.Monotonic();
      if (pump_.Add(id_, StreamKind::kWatch, this, topic)) return;
      status = context_.CheckReady();
      if (status.ok()) status = absl::UnavailableError("the coordinator is stopping");
    }
    End(status);
  }

  absl::optional<absl::Duration> Step(const Wakeup& wakeup) final {
    const absl::Duration now = context_.clock.Monotonic();
    if (writing_) {
      if (wakeup.stopping || now - last_write_ > kStallLimit) call_->TryCancel();
      return std::max(last_write_ + kStallLimit, now) + absl::Seconds(1);
    }
    if (broken_) {
      End(absl::CancelledError("the caller has gone"));
      return absl::nullopt;
    }
    if (wakeup.stopping) {
      End(MakeError(absl::StatusCode::kUnavailable, "NOT_SERVING",
                    "the coordinator is stopping; resume from the last position"));
      return absl::nullopt;
    }
    response_.Clear();
    absl::StatusOr<Next> next = Fill(now);
    if (!next.ok() || *next == Next::kEnd) {
      End(next.status());
      return absl::nullopt;
    }
    if (*next == Next::kWait) return last_write_ + context_.config.watch_heartbeat;
    writing_ = true;
    last_write_ = now;
    this->StartWrite(&response_);
    return now + kStallLimit + absl::Seconds(1);
  }

  void OnWriteDone(bool ok) final {
    if (!ok) broken_ = true;
    writing_ = false;
    pump_.Wake(id_);
  }
  void OnCancel() final {
    broken_ = true;
    pump_.Wake(id_);
  }
  void OnDone() final { delete this; }

 protected:
  enum class Next { kMessage, kWait, kEnd };
  // Fills response_ with the next message, or says that there is none yet, or none any more.
  virtual absl::StatusOr<Next> Fill(absl::Duration now) = 0;

  const ServiceContext& context_;
  Response response_;
  absl::Duration last_write_;

 private:
  void End(const absl::Status& status) {
    context_.metrics.RpcDone(method_, absl::StatusCodeToString(status.code()), -1);
    this->Finish(ToGrpcStatus(status));  // last: OnDone may delete this at once
  }

  StreamPump& pump_;
  grpc::CallbackServerContext* const call_;
  const char* const method_;
  const uint64_t id_;
  std::atomic<bool> writing_{false};
  std::atomic<bool> broken_{false};
};

}  // namespace switchyard

#endif  // SWITCHYARD_SERVER_API_OUT_STREAM_H_
