#include "worker/agent/journal.h"

#include <vector>

#include "absl/strings/str_cat.h"
#include "base/failpoint.h"
#include "base/status_macros.h"

namespace switchyard {
namespace {

Failpoint before_append("agent.journal.before_append", FailpointKind::kFallible);
Failpoint after_append("agent.journal.after_append", FailpointKind::kEvent);

constexpr int64_t kCompactBytes = 4 << 20;
constexpr int64_t kReserveBytes = 1 << 20;

}  // namespace

std::string EncodeJournalRecord(const JournalRecord& record) {
  std::string text;
  const std::string& job = record.attempt.job.value();
  PutValue(static_cast<uint8_t>(record.kind), text);
  PutValue(record.attempt.number, text);
  PutValue(absl::ToInt64Nanoseconds(record.time), text);
  PutValue(static_cast<uint32_t>(job.size()), text);
  return text + job + record.order;
}

absl::StatusOr<JournalRecord> DecodeJournalRecord(absl::string_view text) {
  JournalRecord record;
  uint8_t kind = 0;
  int64_t nanoseconds = 0;
  uint32_t name_size = 0;
  if (!TakeValue(text, kind) || !TakeValue(text, record.attempt.number) ||
      !TakeValue(text, nanoseconds) || !TakeValue(text, name_size) || text.size() < name_size ||
      kind < 1 || kind > 5) {
    return absl::InvalidArgumentError(absl::StrCat("a journal record of kind ", int{kind}));
  }
  record.kind = static_cast<JournalRecord::Kind>(kind);
  record.time = absl::Nanoseconds(nanoseconds);
  record.attempt.job = JobId(std::string(text.substr(0, name_size)));
  record.order = std::string(text.substr(name_size));
  return record;
}

absl::StatusOr<std::unique_ptr<FileJournal>> FileJournal::Open(const std::string& path,
                                                               AgentMemory* memory) {
  std::vector<std::string> records;
  ASSIGN_OR_RETURN(std::unique_ptr<RecordFile> file,
                   RecordFile::Open(path, &records, kReserveBytes));
  for (const std::string& text : records) {
    const absl::StatusOr<JournalRecord> record = DecodeJournalRecord(text);
    if (!record.ok())
      return absl::DataLossError(absl::StrCat(path, ": ", record.status().message()));
    memory->Apply(*record);
  }
  if (file->size_bytes() > kCompactBytes) {
    std::string compact;
    for (const JournalRecord& record : memory->Records()) {
      compact += EncodeRecord(EncodeJournalRecord(record));
    }
    file.reset();
    RETURN_IF_ERROR(ReplaceFile(path, compact));
    records.clear();
    ASSIGN_OR_RETURN(file, RecordFile::Open(path, &records, kReserveBytes));
  }
  return std::unique_ptr<FileJournal>(new FileJournal(std::move(file)));
}

absl::Status FileJournal::Append(const JournalRecord& record) {
  RETURN_IF_ERROR(before_append.Check());
  RETURN_IF_ERROR(file_->AppendSynced(EncodeJournalRecord(record)));
  after_append.Pass();
  return absl::OkStatus();
}

}  // namespace switchyard
