// The logs of attempts: <root>/<project>/<job>/<attempt>/rank-<r>.<stream>, prep.<stream>. Files
// grow only, so (attempt, rank, stream, byte offset) names a place in them for ever.
#ifndef SWITCHYARD_SERVER_ARTIFACTS_LOG_FILES_H_
#define SWITCHYARD_SERVER_ARTIFACTS_LOG_FILES_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/ids.h"

namespace switchyard {

struct LogPlace {
  int32_t attempt = 0;
  int32_t rank = -1;  // -1: prep
  std::string stream;
  int64_t offset = 0;
};

// Thread-safe: holds nothing but the path.
class LogFiles {
 public:
  explicit LogFiles(std::string root) : root_(std::move(root)) {}

  // Writes at the offset and syncs; the same bytes again change nothing.
  // Errors: InvalidArgument for a bad stream, rank or offset; else as base/fd.h.
  absl::Status Write(const JobId& job, const LogPlace& place, absl::string_view data);

  // The files of an attempt, sorted by rank and stream, at offset 0.
  std::vector<LogPlace> List(const JobId& job, int32_t attempt) const;

  // Up to `limit` bytes from the offset; empty at the end or without a file.
  absl::StatusOr<std::string> Read(const JobId& job, const LogPlace& place, size_t limit) const;

  // The offset at which the last `lines` lines start.
  absl::StatusOr<int64_t> TailOffset(const JobId& job, const LogPlace& place, int32_t lines) const;

 private:
  std::string Folder(const JobId& job, int32_t attempt) const;
  std::string Path(const JobId& job, const LogPlace& place) const;

  const std::string root_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_SERVER_ARTIFACTS_LOG_FILES_H_
