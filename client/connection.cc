#include "client/connection.h"

#include "absl/random/random.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "base/backoff.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace switchyard {
namespace {

constexpr char kDetails[] = "switchyard/google.rpc.Status";

// The detail of type T, if the server sent one.
template <typename T>
bool FindDetail(const absl::Status& status, T* detail) {
  const absl::optional<absl::Cord> payload = status.GetPayload(kDetails);
  google::rpc::Status details;
  if (!payload.has_value() || !details.ParseFromString(std::string(*payload))) return false;
  for (const auto& any : details.details()) {
    if (any.Is<T>()) return any.UnpackTo(detail);
  }
  return false;
}

std::string WhatToDo(const absl::Status& status, const std::string& reason) {
  if (reason == "IDEMPOTENCY_KEY_REUSED") {
    return "this --request-id was used for another job; leave the flag out to get a new one";
  }
  if (reason == "CHECKPOINT_NOT_FOUND") return "`switchyard checkpoints list JOB` shows them";
  if (reason == "CHECKPOINT_NAME_INVALID") return "name a checkpoint as JOB@STEP";
  if (reason == "CHECKPOINT_PINNED") return "`switchyard checkpoints unpin JOB@STEP` lets it go";
  if (reason == "CHECKPOINT_FINAL") return "--final deletes the job's result too";
  if (reason == "CHECKPOINT_IN_USE") return "try again when that is over";
  if (reason == "CHECKPOINT_CHANGED") return "begin the download again";
  if (reason == "REQUEST_ID_INVALID") return "give a UUID of version 4, or leave the flag out";
  switch (status.code()) {
    case absl::StatusCode::kUnavailable:
      return "is switchyardd running? Give its address with --server or SWITCHYARD_SERVER";
    case absl::StatusCode::kDeadlineExceeded:
      return "try again; if it stays so, see the coordinator's log";
    case absl::StatusCode::kNotFound:
      return "`switchyard list` shows the jobs; --project chooses another project";
    case absl::StatusCode::kAlreadyExists:
      return "choose another --name, or leave it out";
    case absl::StatusCode::kInvalidArgument:
      return "`switchyard validate RECIPE` shows what the recipe says";
    case absl::StatusCode::kFailedPrecondition:
      return "`switchyard get JOB` shows the job's state, `switchyard plan RECIPE` what would fit";
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kUnauthenticated:
      return "ask the service's operator for access to this project";
    case absl::StatusCode::kUnimplemented:
      return "the coordinator is older than this client, or --server is no switchyardd";
    case absl::StatusCode::kDataLoss:
      return "`switchyard checkpoints verify JOB` names all that is wrong; an older one may be "
             "whole";
    case absl::StatusCode::kInternal:
      return "see the coordinator's log; this is a bug";
    default:
      return "";
  }
}

std::string CodeWords(absl::StatusCode code) {
  return absl::AsciiStrToLower(absl::StrReplaceAll(absl::StatusCodeToString(code), {{"_", " "}}));
}

}  // namespace

absl::Status FromGrpc(const grpc::Status& status) {
  absl::Status out(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
  if (!status.error_details().empty() && !out.ok()) {
    out.SetPayload(kDetails, absl::Cord(status.error_details()));
  }
  return out;
}

std::string DescribeError(const absl::Status& status, absl::string_view doing,
                          absl::string_view server) {
  std::string out = absl::StrCat("switchyard: ", doing, ": ", CodeWords(status.code()), ": ",
                                 absl::string_view(status.message()));
  google::rpc::ErrorInfo info;
  FindDetail(status, &info);
  if (!info.reason().empty()) absl::StrAppend(&out, "\n  reason: ", info.reason());
  google::rpc::BadRequest bad;
  if (FindDetail(status, &bad)) {
    for (const auto& violation : bad.field_violations()) {
      absl::StrAppend(&out, "\n  ", violation.field(), ": ", violation.description());
    }
  }
  if (status.code() == absl::StatusCode::kUnavailable ||
      status.code() == absl::StatusCode::kDeadlineExceeded ||
      status.code() == absl::StatusCode::kUnimplemented) {
    absl::StrAppend(&out, "\n  coordinator: ", server);
  }
  const std::string advice = WhatToDo(status, info.reason());
  if (!advice.empty()) absl::StrAppend(&out, "\n  what to do: ", advice);
  return out;
}

int ExitCode(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return 0;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
      return 2;
    case absl::StatusCode::kNotFound:
      return 3;
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kUnauthenticated:
      return 4;
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kAlreadyExists:
    case absl::StatusCode::kAborted:
    case absl::StatusCode::kResourceExhausted:
      return 5;
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kDeadlineExceeded:
      return 6;
    case absl::StatusCode::kDataLoss:
      return 7;
    case absl::StatusCode::kCancelled:
      return 130;
    default:
      return 1;
  }
}

bool FromServer(const absl::Status& status) { return status.GetPayload(kDetails).has_value(); }

bool OutcomeUnknown(const absl::Status& status) {
  return status.code() == absl::StatusCode::kUnavailable ||
         status.code() == absl::StatusCode::kDeadlineExceeded ||
         status.code() == absl::StatusCode::kCancelled ||
         status.code() == absl::StatusCode::kInternal ||
         status.code() == absl::StatusCode::kUnknown;
}

Connection::Connection(const std::string& server, const Terminal& terminal)
    : server_(server), terminal_(terminal) {
  grpc::ChannelArguments arguments;
  // A coordinator that restarts is back within a second; gRPC's own pauses grow to two minutes.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  // gRPC also takes this as the time one attempt to connect may need: seconds, or a busy machine
  // and a far network never connect.
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 10000);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  const std::shared_ptr<grpc::Channel> channel =
      grpc::CreateCustomChannel(server, grpc::InsecureChannelCredentials(), arguments);
  stub_ = v1::JobService::NewStub(channel);
  admin_ = v1::AdminService::NewStub(channel);
  checkpoints_ = v1::CheckpointService::NewStub(channel);
}

absl::Status Connection::Retry(const CallPolicy& policy,
                               const std::function<grpc::Status(grpc::ClientContext*)>& call) {
  absl::BitGen random;
  absl::Status status;
  for (int attempt = 0; attempt < policy.tries; ++attempt) {
    if (attempt > 0) {
      const absl::Duration delay = BackoffDelay({policy.backoff, policy.max_backoff, 2.0},
                                                attempt - 1, absl::Uniform(random, 0.0, 1.0));
      if (terminal_.interrupt.WaitFor(delay)) return absl::CancelledError("interrupted");
    }
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() +
                         absl::ToChronoMicroseconds(policy.deadline));
    terminal_.interrupt.SetHandler([&context] { context.TryCancel(); });
    const grpc::Status ended = call(&context);
    terminal_.interrupt.SetHandler(nullptr);
    status = FromGrpc(ended);
    if (status.ok() || status.code() != absl::StatusCode::kUnavailable) return status;
  }
  return status;
}

StreamGuard::StreamGuard(grpc::ClientContext& context, Interrupt& interrupt, absl::Duration silence)
    : interrupt_(interrupt),
      watchdog_("stream-guard", [this, &context, silence](const StopToken& stop) {
        int64_t seen = -1;
        for (int64_t now = messages_; now != seen; now = messages_) {
          seen = now;
          if (stop.WaitForStop(silence)) return;
        }
        silent_ = true;
        context.TryCancel();
      }) {
  interrupt_.SetHandler([&context] { context.TryCancel(); });
}

StreamGuard::~StreamGuard() {
  interrupt_.SetHandler(nullptr);
  watchdog_.StopAndJoin();
}

}  // namespace switchyard
