// The tokenizer and chat templates of one model, as prep uses them.
#ifndef SWITCHYARD_WORKER_PREP_TEXT_MODEL_H_
#define SWITCHYARD_WORKER_PREP_TEXT_MODEL_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "worker/text/text_cc.h"

namespace switchyard {

struct TextModel {
  Tokenizer tokenizer;
  std::optional<ChatTemplate> chat;  // none: the model has no chat template
  std::optional<ChatTemplate>
      tool_use;             // used instead for rows with tools, where the model has one
  std::string chat_source;  // of `chat`; empty: none
  std::string tool_use_source;
  std::optional<uint32_t> eos_id;
  std::string eos_token;
};

// Reads `folder`. `chat_template` overrides the model's templates: a file (Jinja, or JSON with a
// chat_template key) or inline Jinja; empty: no override.
// Errors: InvalidArgument, NotFound.
absl::StatusOr<TextModel> LoadTextModel(const std::string& folder,
                                        const std::string& chat_template);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_PREP_TEXT_MODEL_H_
