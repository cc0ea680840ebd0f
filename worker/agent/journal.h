// The agent's journal as a file: "<state-dir>/journal" (docs/contracts.md).
#ifndef SWITCHYARD_WORKER_AGENT_JOURNAL_H_
#define SWITCHYARD_WORKER_AGENT_JOURNAL_H_

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/agent/core.h"
#include "worker/agent/record_file.h"

namespace switchyard {

// u8 kind, i32 number, i64 nanoseconds, u32 length of the job's name, name, order; little-endian.
std::string EncodeJournalRecord(const JournalRecord& record);
// Errors: InvalidArgument.
absl::StatusOr<JournalRecord> DecodeJournalRecord(absl::string_view text);

// Not thread-safe.
class FileJournal final : public AgentJournal {
 public:
  // Reads the file, if there is one, into `*memory`, and writes it anew when much of it is
  // outdated. Errors: those of files; DataLoss: a record that is whole makes no sense.
  static absl::StatusOr<std::unique_ptr<FileJournal>> Open(const std::string& path,
                                                           AgentMemory* memory);
  absl::Status Append(const JournalRecord& record) override;

 private:
  explicit FileJournal(std::unique_ptr<RecordFile> file) : file_(std::move(file)) {}
  std::unique_ptr<RecordFile> file_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_AGENT_JOURNAL_H_
