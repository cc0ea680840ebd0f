#include "worker/prep/prepare.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/json.h"
#include "base/status_macros.h"
#include "worker/prep/batch.h"
#include "worker/prep/files.h"
#include "worker/prep/packing.h"
#include "worker/prep/random.h"
#include "worker/prep/records.h"
#include "worker/prep/row_json.h"

namespace switchyard {
namespace {

constexpr size_t kBatchRows = 2048;

absl::string_view FormatName(DatasetFormat format, bool is_text) {
  if (is_text) return "text lines";
  switch (format) {
    case DatasetFormat::kDetect:
      return "unknown";
    case DatasetFormat::kChat:
      return "chat";
    case DatasetFormat::kPromptCompletion:
      return "prompt_completion";
    case DatasetFormat::kAlpaca:
      return "alpaca";
    case DatasetFormat::kText:
      return "text";
    case DatasetFormat::kColumnMapped:
      return "column_mapped";
    case DatasetFormat::kSquad:
      return "squad";
    case DatasetFormat::kHellaSwag:
      return "hellaswag";
  }
  return "unknown";
}

// Where the first byte that is not UTF-8 is; npos: nowhere. Follows RFC 3629.
size_t InvalidUtf8At(absl::string_view text) {
  size_t i = 0;
  while (i < text.size()) {
    const auto byte = [&](size_t k) { return static_cast<unsigned char>(text[k]); };
    const unsigned char lead = byte(i);
    if (lead < 0x80) {
      ++i;
      continue;
    }
    const size_t length = lead >= 0xc2 && lead <= 0xdf   ? 2
                          : lead >= 0xe0 && lead <= 0xef ? 3
                          : lead >= 0xf0 && lead <= 0xf4 ? 4
                                                         : 0;
    if (length == 0 || i + length > text.size()) return i;
    for (size_t k = 1; k < length; ++k) {
      if ((byte(i + k) & 0xc0) != 0x80) return i;
    }
    if (lead == 0xe0 && byte(i + 1) < 0xa0) return i;
    if (lead == 0xed && byte(i + 1) > 0x9f) return i;  // surrogates
    if (lead == 0xf0 && byte(i + 1) < 0x90) return i;
    if (lead == 0xf4 && byte(i + 1) > 0x8f) return i;
    i += length;
  }
  return absl::string_view::npos;
}

// The loss mask that the proto's default means, per format. Errors: a mask that this format has
// not.
absl::StatusOr<LossMask> EffectiveMask(LossMask asked, DatasetFormat format, bool chat) {
  const bool text = format == DatasetFormat::kText;
  if (asked == LossMask::kDefault) {
    return text ? LossMask::kAll : chat ? LossMask::kAssistant : LossMask::kCompletion;
  }
  if (text && asked != LossMask::kAll) {
    return absl::InvalidArgumentError("loss_mask of plain text can only be all");
  }
  if (!chat && !text && asked == LossMask::kLastTurn) {
    return absl::InvalidArgumentError("loss_mask last_turn needs conversations");
  }
  return asked;
}

absl::StatusOr<int64_t> CountRows(const std::vector<std::string>& files) {
  int64_t count = 0;
  for (const std::string& file : files) {
    ASSIGN_OR_RETURN(const std::unique_ptr<RowReader> reader, RowReader::Open(file));
    while (true) {
      ASSIGN_OR_RETURN(const std::optional<RawRow> row, reader->Next());
      if (!row) break;
      ++count;
    }
  }
  return count;
}

// Which rows of a part are taken, and in which place of the result.
struct Selection {
  int64_t begin = 0;
  int64_t end = std::numeric_limits<int64_t>::max();
  std::vector<int64_t> place;  // shuffled: of each row; -1: not taken. Else empty: file order
};

absl::StatusOr<Selection> Select(const DatasetPart& part, std::optional<uint32_t> shuffle_seed,
                                 int64_t limit) {
  Selection selection;
  if (!shuffle_seed && part.split.IsAbsolute()) {
    std::tie(selection.begin, selection.end) = part.split.Resolve(selection.end);
  } else {
    ASSIGN_OR_RETURN(const int64_t num_rows, CountRows(part.files));
    std::tie(selection.begin, selection.end) = part.split.Resolve(num_rows);
    if (shuffle_seed) {
      const std::vector<int64_t> order = Permutation(*shuffle_seed, num_rows);
      const int64_t last = std::min(selection.end, selection.begin + limit);
      selection.place.assign(order.size(), -1);
      for (int64_t i = selection.begin; i < last; ++i) selection.place[order[i]] = i;
      selection.begin = 0;
      selection.end = num_rows;
    }
  }
  return selection;
}

// Collects documents while rows stream by.
class Builder {
 public:
  Builder(const PrepConfig& config, const DatasetConfig& dataset, const TextModel& model)
      : config_(config), dataset_(dataset), model_(model) {
    report_.name = dataset.name;
    options_.format = dataset.format;
    options_.column_mapping = dataset.column_mapping;
    if (options_.format == DatasetFormat::kDetect && !dataset.column_mapping.empty()) {
      options_.format = DatasetFormat::kColumnMapped;
    }
    options_.use_chat_template = dataset.use_chat_template;
  }

