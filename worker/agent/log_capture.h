// Reads one output pipe of a process into a file and notes the bytes in the report spool.
#ifndef SWITCHYARD_WORKER_AGENT_LOG_CAPTURE_H_
#define SWITCHYARD_WORKER_AGENT_LOG_CAPTURE_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/fd.h"
#include "worker/agent/report_spool.h"

namespace switchyard {

// The last `max_lines` lines of `text`, each at most 1000 bytes, as valid UTF-8.
std::vector<std::string> LastLines(absl::string_view text, int max_lines);

// Not thread-safe. No byte is lost: when the file cannot be written (a full disk), the bytes go
// into the spool's memory instead.
class LogCapture {
 public:
  // Creates the source's file, or goes on behind what an earlier process left in it. `*noted`:
  // bytes before this are in the spool; moved on; outlives this. `pipe` is non-blocking. Errors:
  // those of creating the file.
  static absl::StatusOr<std::unique_ptr<LogCapture>> Open(UniqueFd pipe, LogSource source,
                                                          ReportSpool& spool,
                                                          std::atomic<int64_t>* noted);

  // Takes what is in the pipe, at most about `max_bytes`.
  void Drain(int64_t max_bytes);
  // Gives up on what is still to come, when a process that outlived its group holds the pipe.
  void Close() { pipe_.Reset(); }
  // -1 at the end of the stream.
  int fd() const { return pipe_.get(); }
  bool at_end() const { return !pipe_.valid(); }
  // The newest bytes, at most 64 KiB.
  const std::string& tail() const { return tail_; }
  // All that came by this pipe, out of the file. Errors: those of reading.
  absl::StatusOr<std::string> ReadAll() const;

 private:
  LogCapture(UniqueFd pipe, UniqueFd file, LogSource source, ReportSpool& spool, int64_t begin,
             std::atomic<int64_t>* noted)
      : pipe_(std::move(pipe)),
        file_(std::move(file)),
        source_(std::make_shared<const LogSource>(std::move(source))),
        spool_(spool),
        begin_(begin),
        noted_(noted),
        offset_(begin) {}
  void Keep(absl::string_view data);

  UniqueFd pipe_;
  UniqueFd file_;  // invalid after a failed write
  const std::shared_ptr<const LogSource> source_;
  ReportSpool& spool_;
  const int64_t begin_;  // of what this pipe brings
  std::atomic<int64_t>* const noted_;
  int64_t offset_;  // bytes of the stream so far
  std::string tail_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_AGENT_LOG_CAPTURE_H_
