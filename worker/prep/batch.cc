#include "worker/prep/batch.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "worker/prep/masks.h"

namespace switchyard {
namespace {

using Results = std::vector<TokenizedRecord>;

// The template's variables for the first `num_messages` messages.
std::string Context(const Record& record, size_t num_messages, bool generation_prompt) {
  std::string context = "{\"messages\":";
  if (num_messages == record.messages.size()) {
    context += DumpJson(record.messages);
  } else {
    context += DumpJson(Json(record.messages.begin(),
                             record.messages.begin() + static_cast<ptrdiff_t>(num_messages)));
  }
  if (!record.tools.is_null()) absl::StrAppend(&context, ",\"tools\":", DumpJson(record.tools));
  if (generation_prompt) context += ",\"add_generation_prompt\":true";
  if (record.variables.is_object()) {
    for (const auto& [name, value] : record.variables.items()) {
      absl::StrAppend(&context, ",", DumpJson(Json(name)), ":", DumpJson(value));
    }
  }
  return context + "}";
}

// Renders each context with the template of its record. A row whose tool calls the template does
// not take as objects is tried again with their arguments as JSON text.
class ChatBatch {
 public:
  ChatBatch(const TextModel& model, LossMask loss_mask) : model_(model), loss_mask_(loss_mask) {}

  // Renders and masks the chat records of `records` whose index is in `indices`.
  absl::Status Run(absl::Span<Record> records, const std::vector<size_t>& indices,
                   Results* results);

 private:
  struct Turn {
    size_t message = 0;    // index among messages
    size_t assistant = 0;  // index among assistant messages
  };
  absl::Status RunWith(const ChatTemplate& chat_template, absl::Span<Record> records,
                       const std::vector<size_t>& indices, bool retry, Results* results);
  // The assistant turns that the loss mask and the messages' weights let learn.
  std::vector<Turn> LearntTurns(const Record& record) const;
  // Narrows what {% generation %} blocks wrote down to those turns.
  absl::StatusOr<std::vector<ByteSpan>> ChooseSpans(const Record& record,
                                                    std::vector<ByteSpan> spans) const;
  absl::Status Encode(const std::vector<absl::string_view>& texts,
                      const std::vector<std::vector<ByteSpan>>& spans,
                      const std::vector<size_t>& indices, Results* results) const;

  const TextModel& model_;
  const LossMask loss_mask_;
};

std::vector<ChatBatch::Turn> ChatBatch::LearntTurns(const Record& record) const {
  std::vector<Turn> turns;
  size_t assistant = 0;
  for (size_t i = 0; i < record.messages.size(); ++i) {
    if (record.messages[i]["role"] != "assistant") continue;
    turns.push_back({i, assistant++});
  }
  const bool only_last = loss_mask_ == LossMask::kLastTurn || loss_mask_ == LossMask::kCompletion;
  if (only_last && turns.size() > 1) turns.erase(turns.begin(), turns.end() - 1);
  turns.erase(std::remove_if(turns.begin(), turns.end(),
                             [&](const Turn& turn) { return !record.learn[turn.assistant]; }),
              turns.end());
  return turns;
}

absl::StatusOr<std::vector<ByteSpan>> ChatBatch::ChooseSpans(const Record& record,
                                                             std::vector<ByteSpan> spans) const {
  const bool all = std::all_of(record.learn.begin(), record.learn.end(), [](bool b) { return b; });
  // last_turn is decided on tokens: the last run, whatever blocks it is made of.
  if (all && loss_mask_ != LossMask::kCompletion) return spans;
  if (spans.size() != record.learn.size()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "cannot leave single messages out of the loss: the template has ", spans.size(),
        " {% generation %} spans for ", record.learn.size(), " assistant messages"));
  }
  std::vector<ByteSpan> chosen;
  for (const Turn& turn : LearntTurns(record)) chosen.push_back(spans[turn.assistant]);
  return chosen;
}

absl::Status ChatBatch::Run(absl::Span<Record> records, const std::vector<size_t>& indices,
                            Results* results) {
  std::vector<size_t> plain, with_tools;
  for (const size_t i : indices) {
    if (!model_.chat) {
      (*results)[i].status = absl::InvalidArgumentError(
          "the row is a conversation, but the tokenizer has no chat template; set "
          "data.chat_template");
    } else if (model_.tool_use && !records[i].tools.is_null()) {
      with_tools.push_back(i);
    } else {
      plain.push_back(i);
    }
  }
  if (!plain.empty()) RETURN_IF_ERROR(RunWith(*model_.chat, records, plain, true, results));
  if (with_tools.empty()) return absl::OkStatus();
  return RunWith(*model_.tool_use, records, with_tools, true, results);
}

