#include "worker/prep/wordnet.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "base/fd.h"
#include "base/json.h"
#include "base/status_macros.h"
#include "worker/prep/random.h"

namespace switchyard {
namespace {

constexpr int64_t kMaxValidationRows = 1000;
constexpr uint64_t kValidationShare = 100;  // one word in so many

struct Gloss {
  std::string word;
  const char* part_of_speech;
  std::string text;
};

// A line of data.<pos>: "offset lex_filenum ss_type w_cnt word lex_id ... | gloss"; the licence at
// the top is indented by two spaces (wndb(5WN)).
absl::Status ReadGlosses(const std::string& path, const char* part_of_speech,
                         std::vector<Gloss>* glosses) {
  ASSIGN_OR_RETURN(const std::string content, ReadFile(path));
  int64_t line_number = 0;
  for (const absl::string_view line : absl::StrSplit(content, '\n')) {
    ++line_number;
    if (line.empty() || line.substr(0, 2) == "  ") continue;
    const size_t bar = line.find(" | ");
    const std::vector<absl::string_view> fields =
        absl::StrSplit(line.substr(0, bar), absl::MaxSplits(' ', 5));
    if (bar == absl::string_view::npos || fields.size() < 6) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ":", line_number, ": not a line of a WordNet data file"));
    }
    absl::string_view word = fields[4];
    if (const size_t marker = word.find('('); marker != absl::string_view::npos) {
      word = word.substr(0, marker);  // adjectives carry a syntactic marker: "big(a)"
    }
    glosses->push_back({absl::StrReplaceAll(word, {{"_", " "}}), part_of_speech,
                        std::string(absl::StripAsciiWhitespace(line.substr(bar + 3)))});
  }
  return absl::OkStatus();
}

uint64_t HashText(absl::string_view text) {  // FNV-1a
  uint64_t hash = 0xcbf29ce484222325u;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return hash;
}

void AppendRow(const Gloss& gloss, std::string* out) {
  const Json row = {
      {"messages",
       {{{"role", "user"},
         {"content", absl::StrCat("Define ", gloss.word, " (", gloss.part_of_speech, ").")}},
        {{"role", "assistant"}, {"content", gloss.text}}}}};
  absl::StrAppend(out, DumpJson(row), "\n");
}

}  // namespace

absl::StatusOr<WordnetResult> WriteWordnet(const WordnetOptions& options) {
  constexpr std::pair<const char*, const char*> kFiles[] = {{"data.noun", "noun"},
                                                            {"data.verb", "verb"},
                                                            {"data.adj", "adjective"},
                                                            {"data.adv", "adverb"}};
  std::vector<Gloss> glosses;
  for (const auto& [file, part_of_speech] : kFiles) {
    RETURN_IF_ERROR(ReadGlosses(absl::StrCat(options.input, "/", file), part_of_speech, &glosses));
  }
  std::string train, validation;
  WordnetResult result;
  for (const int64_t i : Permutation(options.seed, static_cast<int64_t>(glosses.size()))) {
    const Gloss& gloss = glosses[static_cast<size_t>(i)];
    if (Draw64(options.seed, HashText(gloss.word)) % kValidationShare == 0) {
      if (result.validation_rows == kMaxValidationRows) continue;
      ++result.validation_rows;
      AppendRow(gloss, &validation);
    } else if (options.limit == 0 || result.train_rows < options.limit) {
      ++result.train_rows;
      AppendRow(gloss, &train);
    }
  }
  RETURN_IF_ERROR(MakeFolders(options.output));
  RETURN_IF_ERROR(ReplaceFile(absl::StrCat(options.output, "/train.jsonl"), train));
  RETURN_IF_ERROR(ReplaceFile(absl::StrCat(options.output, "/validation.jsonl"), validation));
  return result;
}

}  // namespace switchyard