  absl::Status ReadPart(const DatasetPart& part);
  // Rows still wanted by limit_rows.
  int64_t RowsLeft() const {
    if (dataset_.limit_rows == 0) return std::numeric_limits<int64_t>::max();
    return dataset_.limit_rows - report_.rows;
  }
  bool GaveUp() const {
    return config_.malformed_rows == MalformedRows::kFail &&
           report_.malformed >= static_cast<int64_t>(DatasetReport::kMaxExamples);
  }
  absl::StatusOr<PreparedDataset> Finish();

 private:
  struct Place {
    size_t file;  // index into report_.files
    int64_t line;
    int64_t rank;  // of the row in the result
  };
  absl::Status AddRow(const RawRow& row, bool is_text, const Place& place);
  absl::Status SettleFormat(const Json* row);
  absl::Status Flush();
  void Keep(const TokenizedRecord& record, int64_t rank);
  void Malformed(const Place& place, absl::string_view why);
  void WarnOnce(const std::string& warning);

  const PrepConfig& config_;
  const DatasetConfig& dataset_;
  const TextModel& model_;
  RecordOptions options_;
  bool settled_ = false;
  bool is_text_ = false;
  LossMask loss_mask_ = LossMask::kDefault;
  DatasetReport report_;
  int64_t rank_base_ = 0;  // where the current part's ranks start
  std::vector<Record> records_;
  std::vector<Place> places_;
  // Documents in reading order.
  std::vector<int32_t> tokens_;
  std::vector<uint8_t> supervised_;
  std::vector<int64_t> starts_;
  std::vector<int64_t> ranks_;
};

void Builder::Malformed(const Place& place, absl::string_view why) {
  ++report_.malformed;
  if (report_.malformed_examples.size() == DatasetReport::kMaxExamples) return;
  report_.malformed_examples.push_back(
      absl::StrCat(report_.files[place.file], ":", place.line, ": ", why));
}

void Builder::WarnOnce(const std::string& warning) {
  auto& all = report_.warnings;
  if (std::find(all.begin(), all.end(), warning) == all.end()) all.push_back(warning);
}

// Decides format and mask at the first sound row.
absl::Status Builder::SettleFormat(const Json* row) {
  if (options_.format == DatasetFormat::kDetect) {
    if (row == nullptr) {
      options_.format = DatasetFormat::kText;
    } else {
      ASSIGN_OR_RETURN(options_.format, DetectFormat(*row));
    }
  }
  is_text_ = row == nullptr;
  if (options_.format == DatasetFormat::kAlpaca) {
    options_.use_chat_template = model_.chat.has_value();
  }
  bool chat = options_.format == DatasetFormat::kChat || options_.use_chat_template;
  if (row != nullptr && options_.format == DatasetFormat::kPromptCompletion) {
    const Json* prompt = JsonFind(*row, "prompt");
    chat |= prompt != nullptr && prompt->is_array();
  }
  if (options_.format == DatasetFormat::kHellaSwag) chat = false;
  absl::StatusOr<LossMask> mask = EffectiveMask(dataset_.loss_mask, options_.format, chat);
  if (!mask.ok()) {
    // The setting is wrong for this data, not the row.
    return absl::FailedPreconditionError(
        absl::StrCat("data set '", dataset_.name, "': ", mask.status().message()));
  }
  loss_mask_ = *mask;
  // The prompt/completion border of a conversation is in Record::learn.
  if (chat && options_.format == DatasetFormat::kPromptCompletion &&
      loss_mask_ == LossMask::kCompletion) {
    loss_mask_ = LossMask::kAssistant;
  }
  report_.format = std::string(FormatName(options_.format, is_text_));
  if (!chat && !model_.eos_id) {
    WarnOnce("the tokenizer has no eos_token: the ends of texts are not marked");
  }
  settled_ = true;
  return absl::OkStatus();
}

absl::Status Builder::AddRow(const RawRow& row, bool is_text, const Place& place) {
  ++report_.rows;
  if (const size_t at = InvalidUtf8At(row.text); at != absl::string_view::npos) {
    Malformed(place, absl::StrCat("invalid UTF-8 at byte ", at, " of ", row.text.size()));
    return absl::OkStatus();
  }
  absl::StatusOr<Record> record;
  if (is_text) {
    if (!settled_) RETURN_IF_ERROR(SettleFormat(nullptr));
    record = MakeTextRecord(row.text);
  } else {
    absl::StatusOr<Json> json = ParseRowJson(row.text, "row");
    if (json.ok() && !settled_ && json->is_object()) {
      const absl::Status status = SettleFormat(&*json);
      if (absl::IsFailedPrecondition(status)) return status;
      if (!status.ok()) json = status;
    }
    if (json.ok()) {
      record = settled_ ? MakeRecord(*json, options_)
                        : absl::InvalidArgumentError("the row is not a JSON object");
    } else {
      record = json.status();
    }
  }
  if (!record.ok()) {
    Malformed(place, record.status().message());
    return absl::OkStatus();
  }
  if (record->kind == Record::Kind::kChat &&
      !absl::StrContains(model_.chat_source, "reasoning_content")) {
    for (const Json& message : record->messages) {
      if (message.contains("reasoning_content")) {
        WarnOnce("messages have reasoning_content, which the chat template does not render");
      }
    }
  }
  records_.push_back(*std::move(record));
  places_.push_back(place);
  return records_.size() < kBatchRows ? absl::OkStatus() : Flush();
}

absl::Status Builder::Flush() {
  ASSIGN_OR_RETURN(const std::vector<TokenizedRecord> batch,
                   TokenizeBatch(model_, loss_mask_, absl::MakeSpan(records_)));
  for (size_t i = 0; i < batch.size(); ++i) {
    if (batch[i].status.ok()) {
      Keep(batch[i], places_[i].rank);
    } else {
      Malformed(places_[i], batch[i].status.message());
    }
  }
  records_.clear();
  places_.clear();
  return absl::OkStatus();
}

void Builder::Keep(const TokenizedRecord& record, int64_t rank) {
  size_t length = record.ids.size();
  AddLength(&report_, static_cast<int64_t>(length));
  const auto limit = static_cast<size_t>(config_.DocumentLimit());
  const bool too_long = limit > 0 && length > limit;
  if (too_long && config_.overlong == Overlong::kDrop) {
    ++report_.dropped_overlong;
    return;
  }
  if (too_long) length = limit;
  const int64_t targets = std::count(record.supervised.begin(),
                                     record.supervised.begin() + static_cast<ptrdiff_t>(length), 1);
  if (targets == 0) {
    ++report_.dropped_unsupervised;
    return;
  }
  report_.truncated += too_long ? 1 : 0;
  report_.supervised_tokens += targets;
  report_.longest_kept = std::max(report_.longest_kept, static_cast<int64_t>(length));
  starts_.push_back(static_cast<int64_t>(tokens_.size()));
  ranks_.push_back(rank);
  tokens_.insert(tokens_.end(), record.ids.begin(),
                 record.ids.begin() + static_cast<ptrdiff_t>(length));
  supervised_.insert(supervised_.end(), record.supervised.begin(),
                     record.supervised.begin() + static_cast<ptrdiff_t>(length));
}

absl::Status Builder::ReadPart(const DatasetPart& part) {
  ASSIGN_OR_RETURN(const Selection selection, Select(part, dataset_.shuffle_seed, RowsLeft()));
  int64_t index = 0;
  for (const std::string& file : part.files) {
    if (index >= selection.end || RowsLeft() <= 0) break;
    ASSIGN_OR_RETURN(const std::unique_ptr<RowReader> reader, RowReader::Open(file));
    report_.files.push_back(file);
    while (index < selection.end && RowsLeft() > 0 && !GaveUp()) {
      ASSIGN_OR_RETURN(const std::optional<RawRow> row, reader->Next());
      if (!row) break;
      const int64_t i = index++;
      if (i < selection.begin) continue;
      int64_t rank = i;
      if (!selection.place.empty()) {
        rank = selection.place[static_cast<size_t>(i)];
        if (rank < 0) continue;
      }
      RETURN_IF_ERROR(AddRow(*row, reader->is_text(),
                             {report_.files.size() - 1, row->line, rank_base_ + rank}));
    }
  }
  RETURN_IF_ERROR(Flush());
  rank_base_ += index;
  return absl::OkStatus();
}

absl::StatusOr<PreparedDataset> Builder::Finish() {
  PreparedDataset out;
  const bool refused = config_.malformed_rows == MalformedRows::kFail && report_.malformed > 0;
  if (!refused && starts_.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "data set '", dataset_.name, "': no document is left of ", report_.rows, " rows (",
        report_.malformed, " malformed, ", report_.dropped_unsupervised, " without a target, ",
        report_.dropped_overlong, " too long)",
        report_.malformed_examples.empty() ? "" : "; the first: " + report_.malformed_examples[0]));
  }
  if (!refused) {
    // To the order of ranks; the identity unless rows were shuffled.
    std::vector<int64_t> order(starts_.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return ranks_[a] < ranks_[b]; });
    starts_.push_back(static_cast<int64_t>(tokens_.size()));
    std::vector<int64_t> lengths;
    for (const int64_t i : order) lengths.push_back(starts_[i + 1] - starts_[i]);
    report_.documents = static_cast<int64_t>(order.size());
    report_.tokens = static_cast<int64_t>(tokens_.size());
    report_.row_length = config_.RowLength() > 0 ? config_.RowLength() : report_.longest_kept;
    const auto rows = PackDocuments(lengths, report_.row_length, config_.packing);
    report_.packed_rows = static_cast<int64_t>(rows.size());
    TokenData& data = out.data;
    data.row_length = report_.row_length;
    data.tokens.reserve(tokens_.size());
    data.supervised.reserve(tokens_.size());
    for (const std::vector<int64_t>& row : rows) {
      data.rows.push_back(static_cast<int64_t>(data.documents.size()));
      for (const int64_t document : row) {
        const int64_t begin = starts_[order[document]];
        const int64_t end = starts_[order[document] + 1];
        data.documents.push_back(static_cast<int64_t>(data.tokens.size()));
        data.tokens.insert(data.tokens.end(), tokens_.begin() + begin, tokens_.begin() + end);
        data.supervised.insert(data.supervised.end(), supervised_.begin() + begin,
                               supervised_.begin() + end);
      }
    }
  }
  out.report = std::move(report_);
  return out;
}

}  // namespace

absl::StatusOr<std::vector<DatasetPart>> ResolveDataset(const DatasetConfig& dataset) {
  ASSIGN_OR_RETURN(const std::vector<SplitPart> splits, ParseSplit(dataset.split));
  std::vector<DatasetPart> parts;
  for (const SplitPart& split : splits) {
    absl::StatusOr<std::vector<std::string>> files = ResolveFiles(dataset.paths, split.name);
    if (!files.ok()) {
      return absl::Status(files.status().code(), absl::StrCat("data set '", dataset.name,
                                                              "': ", files.status().message()));
    }
    parts.push_back({split, *std::move(files)});
  }
  return parts;
}

absl::StatusOr<PreparedDataset> PrepareDataset(const PrepConfig& config,
                                               const DatasetConfig& dataset,
                                               const std::vector<DatasetPart>& parts,
                                               const TextModel& model) {
  Builder builder(config, dataset, model);
  for (const DatasetPart& part : parts) {
    if (builder.RowsLeft() <= 0 || builder.GaveUp()) break;
    RETURN_IF_ERROR(builder.ReadPart(part));
  }
  return builder.Finish();
}

}  // namespace switchyard