absl::Status ChatBatch::RunWith(const ChatTemplate& chat_template, absl::Span<Record> records,
                                const std::vector<size_t>& indices, bool retry, Results* results) {
  const bool by_prefix = !chat_template.has_generation() && loss_mask_ != LossMask::kAll;
  std::vector<std::string> contexts;
  std::vector<size_t> first_context;  // per record: the whole, then before/through per turn
  std::vector<std::vector<Turn>> turns(indices.size());
  for (size_t k = 0; k < indices.size(); ++k) {
    const Record& record = records[indices[k]];
    first_context.push_back(contexts.size());
    contexts.push_back(Context(record, record.messages.size(), false));
    if (!by_prefix) continue;
    turns[k] = LearntTurns(record);
    for (const Turn& turn : turns[k]) {
      contexts.push_back(Context(record, turn.message, true));
      contexts.push_back(Context(record, turn.message + 1, false));
    }
  }
  ASSIGN_OR_RETURN(const Renders renders, chat_template.Render(contexts));

  std::vector<absl::string_view> texts;
  std::vector<std::vector<ByteSpan>> spans;
  std::vector<size_t> rendered, again;
  for (size_t k = 0; k < indices.size(); ++k) {
    Record& record = records[indices[k]];
    absl::Status status;
    for (size_t c = first_context[k]; c <= first_context[k] + 2 * turns[k].size(); ++c) {
      if (status.ok()) status = renders.status(c);
    }
    if (!status.ok() && retry && ArgumentsToStrings(&record.messages)) {
      again.push_back(indices[k]);
      (*results)[indices[k]].status = status;
      continue;
    }
    const absl::string_view whole = renders.text(first_context[k]);
    std::vector<ByteSpan> chosen;
    if (status.ok() && loss_mask_ == LossMask::kAll) {
      chosen.push_back({0, whole.size()});
    } else if (status.ok() && by_prefix) {
      for (size_t t = 0; t < turns[k].size() && status.ok(); ++t) {
        const size_t c = first_context[k] + 1 + 2 * t;
        const absl::StatusOr<ByteSpan> span =
            SpanFromPrefixes(whole, {renders.text(c), renders.text(c + 1)}, model_.eos_token);
        if (span.ok()) {
          chosen.push_back(*span);
        } else {
          status = span.status();
        }
      }
    } else if (status.ok()) {
      absl::StatusOr<std::vector<ByteSpan>> found =
          ChooseSpans(record, renders.spans(first_context[k]));
      status = found.status();
      if (found.ok()) chosen = *std::move(found);
    }
    if (!status.ok()) {
      (*results)[indices[k]].status = status;
      continue;
    }
    rendered.push_back(indices[k]);
    texts.push_back(whole);
    spans.push_back(std::move(chosen));
  }
  RETURN_IF_ERROR(Encode(texts, spans, rendered, results));
  if (again.empty()) return absl::OkStatus();
  std::vector<absl::Status> first_faults;
  for (const size_t i : again) first_faults.push_back((*results)[i].status);
  for (const size_t i : again) (*results)[i].status = absl::OkStatus();
  RETURN_IF_ERROR(RunWith(chat_template, records, again, false, results));
  for (size_t k = 0; k < again.size(); ++k) {  // the first fault is about what the user wrote
    if (!(*results)[again[k]].status.ok()) (*results)[again[k]].status = first_faults[k];
  }
  return absl::OkStatus();
}

absl::Status ChatBatch::Encode(const std::vector<absl::string_view>& texts,
                               const std::vector<std::vector<ByteSpan>>& spans,
                               const std::vector<size_t>& indices, Results* results) const {
  ASSIGN_OR_RETURN(const Encodings encodings,
                   model_.tokenizer.Encode(texts, /*add_special=*/false, Offsets::kBytes));
  for (size_t k = 0; k < texts.size(); ++k) {
    TokenizedRecord& result = (*results)[indices[k]];
    const auto ids = encodings.ids(k);
    result.ids.assign(ids.begin(), ids.end());
    result.supervised = MaskFromSpans(encodings.offsets(k), spans[k]);
    if (loss_mask_ == LossMask::kLastTurn) KeepLastRun(&result.supervised);
    if (result.ids.empty() || result.supervised.back() == 0 || !model_.eos_id) continue;
    bool ended = false;  // an added token closes, or is part of, the last run
    for (size_t i = result.ids.size(); i > 0 && result.supervised[i - 1] != 0 && !ended; --i) {
      ended = model_.tokenizer.IsAdded(result.ids[i - 1]);
    }
    if (!ended) {
      result.ids.push_back(static_cast<int32_t>(*model_.eos_id));
      result.supervised.push_back(1);
    }
  }
  return absl::OkStatus();
}

