#include "worker/prep/records.h"

#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/status_macros.h"
#include "worker/prep/row_json.h"

namespace switchyard {
namespace {

template <typename... T>
absl::Status Fault(const T&... parts) {
  return absl::InvalidArgumentError(absl::StrCat(parts...));
}

std::string ColumnsOf(const Json& row) {
  std::vector<std::string> names;
  for (const auto& [name, value] : row.items()) names.push_back(name);
  if (names.size() > 6) {
    names.resize(6);
    names.push_back("...");
  }
  return names.empty() ? "none" : absl::StrJoin(names, ", ");
}

absl::StatusOr<std::string> StringColumn(const Json& row, const std::string& name) {
  absl::StatusOr<std::string> value = JsonGet<std::string>(row, name);
  if (value.ok()) return value;
  if (absl::IsNotFound(value.status())) {
    return Fault("column '", name, "' is missing or null (columns: ", ColumnsOf(row), ")");
  }
  return value.status();
}

// The first of `names` that is there.
absl::StatusOr<std::string> FirstColumn(const Json& row, std::initializer_list<const char*> names) {
  for (const char* name : names) {
    if (JsonFind(row, name) != nullptr) return std::string(name);
  }
  return Fault("none of the columns ",
               absl::StrJoin(std::vector<std::string>(names.begin(), names.end()), ", "),
               " is there (columns: ", ColumnsOf(row), ")");
}

Json Message(const char* role, std::string content) {
  return Json{{"role", role}, {"content", std::move(content)}};
}

Record ChatRecord(Json messages) {
  Record record;
  record.kind = Record::Kind::kChat;
  record.messages = std::move(messages);
  for (const Json& message : record.messages) {
    if (message["role"] == "assistant") record.learn.push_back(true);
  }
  return record;
}

Record PlainRecord(std::string prompt, const std::string& completion) {
  Record record;
  record.prompt_bytes = prompt.size();
  record.text = std::move(prompt);
  record.text += completion;
  return record;
}

// Messages -----------------------------------------------------------------------------------

// A list of parts becomes its texts joined by single spaces, as AutoModel does.
absl::StatusOr<std::string> Content(const Json& message, const std::string& where) {
  const Json* content = JsonFind(message, "content");
  if (content == nullptr) {
    const bool stated = message.contains("content");
    const Json* calls = JsonFind(message, "tool_calls");
    if (stated || calls != nullptr) return std::string();
    return Fault(where, ": no content");
  }
  if (content->is_string()) return content->get<std::string>();
  if (!content->is_array())
    return Fault(where, ": content is neither a string nor a list of parts");
  std::vector<std::string> texts;
  for (const Json& part : *content) {
    if (part.is_string()) {
      texts.push_back(part.get<std::string>());
      continue;
    }
    ASSIGN_OR_RETURN(const std::string type, JsonGetOr<std::string>(part, "type", "text"));
    if (type != "text") {
      return Fault(where, ": a part of type '", type, "'; only text can be trained on");
    }
    ASSIGN_OR_RETURN(std::string text, JsonGetOr<std::string>(part, "text", ""));
    texts.push_back(std::move(text));
  }
  return absl::StrJoin(texts, " ");
}

absl::StatusOr<Json> ToolCalls(const Json& calls, const std::string& where) {
  if (!calls.is_array()) return Fault(where, ": tool_calls is not a list");
  Json out = Json::array();
  for (const Json& call : calls) {
    const std::string here = absl::StrCat(where, ".tool_calls[", out.size(), "]");
    // The call without its envelope is seen in the wild, too.
    const Json* function = JsonFind(call, "function");
    if (function == nullptr && JsonFind(call, "name") != nullptr) function = &call;
    if (function == nullptr) return Fault(here, ": no function");
    absl::StatusOr<std::string> name = JsonGet<std::string>(*function, "name");
    if (!name.ok()) return Fault(here, ": function has no name");
    Json arguments = Json::object();
    if (const Json* given = JsonFind(*function, "arguments"); given != nullptr) {
      arguments = *given;
      if (given->is_string()) {
        // Kept as an object: templates that apply tojson or iterate would encode a string twice.
        absl::StatusOr<Json> parsed =
            ParseRowJson(given->get_ref<const std::string&>(), "arguments");
        if (parsed.ok() && parsed->is_object()) arguments = *std::move(parsed);
      }
    }
    ASSIGN_OR_RETURN(std::string id,
                     JsonGetOr<std::string>(call, "id", absl::StrCat("call_", out.size())));
    out.push_back({{"id", std::move(id)},
                   {"type", "function"},
                   {"function", {{"name", *name}, {"arguments", std::move(arguments)}}}});
  }
  return out;
}

// weight (OpenAI), train, loss: 0 or false keeps a message out of the loss.
absl::StatusOr<bool> Learns(const Json& message, const std::string& where) {
  for (const char* key : {"weight", "train", "loss"}) {
    const Json* value = JsonFind(message, key);
    if (value == nullptr) continue;
    if (value->is_boolean()) return value->get<bool>();
    if (value->is_number() && (*value == 0 || *value == 1)) return *value == 1;
    return Fault(where, ": ", key, " must be 0 or 1, got ", DumpJson(*value));
  }
  return true;
}

struct Messages {
  Json messages = Json::array();
  std::vector<bool> learn;
};

absl::StatusOr<Messages> ReadMessages(const Json& list, const std::string& column) {
  if (!list.is_array()) return Fault(column, " is not a list");
  if (list.empty()) return Fault(column, " is empty");
  Messages out;
  for (const Json& message : list) {
    const std::string where = absl::StrCat(column, "[", out.messages.size(), "]");
    if (!message.is_object()) return Fault(where, ": not an object");
    absl::StatusOr<std::string> role = JsonGet<std::string>(message, "role");
    if (!role.ok()) return Fault(where, ": no role");
    if (*role != "system" && *role != "developer" && *role != "user" && *role != "assistant" &&
        *role != "tool") {
      return Fault(where, ": unknown role '", *role,
                   "' (known: system, developer, user, assistant, tool)");
    }
    Json copy = Json::object();
    for (const auto& [key, value] : message.items()) {
      // Parquet gives every struct all fields; a null one is one that is not there.
      if (key == "role") {
        copy[key] = *role;
      } else if (key == "content") {
        ASSIGN_OR_RETURN(copy[key], Content(message, where));
      } else if (key == "tool_calls") {
        if (value.is_null() || (value.is_array() && value.empty())) continue;
        ASSIGN_OR_RETURN(copy[key], ToolCalls(value, where));
      } else if (!value.is_null() && key != "weight" && key != "train" && key != "loss") {
        copy[key] = value;
      }
    }
    if (!message.contains("content")) {
      ASSIGN_OR_RETURN(copy["content"], Content(message, where));
    }
    if (*role == "assistant") {
      ASSIGN_OR_RETURN(const bool learn, Learns(message, where));
      out.learn.push_back(learn);
    }
    out.messages.push_back(std::move(copy));
  }
  return out;
}

// ShareGPT's names of roles.
absl::StatusOr<Json> FromShareGpt(const Json& list) {
  if (!list.is_array()) return Fault("conversations is not a list");
  Json messages = Json::array();
  for (const Json& turn : list) {
    if (JsonFind(turn, "role") != nullptr) {  // messages under the other column's name
      messages.push_back(turn);
      continue;
    }
    const std::string where = absl::StrCat("conversations[", messages.size(), "]");
    absl::StatusOr<std::string> from = JsonGet<std::string>(turn, "from");
    if (!from.ok()) return Fault(where, ": no 'from'");
    absl::StatusOr<std::string> value = JsonGet<std::string>(turn, "value");
    if (!value.ok()) return Fault(where, ": no 'value'");
    const std::string& name = *from;
    const char* role = nullptr;
    if (name == "human" || name == "user") role = "user";
    if (name == "gpt" || name == "assistant" || name == "chatgpt" || name == "model" ||
        name == "bot") {
      role = "assistant";
    }
    if (name == "system") role = "system";
    if (name == "tool" || name == "function" || name == "observation") role = "tool";
    if (role == nullptr) {
      return Fault(where, ": unknown speaker '", name,
                   "' (known: human, user, gpt, assistant, chatgpt, model, bot, system, tool, "
                   "function, observation)");
    }
    Json message = Message(role, *std::move(value));
    for (const char* key : {"weight", "train", "loss"}) {
      if (const Json* flag = JsonFind(turn, key); flag != nullptr) message[key] = *flag;
    }
    messages.push_back(std::move(message));
  }
  return messages;
}

// `tools` may be a list or, as parquet exports have it, the JSON text of one.
absl::Status ReadChatColumns(const Json& row, Record* record) {
  const std::pair<const char*, Json*> columns[] = {{"tools", &record->tools},
                                                   {"chat_template_kwargs", &record->variables}};
  for (const auto& [column, out] : columns) {
    const Json* value = JsonFind(row, column);
    if (value == nullptr) continue;
    *out = *value;
    if (value->is_string()) {
      if (absl::StripAsciiWhitespace(value->get_ref<const std::string&>()).empty()) {
        *out = nullptr;
        continue;
      }
      ASSIGN_OR_RETURN(*out, ParseRowJson(value->get_ref<const std::string&>(), column));
    }
    const bool is_tools = out == &record->tools;
    if (is_tools ? !out->is_array() : !out->is_object()) {
      return Fault(column, " is not ", is_tools ? "a list" : "an object");
    }
    if (is_tools && out->empty()) *out = nullptr;
  }
  return absl::OkStatus();
}

absl::StatusOr<Record> FromChat(const Json& row) {
  Messages messages;
  if (const Json* list = JsonFind(row, "messages"); list != nullptr) {
    ASSIGN_OR_RETURN(messages, ReadMessages(*list, "messages"));
  } else if (const Json* turns = JsonFind(row, "conversations"); turns != nullptr) {
    ASSIGN_OR_RETURN(Json converted, FromShareGpt(*turns));
    ASSIGN_OR_RETURN(const std::string system, JsonGetOr<std::string>(row, "system", ""));
    if (!system.empty()) converted.insert(converted.begin(), Message("system", system));
    ASSIGN_OR_RETURN(messages, ReadMessages(converted, "conversations"));
  } else {
    return Fault("neither 'messages' nor 'conversations' is there (columns: ", ColumnsOf(row), ")");
  }
  Record record;
  record.kind = Record::Kind::kChat;
  record.messages = std::move(messages.messages);
  record.learn = std::move(messages.learn);
  RETURN_IF_ERROR(ReadChatColumns(row, &record));
  return record;
}

// Other shapes --------------------------------------------------------------------------------

absl::StatusOr<Record> FromPromptCompletion(const Json& row, bool use_chat_template) {
  ASSIGN_OR_RETURN(const std::string answer,
                   FirstColumn(row, {"completion", "response", "output", "answer"}));
  const Json* prompt = JsonFind(row, "prompt");
  if (prompt == nullptr) {
    return Fault("column 'prompt' is missing or null (columns: ", ColumnsOf(row), ")");
  }
  const Json& completion = row[answer];
  if (prompt->is_array() != completion.is_array()) {
    return Fault("'prompt' and '", answer, "' must both be strings or both be lists of messages");
  }
  if (!prompt->is_array()) {
    ASSIGN_OR_RETURN(std::string prompt_text, StringColumn(row, "prompt"));
    ASSIGN_OR_RETURN(std::string completion_text, StringColumn(row, answer));
    if (!use_chat_template) return PlainRecord(std::move(prompt_text), completion_text);
    return ChatRecord(Json::array({Message("user", std::move(prompt_text)),
                                   Message("assistant", std::move(completion_text))}));
  }
  ASSIGN_OR_RETURN(Messages head, ReadMessages(*prompt, "prompt"));
  ASSIGN_OR_RETURN(const Messages tail, ReadMessages(completion, answer));
  Record record;
  record.kind = Record::Kind::kChat;
  record.learn.assign(head.learn.size(), false);
  record.learn.insert(record.learn.end(), tail.learn.begin(), tail.learn.end());
  record.messages = std::move(head.messages);
  for (const Json& message : tail.messages) record.messages.push_back(message);
  RETURN_IF_ERROR(ReadChatColumns(row, &record));
  return record;
}

absl::StatusOr<Record> FromAlpaca(const Json& row, bool use_chat_template) {
  ASSIGN_OR_RETURN(const std::string instruction, StringColumn(row, "instruction"));
  ASSIGN_OR_RETURN(const std::string output, StringColumn(row, "output"));
  ASSIGN_OR_RETURN(const std::string input, JsonGetOr<std::string>(row, "input", ""));
  ASSIGN_OR_RETURN(const std::string system, JsonGetOr<std::string>(row, "system", ""));
  const Json* history = JsonFind(row, "history");
  if (!use_chat_template) {
    if (!system.empty() || (history != nullptr && !history->empty())) {
      return Fault("'system' and 'history' need a chat template, and the tokenizer has none");
    }
    // The prompt of the Stanford Alpaca repository, which base models are usually trained with.
    std::string prompt =
        input.empty() ? absl::StrCat(
                            "Below is an instruction that describes a task. Write a response that "
                            "appropriately completes the request.\n\n### Instruction:\n",
                            instruction, "\n\n### Response:\n")
                      : absl::StrCat(
                            "Below is an instruction that describes a task, paired with an input "
                            "that provides further context. Write a response that appropriately "
                            "completes the request.\n\n### Instruction:\n",
                            instruction, "\n\n### Input:\n", input, "\n\n### Response:\n");
    return PlainRecord(std::move(prompt), output);
  }
  Json messages = Json::array();
  if (!system.empty()) messages.push_back(Message("system", system));
  if (history != nullptr) {
    if (!history->is_array()) return Fault("'history' is not a list of pairs");
    for (const Json& pair : *history) {
      if (!pair.is_array() || pair.size() != 2 || !pair[0].is_string() || !pair[1].is_string()) {
        return Fault("'history' is not a list of pairs of strings");
      }
      messages.push_back(Message("user", pair[0].get<std::string>()));
      messages.push_back(Message("assistant", pair[1].get<std::string>()));
    }
  }
  messages.push_back(
      Message("user", input.empty() ? instruction : absl::StrCat(instruction, "\n", input)));
  messages.push_back(Message("assistant", output));
  return ChatRecord(std::move(messages));
}

absl::StatusOr<Record> FromColumns(const Json& row, const RecordOptions& options) {
  std::optional<std::string> context, question;
  std::string answer;
  for (const auto& [role, column] : options.column_mapping) {
    ASSIGN_OR_RETURN(std::string value, StringColumn(row, column));
    if (role == "context")
      context = std::move(value);
    else if (role == "question")
      question = std::move(value);
    else
      answer = std::move(value);
  }
  if (options.use_chat_template) {
    Json messages = Json::array();
    if (context) messages.push_back(Message("system", *context));
    if (question) messages.push_back(Message("user", *question));
    messages.push_back(Message("assistant", answer));
    return ChatRecord(std::move(messages));
  }
  // Each part is followed by a space, as AutoModel's " ".join([context, question, ""]).
  std::string prompt;
  if (context) absl::StrAppend(&prompt, *context, " ");
  if (question) absl::StrAppend(&prompt, *question, " ");
  return PlainRecord(std::move(prompt), answer);
}

absl::StatusOr<Record> FromSquad(const Json& row, bool use_chat_template) {
  ASSIGN_OR_RETURN(const std::string context, StringColumn(row, "context"));
  ASSIGN_OR_RETURN(const std::string question, StringColumn(row, "question"));
  const Json* answers = JsonFind(row, "answers");
  const Json* texts = answers == nullptr ? nullptr : JsonFind(*answers, "text");
  if (texts == nullptr || !texts->is_array() || texts->empty() || !(*texts)[0].is_string()) {
    return Fault("answers.text has no first string: the question has no answer to learn");
  }
  const std::string answer = (*texts)[0].get<std::string>();
  if (use_chat_template) {
    return ChatRecord(Json::array(
        {Message("user", absl::StrCat(context, " ", question)), Message("assistant", answer)}));
  }
  return PlainRecord(absl::StrCat("Context: ", context, " Question: ", question, " Answer: "),
                     answer);
}

absl::StatusOr<Record> FromHellaSwag(const Json& row) {
  ASSIGN_OR_RETURN(std::string context, StringColumn(row, "ctx"));
  absl::StatusOr<std::vector<std::string>> endings =
      JsonGet<std::vector<std::string>>(row, "endings");
  if (!endings.ok()) return Fault("column 'endings' is not a list of strings");
  const Json* label = JsonFind(row, "label");
  if (label != nullptr && label->is_string() && label->get_ref<const std::string&>().empty()) {
    return Fault("label is empty: the test split has no answers");
  }
  if (label == nullptr) return Fault("column 'label' is missing or null");
  ASSIGN_OR_RETURN(const int64_t index, JsonGet<int64_t>(row, "label"));
  if (index < 0 || index >= static_cast<int64_t>(endings->size())) {
    return Fault("label is ", index, ", but there are ", endings->size(), " endings");
  }
  Record record;
  record.kind = Record::Kind::kPieces;
  record.text = std::move(context);
  record.completion = std::move((*endings)[index]);
  return record;
}

// json.dumps with its defaults: ", " and ": " between things, ASCII escapes.
std::string PythonJson(const Json& value) {
  const auto scalar = [](const Json& leaf) {
    return leaf.dump(-1, ' ', /*ensure_ascii=*/true, Json::error_handler_t::replace);
  };
  std::vector<std::string> parts;
  if (value.is_object()) {
    for (const auto& [key, member] : value.items()) {
      parts.push_back(absl::StrCat(scalar(Json(key)), ": ", PythonJson(member)));
    }
    return absl::StrCat("{", absl::StrJoin(parts, ", "), "}");
  }
  if (value.is_array()) {
    for (const Json& element : value) parts.push_back(PythonJson(element));
    return absl::StrCat("[", absl::StrJoin(parts, ", "), "]");
  }
  return scalar(value);
}

}  // namespace

absl::StatusOr<DatasetFormat> DetectFormat(const Json& row) {
  const auto has = [&](const char* key) { return JsonFind(row, key) != nullptr; };
  if (has("messages") || has("conversations")) return DatasetFormat::kChat;
  if (has("chosen") && has("rejected")) {
    return Fault(
        "columns 'chosen' and 'rejected' are preference data, which this trainer does not "
        "learn from");
  }
  if (has("prompt") && (has("completion") || has("response") || has("output") || has("answer"))) {
    return DatasetFormat::kPromptCompletion;
  }
  if (has("instruction") && has("output")) return DatasetFormat::kAlpaca;
  if (has("ctx") && has("endings")) return DatasetFormat::kHellaSwag;
  if (has("context") && has("question") && has("answers")) return DatasetFormat::kSquad;
  if (has("text")) return DatasetFormat::kText;
  if (has("input_ids")) {
    return Fault("column 'input_ids' is tokenized already; give the text it was made from");
  }
  return Fault("the columns (", ColumnsOf(row),
               ") are none of: messages; conversations; prompt + completion; instruction + output; "
               "text; ctx + endings + label; context + question + answers. Set column_mapping to "
               "say which is which");
}

absl::StatusOr<Record> MakeRecord(const Json& row, const RecordOptions& options) {
  if (!row.is_object()) return Fault("the row is not a JSON object");
  switch (options.format) {
    case DatasetFormat::kChat:
      return FromChat(row);
    case DatasetFormat::kPromptCompletion:
      return FromPromptCompletion(row, options.use_chat_template);
    case DatasetFormat::kAlpaca:
      return FromAlpaca(row, options.use_chat_template);
    case DatasetFormat::kColumnMapped:
      return FromColumns(row, options);
    case DatasetFormat::kSquad:
      return FromSquad(row, options.use_chat_template);
    case DatasetFormat::kHellaSwag:
      return FromHellaSwag(row);
    case DatasetFormat::kText: {
      ASSIGN_OR_RETURN(std::string text, StringColumn(row, "text"));
      return PlainRecord("", text);
    }
    case DatasetFormat::kDetect:
      break;
  }
  return absl::InternalError("bug: the format of the data set was not decided");
}

Record MakeTextRecord(absl::string_view line) { return PlainRecord("", std::string(line)); }

bool ArgumentsToStrings(Json* messages) {
  bool any = false;
  for (Json& message : *messages) {
    const auto calls = message.find("tool_calls");
    if (calls == message.end()) continue;
    for (Json& call : *calls) {
      Json& arguments = call["function"]["arguments"];
      if (arguments.is_string()) continue;
      arguments = PythonJson(arguments);
      any = true;
    }
  }
  return any;
}

}  // namespace switchyard
