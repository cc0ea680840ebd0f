// One row of a data set, whatever its shape, as something that can be tokenized.
#ifndef SWITCHYARD_WORKER_PREP_RECORDS_H_
#define SWITCHYARD_WORKER_PREP_RECORDS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/json.h"
#include "worker/prep/config.h"

namespace switchyard {

struct Record {
  enum class Kind {
    kChat,    // messages, through the chat template
    kPlain,   // one text, whose first `prompt_bytes` bytes are the prompt
    kPieces,  // prompt and completion tokenized apart (HellaSwag, as AutoModel does)
  };
  Kind kind = Kind::kPlain;

  // kChat.
  Json messages;  // normalised: role, content (a string), tool_calls with arguments as objects, ...
  Json tools;     // array or null
  Json variables;  // further template variables of this row (chat_template_kwargs), or null
  // Per assistant message, in order: false when it must not be learnt (weight 0, or part of the
  // prompt of a conversational prompt/completion row).
  std::vector<bool> learn;

  // kPlain: prompt followed by completion. kPieces: the prompt.
  std::string text;
  uint64_t prompt_bytes = 0;
  std::string completion;  // kPieces only
};

// The columns say what a row is. Errors: InvalidArgument: none of the known shapes, with the
// columns found; preference and pre-tokenized data, by name.
absl::StatusOr<DatasetFormat> DetectFormat(const Json& row);

struct RecordOptions {
  DatasetFormat format = DatasetFormat::kChat;  // not kDetect
  // column_mapped, squad, prompt/completion: as a conversation instead of plain concatenation.
  // alpaca: false gives the frame of Stanford's Alpaca.
  bool use_chat_template = false;
  std::map<std::string, std::string> column_mapping;
};

// Errors: InvalidArgument: what is missing or wrong, and where ("messages[2]: unknown role 'bot'").
absl::StatusOr<Record> MakeRecord(const Json& row, const RecordOptions& options);

// A line of a .txt file.
Record MakeTextRecord(absl::string_view line);

// Turns every tool call's arguments from an object into a JSON string, for templates that expect
// one. True when there was any.
bool ArgumentsToStrings(Json* messages);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_PREP_RECORDS_H_
