// Shows worker/text to the Python tests: one JSON request per line on stdin, one JSON answer per
// line on stdout; {"error": "..."} where the library refuses.
//   {"op": "encode", "tokenizer": PATH, "texts": [...], "special": false, "offsets":
//   "bytes"|"chars"}
//     -> {"ids": [[...]], "offsets": [[[b, e], ...]]}
//   {"op": "decode", "tokenizer": PATH, "ids": [[...]], "skip_special": false} -> {"texts": [...]}
//   {"op": "render", "template": TEXT, "tokenizer": PATH or "", "contexts": [{...}]}
//     -> {"renders": [{"text": ..., "spans": [[b, e], ...]} or {"error": ...}], "generation": bool}
//   {"op": "special", "tokenizer": PATH} -> {"eos_token": ..., "template": ..., "vocab_size": n}
//   {"op": "read", "path": PATH} -> {"text": ..., "parquet": bool}
#include <iostream>
#include <map>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/status_macros.h"
#include "worker/text/text_cc.h"

namespace switchyard {
namespace {

absl::StatusOr<const Tokenizer*> Cached(const std::string& path) {
  static std::map<std::string, Tokenizer> tokenizers;
  auto it = tokenizers.find(path);
  if (it == tokenizers.end()) {
    ASSIGN_OR_RETURN(Tokenizer tokenizer, Tokenizer::Open(path));
    it = tokenizers.emplace(path, std::move(tokenizer)).first;
  }
  return &it->second;
}

absl::StatusOr<Json> Encode(const Json& request, const Tokenizer& tokenizer) {
  ASSIGN_OR_RETURN(const auto texts, JsonGet<std::vector<std::string>>(request, "texts"));
  ASSIGN_OR_RETURN(const bool special, JsonGetOr<bool>(request, "special", false));
  ASSIGN_OR_RETURN(const std::string mode, JsonGetOr<std::string>(request, "offsets", ""));
  const Offsets offsets = mode == "bytes"   ? Offsets::kBytes
                          : mode == "chars" ? Offsets::kCodePoints
                                            : Offsets::kNone;
  const std::vector<absl::string_view> views(texts.begin(), texts.end());
  ASSIGN_OR_RETURN(const Encodings encodings, tokenizer.Encode(views, special, offsets));
  Json answer = {{"ids", Json::array()}, {"offsets", Json::array()}};
  for (size_t i = 0; i < encodings.size(); ++i) {
    const auto ids = encodings.ids(i);
    answer["ids"].push_back(Json(std::vector<uint32_t>(ids.begin(), ids.end())));
    Json pairs = Json::array();
    const auto flat = encodings.offsets(i);
    for (size_t k = 0; k < flat.size(); k += 2) pairs.push_back({flat[k], flat[k + 1]});
    answer["offsets"].push_back(std::move(pairs));
  }
  return answer;
}

absl::StatusOr<Json> Decode(const Json& request, const Tokenizer& tokenizer) {
  ASSIGN_OR_RETURN(const bool skip_special, JsonGetOr<bool>(request, "skip_special", false));
  Json answer = {{"texts", Json::array()}};
  for (const Json& row : request["ids"]) {
    const auto ids = row.get<std::vector<uint32_t>>();
    ASSIGN_OR_RETURN(std::string text, tokenizer.Decode(ids, skip_special));
    answer["texts"].push_back(std::move(text));
  }
  return answer;
}

absl::StatusOr<Json> Render(const Json& request, const Tokenizer* tokenizer) {
  ASSIGN_OR_RETURN(const std::string source, JsonGet<std::string>(request, "template"));
  ASSIGN_OR_RETURN(const ChatTemplate chat_template, ChatTemplate::Compile(source, tokenizer));
  std::vector<std::string> contexts;
  for (const Json& context : request["contexts"]) contexts.push_back(DumpJson(context));
  ASSIGN_OR_RETURN(const Renders renders, chat_template.Render(contexts));
  Json answer = {{"renders", Json::array()}, {"generation", chat_template.has_generation()}};
  for (size_t i = 0; i < contexts.size(); ++i) {
    if (const absl::Status status = renders.status(i); !status.ok()) {
      answer["renders"].push_back({{"error", std::string(status.message())}});
      continue;
    }
    Json spans = Json::array();
    for (const ByteSpan& span : renders.spans(i)) spans.push_back({span.begin, span.end});
    answer["renders"].push_back({{"text", std::string(renders.text(i))}, {"spans", spans}});
  }
  return answer;
}

absl::StatusOr<Json> Special(const Tokenizer& tokenizer) {
  Json answer = {{"vocab_size", tokenizer.vocab_size()}};
  for (const char* name : {"bos_token", "eos_token", "pad_token", "unk_token"}) {
    const auto content = tokenizer.Special(name);
    answer[name] = content ? Json(*content) : Json(nullptr);
  }
  const auto source = tokenizer.Template("default");
  answer["template"] = source ? Json(*source) : Json(nullptr);
  return answer;
}

absl::StatusOr<Json> Read(const Json& request) {
  ASSIGN_OR_RETURN(const std::string path, JsonGet<std::string>(request, "path"));
  ASSIGN_OR_RETURN(ByteSource source, ByteSource::Open(path));
  std::string text;
  while (true) {
    ASSIGN_OR_RETURN(const size_t count, source.Read(1000, &text));
    if (count == 0) break;
  }
  return Json{{"text", text}, {"parquet", source.is_parquet()}};
}

absl::StatusOr<Json> Answer(const std::string& line) {
  ASSIGN_OR_RETURN(const Json request, ParseJson(line, "request"));
  ASSIGN_OR_RETURN(const std::string op, JsonGet<std::string>(request, "op"));
  if (op == "read") return Read(request);
  ASSIGN_OR_RETURN(const std::string path, JsonGetOr<std::string>(request, "tokenizer", ""));
  const Tokenizer* tokenizer = nullptr;
  if (!path.empty()) {
    ASSIGN_OR_RETURN(tokenizer, Cached(path));
  }
  if (op == "render") return Render(request, tokenizer);
  if (tokenizer == nullptr) return absl::InvalidArgumentError("request has no tokenizer");
  if (op == "encode") return Encode(request, *tokenizer);
  if (op == "decode") return Decode(request, *tokenizer);
  if (op == "special") return Special(*tokenizer);
  return absl::InvalidArgumentError("unknown op " + op);
}

}  // namespace
}  // namespace switchyard

int main() {
  std::string line;
  while (std::getline(std::cin, line)) {
    const absl::StatusOr<switchyard::Json> answer = switchyard::Answer(line);
    const switchyard::Json out =
        answer.ok() ? *answer : switchyard::Json{{"error", std::string(answer.status().message())}};
    std::cout << switchyard::DumpJson(out) << "\n" << std::flush;
  }
}