absl::Status RunPlain(const TextModel& model, LossMask loss_mask, absl::Span<Record> records,
                      const std::vector<size_t>& indices, Results* results) {
  std::vector<absl::string_view> texts;
  for (const size_t i : indices) texts.push_back(records[i].text);
  ASSIGN_OR_RETURN(const Encodings encodings,
                   model.tokenizer.Encode(texts, /*add_special=*/true, Offsets::kBytes));
  for (size_t k = 0; k < indices.size(); ++k) {
    TokenizedRecord& result = (*results)[indices[k]];
    const auto ids = encodings.ids(k);
    result.ids.assign(ids.begin(), ids.end());
    if (loss_mask == LossMask::kAll) {
      result.supervised.assign(ids.size(), 1);
    } else {
      result.supervised = MaskAfterPrompt(encodings.offsets(k), records[indices[k]].prompt_bytes);
    }
    const bool has_eos = model.eos_id && !ids.empty() && ids.back() == *model.eos_id;
    if (model.eos_id && !has_eos) {
      result.ids.push_back(static_cast<int32_t>(*model.eos_id));
      result.supervised.push_back(1);
    } else if (has_eos && result.supervised.back() == 0) {
      result.supervised.back() = 1;  // an empty completion: the end is what is learnt
    }
  }
  return absl::OkStatus();
}

absl::Status RunPieces(const TextModel& model, LossMask loss_mask, absl::Span<Record> records,
                       const std::vector<size_t>& indices, Results* results) {
  std::vector<absl::string_view> texts;
  for (const size_t i : indices) texts.push_back(records[i].text);
  for (const size_t i : indices) texts.push_back(records[i].completion);
  ASSIGN_OR_RETURN(const Encodings encodings,
                   model.tokenizer.Encode(texts, /*add_special=*/true, Offsets::kBytes));
  // Tokens that the post-processor added cover no text.
  const auto is_added = [&](size_t text, size_t token) {
    return encodings.offsets(text)[2 * token] == encodings.offsets(text)[2 * token + 1];
  };
  for (size_t k = 0; k < indices.size(); ++k) {
    TokenizedRecord& result = (*results)[indices[k]];
    absl::Span<const uint32_t> prompt = encodings.ids(k);
    absl::Span<const uint32_t> target = encodings.ids(indices.size() + k);
    if (!prompt.empty() && is_added(k, prompt.size() - 1)) prompt.remove_suffix(1);
    if (!target.empty() && is_added(indices.size() + k, 0)) target.remove_prefix(1);
    result.ids.assign(prompt.begin(), prompt.end());
    result.ids.insert(result.ids.end(), target.begin(), target.end());
    result.supervised.assign(prompt.size(), loss_mask == LossMask::kAll ? 1 : 0);
    result.supervised.insert(result.supervised.end(), target.size(), 1);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Results> TokenizeBatch(const TextModel& model, LossMask loss_mask,
                                      absl::Span<Record> records) {
  Results results(records.size());
  std::vector<size_t> chat, plain, pieces;
  for (size_t i = 0; i < records.size(); ++i) {
    switch (records[i].kind) {
      case Record::Kind::kChat:
        chat.push_back(i);
        break;
      case Record::Kind::kPlain:
        plain.push_back(i);
        break;
      case Record::Kind::kPieces:
        pieces.push_back(i);
        break;
    }
  }
  RETURN_IF_ERROR(ChatBatch(model, loss_mask).Run(records, chat, &results));
  RETURN_IF_ERROR(RunPlain(model, loss_mask, records, plain, &results));
  RETURN_IF_ERROR(RunPieces(model, loss_mask, records, pieces, &results));
  for (TokenizedRecord& result : results) {
    SY_CHECK(result.ids.size() == result.supervised.size());
    if (!result.supervised.empty()) result.supervised[0] = 0;
  }
  return results;
}

}  // namespace switchyard
