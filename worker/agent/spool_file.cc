#include "worker/agent/spool_file.h"

#include <unistd.h>

#include <filesystem>
#include <system_error>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "base/failpoint.h"
#include "base/fd.h"
#include "base/status_macros.h"

namespace switchyard {
namespace {

Failpoint before_append("agent.spool.before_append", FailpointKind::kFallible);
Failpoint after_append("agent.spool.after_append", FailpointKind::kEvent);

}  // namespace

std::string FileSpoolStorage::PathOf(int64_t sequence) const {
  return absl::StrFormat("%s/%016d.seg", folder_, sequence);
}

absl::StatusOr<std::unique_ptr<FileSpoolStorage>> FileSpoolStorage::Open(const std::string& folder,
                                                                         int64_t segment_bytes) {
  RETURN_IF_ERROR(MakeFolders(folder));
  std::unique_ptr<FileSpoolStorage> storage(new FileSpoolStorage(folder, segment_bytes));
  std::error_code error;
  std::filesystem::directory_iterator it(folder, error);
  for (const std::filesystem::directory_iterator end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    absl::string_view stem = name;
    int64_t sequence = 0;
    if (absl::ConsumeSuffix(&stem, ".seg") && absl::SimpleAtoi(stem, &sequence)) {
      storage->segments_[sequence] = it->path().string();
    }
  }
  if (error) return ErrnoStatus("list", folder, error.value());
  for (const auto& [sequence, path] : storage->segments_) {
    ASSIGN_OR_RETURN(storage->file_, RecordFile::Open(path, &storage->records_));
  }
  return storage;
}

absl::Status FileSpoolStorage::Append(int64_t sequence, const std::string& record, bool sync) {
  if (file_ == nullptr || file_->size_bytes() >= segment_bytes_) {
    const std::string path = PathOf(sequence);
    if (file_ == nullptr || path != file_->path()) {
      std::vector<std::string> none;
      ASSIGN_OR_RETURN(file_, RecordFile::Open(path, &none, segment_bytes_));
      segments_[sequence] = path;
      RETURN_IF_ERROR(SyncFolder(folder_));
    }
  }
  RETURN_IF_ERROR(before_append.Check());
  RETURN_IF_ERROR(sync ? file_->AppendSynced(record) : file_->Append(record));
  after_append.Pass();
  return absl::OkStatus();
}

void FileSpoolStorage::Release(int64_t sequence) {
  // A segment is of no use once all reports before the first of the next one are acknowledged.
  while (segments_.size() > 1 && std::next(segments_.begin())->first <= sequence) {
    ::unlink(segments_.begin()->second.c_str());
    segments_.erase(segments_.begin());
  }
}

}  // namespace switchyard
