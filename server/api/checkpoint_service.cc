// CheckpointService: decode, call, encode. Downloads are streams of a pump of their own.
#include <errno.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/crc32c.h"
#include "base/failpoint.h"
#include "base/status_macros.h"
#include "server/api/context.h"
#include "server/api/convert.h"
#include "server/api/out_stream.h"
#include "server/api/page.h"
#include "server/artifacts/checkpoint_reader.h"
#include "switchyard/v1/checkpoint_service.grpc.pb.h"

namespace switchyard {
namespace {

Failpoint before_chunk("download.before_chunk", FailpointKind::kFallible);

constexpr int kDefaultChunkBytes = 256 << 10;
constexpr int kMaxChunkBytes = 1 << 20;

class Download final : public OutStream<v1::DownloadCheckpointResponse> {
 public:
  Download(const ServiceContext& context, const CheckpointReader& reader,
           grpc::CallbackServerContext* call, const v1::DownloadCheckpointRequest& request,
           const CheckpointName& name)
      : OutStream(context, context.download_pump, call, "DownloadCheckpoint"),
        reader_(reader),
        request_(request),
        name_(name),
        chunk_bytes_(request.chunk_bytes() == 0 ? kDefaultChunkBytes : request.chunk_bytes()),
        offset_(request.offset()) {}

 private:
  absl::StatusOr<Next> Fill(absl::Duration) override {
    if (!fd_.valid()) RETURN_IF_ERROR(Open());
    if (offset_ == file_.size) return Next::kEnd;
    RETURN_IF_ERROR(before_chunk.Check());
    const size_t wanted =
        static_cast<size_t>(std::min<int64_t>(chunk_bytes_, file_.size - offset_));
    std::string& data = *response_.mutable_data();
    data.resize(wanted);
    ssize_t got = -1;
    do {
      got = ::pread(fd_.get(), data.data(), wanted, offset_);
    } while (got < 0 && errno == EINTR);
    if (got <= 0) {
      return MakeError(absl::StatusCode::kUnavailable, "ARTIFACTS_UNAVAILABLE",
                       absl::StrCat("read ", file_.name, " at ", offset_, ": ",
                                    got < 0 ? ErrnoStatus("read", file_.name, errno).message()
                                            : "the file ends there"));
    }
    data.resize(static_cast<size_t>(got));
    response_.set_offset(offset_);
    response_.set_crc32c(Crc32c(data));
    offset_ += got;
    context_.metrics.CheckpointDownloaded(static_cast<double>(got));
    return Next::kMessage;
  }

  absl::Status Open() {
    // First of all: from here on nobody removes the files, unless the row says so already.
    hold_ = CheckpointHolds::Hold(context_.holds, name_.job,
                                  absl::StrCat(JobFolder(context_.config.artifact_root, name_.job),
                                               "/checkpoints/step-", name_.step));
    ASSIGN_OR_RETURN(const CheckpointRecord checkpoint,
                     context_.store.GetCheckpoint(name_.job, name_.step));
    if (request_.manifest_crc32c() != 0 &&
        request_.manifest_crc32c() != checkpoint.manifest_crc32c) {
      return MakeError(absl::StatusCode::kAborted, "CHECKPOINT_CHANGED",
                       absl::StrCat("step ", name_.step, " of job ", name_.job.value(),
                                    " was committed anew since this download began"),
                       {{"step", absl::StrCat(name_.step)}});
    }
    ASSIGN_OR_RETURN(const std::vector<CheckpointFileEntry> files, reader_.ListFiles(checkpoint));
    const auto file = std::find_if(files.begin(), files.end(), [&](const CheckpointFileEntry& f) {
      return f.name == request_.file();
    });
    if (file == files.end()) {
      return MakeError(absl::StatusCode::kNotFound, "FILE_NOT_FOUND",
                       absl::StrCat("the checkpoint of step ", name_.step, " of job ",
                                    name_.job.value(), " has no file '", request_.file(), "'"),
                       {{"file", request_.file()}});
    }
    file_ = *file;
    if (offset_ < 0 || offset_ > file_.size) {
      return MakeError(
          absl::StatusCode::kOutOfRange, "OFFSET_INVALID",
          absl::StrCat("offset is ", offset_, ", ", file_.name, " has ", file_.size, " bytes"),
          {{"offset", absl::StrCat(offset_)}, {"size", absl::StrCat(file_.size)}});
    }
    ASSIGN_OR_RETURN(fd_, reader_.Open(checkpoint, file_));
    return absl::OkStatus();
  }

  const CheckpointReader& reader_;
  const v1::DownloadCheckpointRequest request_;
  const CheckpointName name_;
  const int chunk_bytes_;
  int64_t offset_;
  CheckpointHolds::Hold hold_;
  CheckpointFileEntry file_;
  UniqueFd fd_;
};

using StreamingBase =
    v1::CheckpointService::WithCallbackMethod_DownloadCheckpoint<v1::CheckpointService::Service>;

class CheckpointServiceImpl final : public StreamingBase {
 public:
  explicit CheckpointServiceImpl(const ServiceContext& context)
      : context_(context), reader_(context.config.artifact_root) {}

