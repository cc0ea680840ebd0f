#include "worker/agent/record_file.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include <utility>

#include "base/crc32c.h"
#include "base/log.h"
#include "base/status_macros.h"

namespace switchyard {
namespace {

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
  if (reserve_bytes > 0) {
    // Not all file systems can; then there is no reserve.
    [[maybe_unused]] const int unused =
        ::fallocate(fd.get(), FALLOC_FL_KEEP_SIZE, 0, reserve_bytes);
  }
  return std::unique_ptr<RecordFile>(
      new RecordFile(path, std::move(fd), static_cast<int64_t>(good)));
}

absl::Status RecordFile::Append(absl::string_view payload) {
  const std::string record = EncodeRecord(payload);
  size_t done = 0;
  while (done < record.size()) {
    const ssize_t n = ::pwrite(fd_.get(), record.data() + done, record.size() - done,
                               static_cast<off_t>(size_) + static_cast<off_t>(done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      const int error = errno;
      // The next one begins at the same place; a rest left over would be cut off as torn.
      [[maybe_unused]] const int unused = ::ftruncate(fd_.get(), static_cast<off_t>(size_));
      return ErrnoStatus("write", path_, error);
    }
    done += static_cast<size_t>(n);
  }
  size_ += static_cast<int64_t>(record.size());
  return absl::OkStatus();
}

absl::Status RecordFile::Sync() {
  if (::fdatasync(fd_.get()) != 0) return ErrnoStatus("fdatasync", path_, errno);
  return absl::OkStatus();
}

}  // namespace switchyard
