// The report spool's records in segments: "<folder>/<sequence of its first record>.seg".
#ifndef SWITCHYARD_WORKER_AGENT_SPOOL_FILE_H_
#define SWITCHYARD_WORKER_AGENT_SPOOL_FILE_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/agent/record_file.h"
#include "worker/agent/report_spool.h"

namespace switchyard {

// Not thread-safe: the spool's lock guards it.
class FileSpoolStorage final : public SpoolStorage {
 public:
  static constexpr int64_t kSegmentBytes = 4 << 20;

  // `segment_bytes` is for tests. Errors: those of files.
  static absl::StatusOr<std::unique_ptr<FileSpoolStorage>> Open(
      const std::string& folder, int64_t segment_bytes = kSegmentBytes);

  std::vector<std::string> Load() override { return std::move(records_); }
  absl::Status Append(int64_t sequence, const std::string& record, bool sync) override;
  void Release(int64_t sequence) override;

 private:
  FileSpoolStorage(std::string folder, int64_t segment_bytes)
      : folder_(std::move(folder)), segment_bytes_(segment_bytes) {}
  std::string PathOf(int64_t sequence) const;

  const std::string folder_;
  const int64_t segment_bytes_;
  std::vector<std::string> records_;
  std::map<int64_t, std::string> segments_;  // first sequence to path; the last is `file_`
  std::unique_ptr<RecordFile> file_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_AGENT_SPOOL_FILE_H_