  grpc::Status ListCheckpoints(grpc::ServerContext*, const v1::ListCheckpointsRequest* request,
                               v1::ListCheckpointsResponse* response) override {
    return context_.Unary("ListCheckpoints", [&]() -> absl::Status {
      ASSIGN_OR_RETURN(const JobId id, ParseJobName(request->parent()));
      ASSIGN_OR_RETURN(const int page_size, PageSize(request->page_size()));
      ASSIGN_OR_RETURN(const int64_t before, ParsePageToken(request->page_token(), id.value()));
      RETURN_IF_ERROR(context_.store.GetJob(id).status());
      ASSIGN_OR_RETURN(std::vector<CheckpointRecord> checkpoints,
                       context_.store.ListCheckpoints(id, before, page_size + 1));
      if (checkpoints.size() > static_cast<size_t>(page_size)) {
        checkpoints.pop_back();
        response->set_next_page_token(MakePageToken(id.value(), checkpoints.back().step));
      }
      for (const CheckpointRecord& c : checkpoints) *response->add_checkpoints() = ToProto(c);
      return absl::OkStatus();
    });
  }
  grpc::Status GetCheckpoint(grpc::ServerContext*, const v1::GetCheckpointRequest* request,
                             v1::GetCheckpointResponse* response) override {
    return context_.Unary("GetCheckpoint", [&]() -> absl::Status {
      ASSIGN_OR_RETURN(const CheckpointName name, ParseCheckpointName(request->name()));
      ASSIGN_OR_RETURN(const CheckpointRecord checkpoint,
                       context_.store.GetCheckpoint(name.job, name.step));
      *response->mutable_checkpoint() = ToProto(checkpoint);
      ASSIGN_OR_RETURN(const std::vector<CheckpointFileEntry> files, reader_.ListFiles(checkpoint));
      for (const CheckpointFileEntry& entry : files) {
        v1::CheckpointFile& file = *response->add_files();
        file.set_name(entry.name);
        file.set_size_bytes(entry.size);
        file.set_crc32c(entry.crc32c);
      }
      return absl::OkStatus();
    });
  }
  grpc::ServerWriteReactor<v1::DownloadCheckpointResponse>* DownloadCheckpoint(
      grpc::CallbackServerContext* call, const v1::DownloadCheckpointRequest* request) override {
    const absl::StatusOr<CheckpointName> name = ParseCheckpointName(request->name());
    absl::Status valid = name.status();
    if (valid.ok() && (request->chunk_bytes() < 0 || request->chunk_bytes() > kMaxChunkBytes)) {
      valid = MakeError(absl::StatusCode::kInvalidArgument, "CHUNK_BYTES_INVALID",
                        absl::StrCat("chunk_bytes is ", request->chunk_bytes(),
                                     ", must be between 0 and ", kMaxChunkBytes));
    }
    auto* download = new Download(context_, reader_, call, *request,  // deletes itself in OnDone
                                  name.ok() ? *name : CheckpointName());
    download->Start(valid, "");
    return download;
  }
  grpc::Status PinCheckpoint(grpc::ServerContext* call, const v1::PinCheckpointRequest* request,
                             v1::PinCheckpointResponse* response) override {
    return context_.Unary("PinCheckpoint", [&] {
      return Pin(request->name(), true, call->peer(), *response->mutable_checkpoint());
    });
  }
  grpc::Status UnpinCheckpoint(grpc::ServerContext* call, const v1::UnpinCheckpointRequest* request,
                               v1::UnpinCheckpointResponse* response) override {
    return context_.Unary("UnpinCheckpoint", [&]() -> absl::Status {
      RETURN_IF_ERROR(Pin(request->name(), false, call->peer(), *response->mutable_checkpoint()));
      ASSIGN_OR_RETURN(const CheckpointName name, ParseCheckpointName(request->name()));
      return context_.publisher.Retire(name.job);
    });
  }
  grpc::Status DeleteCheckpoint(grpc::ServerContext* call,
                                const v1::DeleteCheckpointRequest* request,
                                v1::DeleteCheckpointResponse*) override {
    return context_.Unary("DeleteCheckpoint", [&]() -> absl::Status {
      ASSIGN_OR_RETURN(const CheckpointName name, ParseCheckpointName(request->name()));
      return context_.publisher.Delete(name.job, name.step, {call->peer(), request->final()});
    });
  }

 private:
  absl::Status Pin(const std::string& name, bool pinned, const std::string& actor,
                   v1::Checkpoint& out) {
    ASSIGN_OR_RETURN(const CheckpointName parsed, ParseCheckpointName(name));
    ASSIGN_OR_RETURN(const CheckpointRecord checkpoint,
                     context_.store.SetPinned(parsed.job, parsed.step, pinned, actor));
    out = ToProto(checkpoint);
    return absl::OkStatus();
  }

  const ServiceContext context_;
  const CheckpointReader reader_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeCheckpointService(const ServiceContext& context) {
  return std::make_unique<CheckpointServiceImpl>(context);
}

}  // namespace switchyard
