#include "client/remote_checkpoint.h"

#include <algorithm>
#include <memory>

#include "absl/random/random.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/backoff.h"
#include "base/crc32c.h"
#include "base/status_macros.h"

namespace switchyard {
namespace {

constexpr char kManifest[] = "switchyard/manifest.json";
constexpr absl::Duration kTick = absl::Milliseconds(100);

// Relative, and inside the folder: a server is not trusted to name places on this machine.
bool IsInnerPath(const std::string& name) {
  if (name.empty() || name.find('\0') != std::string::npos) return false;
  for (absl::string_view part : absl::StrSplit(name, '/')) {
    if (part.empty() || part == "." || part == "..") return false;
  }
  return true;
}

bool MayPass(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status) ||
         absl::IsCancelled(status) || absl::IsInternal(status) || absl::IsUnknown(status);
}

}  // namespace

RemoteCheckpoint::RemoteCheckpoint(Connection& connection, const Terminal& terminal,
                                   const std::string& name, const RemoteOptions& options)
    : connection_(connection),
      terminal_(terminal),
      name_(name),
      options_(options),
      watcher_("downloads", [this](const StopToken& stop) { Watch(stop); }) {}

absl::StatusOr<std::unique_ptr<RemoteCheckpoint>> RemoteCheckpoint::Open(
    Connection& connection, const Terminal& terminal, const std::string& name,
    const RemoteOptions& options) {
  v1::GetCheckpointRequest request;
  request.set_name(name);
  ASSIGN_OR_RETURN(
      const v1::GetCheckpointResponse response,
      connection.CallCheckpoints(&v1::CheckpointService::Stub::GetCheckpoint, request));
  std::unique_ptr<RemoteCheckpoint> remote(
      new RemoteCheckpoint(connection, terminal, name, options));
  for (const v1::CheckpointFile& file : response.files()) {
    if (!IsInnerPath(file.name()) || file.size_bytes() < 0) {
      return absl::DataLossError(absl::StrCat("the coordinator lists the file '", file.name(),
                                              "' of ", file.size_bytes(), " bytes"));
    }
    remote->files_.push_back({file.name(), file.size_bytes(), file.crc32c()});
    if (file.name() == kManifest) remote->manifest_crc32c_ = file.crc32c();
  }
  return remote;
}

void RemoteCheckpoint::Watch(const StopToken& stop) {
  while (!stop.WaitForStop(kTick)) {
    const absl::Time now = absl::Now();
    absl::MutexLock lock(&mu_);
    for (const auto& [context, stream] : streams_) {
      const int64_t messages = stream->messages;
      if (messages != stream->seen) {
        stream->seen = messages;
        stream->last_message = now;
      }
      const bool silent = now - stream->last_message > options_.silence;
      if (silent || terminal_.interrupt.triggered()) context->TryCancel();
    }
  }
}

absl::Status RemoteCheckpoint::ReadOnce(const RemoteFile& file, int64_t& offset,
                                        absl::FunctionRef<absl::Status(absl::string_view)> sink,
                                        absl::Status& sink_status) {
  v1::DownloadCheckpointRequest request;
  request.set_name(name_);
  request.set_file(file.name);
  request.set_offset(offset);
  request.set_chunk_bytes(options_.chunk_bytes);
  request.set_manifest_crc32c(manifest_crc32c_);
  grpc::ClientContext context;
  Stream stream;
  {
    absl::MutexLock lock(&mu_);
    streams_.emplace(&context, &stream);
  }
  const auto reader = connection_.checkpoints().DownloadCheckpoint(&context, request);
  v1::DownloadCheckpointResponse response;
  absl::Status broken;
  while (broken.ok() && reader->Read(&response)) {
    ++stream.messages;
    if (response.offset() != offset || response.crc32c() != Crc32c(response.data())) {
      broken = absl::UnavailableError(
          absl::StrCat(file.name, " at ", offset, ": a chunk arrived damaged"));
    } else if (offset + static_cast<int64_t>(response.data().size()) > file.size) {
      broken =
          absl::DataLossError(absl::StrCat(file.name, ": more than its ", file.size, " bytes"));
    } else if (sink_status = sink(response.data()); !sink_status.ok()) {
      broken = sink_status;
    } else {
      offset += static_cast<int64_t>(response.data().size());
    }
  }
  if (!broken.ok()) {
    context.TryCancel();
    while (reader->Read(&response)) {
    }
  }
  const grpc::Status ended = reader->Finish();
  {
    absl::MutexLock lock(&mu_);
    streams_.erase(&context);
  }
  if (!broken.ok()) return broken;
  RETURN_IF_ERROR(FromGrpc(ended));
  if (offset == file.size) return absl::OkStatus();
  return absl::UnavailableError(
      absl::StrCat(file.name, ": the stream ended at ", offset, " of ", file.size, " bytes"));
}

absl::Status RemoteCheckpoint::Read(const RemoteFile& file, int64_t offset,
                                    absl::FunctionRef<absl::Status(absl::string_view)> sink) {
  absl::BitGen random;
  absl::Time progress = absl::Now();
  int tries = 0;
  while (offset < file.size) {
    const int64_t before = offset;
    absl::Status sink_status;
    const absl::Status status = ReadOnce(file, offset, sink, sink_status);
    if (status.ok()) break;
    if (terminal_.interrupt.triggered()) return absl::CancelledError("interrupted");
    if (!sink_status.ok() || !MayPass(status)) return status;
    const absl::Time now = absl::Now();
    if (offset > before) {
      progress = now;
      tries = 0;
    }
    if (now - progress > options_.patience) {
      return absl::UnavailableError(absl::StrCat(
          "read ", file.name, " at ", offset, " of ", file.size, ": nothing came for ",
          absl::FormatDuration(options_.patience), ": ", absl::string_view(status.message())));
    }
    const absl::Duration pause =
        BackoffDelay({absl::Milliseconds(100), absl::Seconds(2), 2.0}, std::min(tries++, 10),
                     absl::Uniform(random, 0.0, 1.0));
    if (terminal_.interrupt.WaitFor(pause)) return absl::CancelledError("interrupted");
  }
  return absl::OkStatus();
}

}  // namespace switchyard
