#include "worker/prep/text_model.h"

#include <sys/stat.h>

#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/fd.h"
#include "base/json.h"
#include "base/status_macros.h"

namespace switchyard {
namespace {

absl::StatusOr<std::string> OverridingTemplate(const std::string& given) {
  struct stat info;
  const bool inline_text = absl::StrContains(given, '\n') || absl::StrContains(given, "{%") ||
                           absl::StrContains(given, "{{");
  if (inline_text) return given;
  if (stat(given.c_str(), &info) != 0) {
    return absl::NotFoundError(
        absl::StrCat("chat_template: '", given, "' is neither a file nor a Jinja template"));
  }
  ASSIGN_OR_RETURN(const std::string text, ReadFile(given));
  if (!absl::EndsWith(given, ".json")) return text;
  ASSIGN_OR_RETURN(const Json document, ParseJson(text, given));
  return JsonGet<std::string>(document, "chat_template");
}

}  // namespace

absl::StatusOr<TextModel> LoadTextModel(const std::string& folder,
                                        const std::string& chat_template) {
  struct stat info;
  if (stat(folder.c_str(), &info) != 0) return ErrnoStatus("open", folder, errno);
  ASSIGN_OR_RETURN(Tokenizer tokenizer, Tokenizer::Open(folder));
  TextModel model{std::move(tokenizer), std::nullopt, std::nullopt, "", "", std::nullopt, ""};
  if (chat_template.empty()) {
    model.chat_source = model.tokenizer.Template("default").value_or("");
    model.tool_use_source = model.tokenizer.Template("tool_use").value_or("");
  } else {
    ASSIGN_OR_RETURN(model.chat_source, OverridingTemplate(chat_template));
  }
  if (!model.chat_source.empty()) {
    ASSIGN_OR_RETURN(model.chat, ChatTemplate::Compile(model.chat_source, &model.tokenizer));
  }
  if (!model.tool_use_source.empty()) {
    ASSIGN_OR_RETURN(model.tool_use,
                     ChatTemplate::Compile(model.tool_use_source, &model.tokenizer));
  }
  if (const auto eos = model.tokenizer.Special("eos_token"); eos.has_value()) {
    model.eos_token = *eos;
    model.eos_id = model.tokenizer.TokenToId(*eos);
  }
  return model;
}

}  // namespace switchyard
