#include "worker/agent/record_file.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include <utility>

#include "base/crc32c.h"
#include "base/failpoint.h"
#include "base/log.h"
#include "base/status_macros.h"

namespace switchyard {
namespace {

Failpoint before_sync("agent.record.before_sync", FailpointKind::kFallible);

constexpr size_t kHeaderBytes = 8;

void PutU32(uint32_t value, std::string& out) {
  for (int i = 0; i < 4; ++i) out.push_back(static_cast<char>(value >> (8 * i) & 0xff));
}

uint32_t GetU32(absl::string_view data, size_t at) {
  uint32_t value = 0;
  for (size_t i = 0; i < 4; ++i) {
    value |= static_cast<uint32_t>(static_cast<unsigned char>(data[at + i])) << (8 * i);
  }
  return value;
}

}  // namespace

std::string EncodeRecord(absl::string_view payload) {
  std::string record;
  record.reserve(kHeaderBytes + payload.size());
  PutU32(static_cast<uint32_t>(payload.size()), record);
  PutU32(Crc32c(payload), record);
  record.append(payload.data(), payload.size());
  return record;
}

absl::StatusOr<std::unique_ptr<RecordFile>> RecordFile::Open(const std::string& path,
                                                             std::vector<std::string>* records,
                                                             int64_t reserve_bytes) {
  UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
  if (!fd.valid()) return ErrnoStatus("open", path, errno);
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  size_t good = 0;
  while (text.size() - good >= kHeaderBytes) {
    const size_t length = GetU32(text, good);
    if (text.size() - good - kHeaderBytes < length) break;
    const absl::string_view payload = absl::string_view(text).substr(good + kHeaderBytes, length);
    if (Crc32c(payload) != GetU32(text, good + 4)) break;
    records->emplace_back(payload);
    good += kHeaderBytes + length;
  }
  if (good < text.size()) {
    SY_LOG(WARNING) << "cutting off a torn record of " << path << " bytes=" << text.size() - good;
    if (::ftruncate(fd.get(), static_cast<off_t>(good)) != 0) {
      return ErrnoStatus("truncate", path, errno);
    }
  }
  return std::unique_ptr<RecordFile>(
      new RecordFile(path, std::move(fd), static_cast<int64_t>(good), reserve_bytes));
}

void RecordFile::Reserve() {
  if (reserve_bytes_ == 0) return;
  // Not all file systems can; then there is no reserve.
  [[maybe_unused]] const int unused =
      ::fallocate(fd_.get(), FALLOC_FL_KEEP_SIZE, 0, reserve_bytes_);
}

absl::Status RecordFile::Cut() {
  has_rest_ = ::ftruncate(fd_.get(), static_cast<off_t>(size_)) != 0;
  if (has_rest_) return ErrnoStatus("truncate", path_, errno);
  Reserve();  // the truncation gave it back
  return absl::OkStatus();
}

absl::Status RecordFile::Append(absl::string_view payload) {
  if (has_rest_) RETURN_IF_ERROR(Cut());
  const std::string record = EncodeRecord(payload);
  size_t done = 0;
  while (done < record.size()) {
    const ssize_t n = ::pwrite(fd_.get(), record.data() + done, record.size() - done,
                               static_cast<off_t>(size_) + static_cast<off_t>(done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      const int error = errno;
      Cut().IgnoreError();  // tried again before the next; a rest left over is cut off as torn
      return ErrnoStatus("write", path_, error);
    }
    done += static_cast<size_t>(n);
  }
  size_ += static_cast<int64_t>(record.size());
  return absl::OkStatus();
}

absl::Status RecordFile::AppendSynced(absl::string_view payload) {
  const int64_t before = size_;
  RETURN_IF_ERROR(Append(payload));
  absl::Status synced = before_sync.Check();
  if (synced.ok() && ::fdatasync(fd_.get()) != 0) synced = ErrnoStatus("fdatasync", path_, errno);
  if (synced.ok()) return synced;
  size_ = before;
  const absl::Status cut = Cut();
  if (!cut.ok()) SY_LOG(ERROR) << "a record that was refused is still there: " << cut;
  return synced;
}

}  // namespace switchyard
