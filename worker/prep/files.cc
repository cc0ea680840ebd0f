#include "worker/prep/files.h"

#include <glob.h>

#include <algorithm>
#include <filesystem>
#include <system_error>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/json.h"
#include "base/status_macros.h"
#include "worker/prep/row_json.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

constexpr absl::string_view kKinds = ".jsonl .ndjson .json .parquet .txt, optionally .gz or .zst";
constexpr size_t kChunkBytes = 1 << 20;

// ".jsonl" of "x.jsonl.gz"; empty for a kind that is not read.
absl::string_view DataKind(absl::string_view name) {
  if (!absl::ConsumeSuffix(&name, ".gz")) absl::ConsumeSuffix(&name, ".zst");
  for (const absl::string_view kind : {".jsonl", ".ndjson", ".json", ".parquet", ".txt"}) {
    if (absl::EndsWith(name, kind)) return kind;
  }
  return "";
}

// Files of other sorts that lie beside data in published repositories.
bool IsSideFile(absl::string_view name) {
  return name == "dataset_infos.json" || name == "dataset_info.json" || name == "state.json" ||
         name == "config.json" || name == "LICENSE.txt" || name == "requirements.txt";
}

const std::vector<std::vector<absl::string_view>>& SplitNames() {
  static const auto* names = new std::vector<std::vector<absl::string_view>>{
      {"train", "training"},
      {"validation", "valid", "val", "dev"},
      {"test", "testing", "eval", "evaluation"},
  };
  return *names;
}

std::vector<absl::string_view> Aliases(absl::string_view split_name) {
  for (const auto& names : SplitNames()) {
    if (std::find(names.begin(), names.end(), split_name) != names.end()) return names;
  }
  return {split_name};
}

// True when a component of the relative path is `name` or starts with it and a separator.
bool BelongsTo(absl::string_view relative, absl::string_view name) {
  for (absl::string_view component : absl::StrSplit(relative, '/')) {
    if (!absl::ConsumePrefix(&component, name)) continue;
    if (component.empty() || absl::StrContains(".-_", component[0])) return true;
  }
  return false;
}

bool BelongsToAny(absl::string_view relative, const std::vector<absl::string_view>& names) {
  return std::any_of(names.begin(), names.end(),
                     [&](absl::string_view name) { return BelongsTo(relative, name); });
}

absl::StatusOr<std::vector<std::string>> ListFolder(const std::string& folder,
                                                    const std::string& split_name) {
  std::vector<std::string> relative;
  std::error_code error;
  fs::recursive_directory_iterator it(folder, fs::directory_options::follow_directory_symlink,
                                      error);
  for (; !error && it != fs::recursive_directory_iterator(); it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (name[0] == '.') {
      it.disable_recursion_pending();
      continue;
    }
    std::error_code ignored;
    if (it->is_regular_file(ignored) && !DataKind(name).empty() && !IsSideFile(name)) {
      relative.push_back(it->path().lexically_relative(folder).string());
    }
  }
  if (error) {
    return absl::NotFoundError(absl::StrCat("list ", folder, ": ", error.message()));
  }
  std::sort(relative.begin(), relative.end());
  if (!split_name.empty()) {
    std::vector<std::string> chosen;
    bool other_split = false;
    for (const std::string& path : relative) {
      if (BelongsToAny(path, Aliases(split_name))) chosen.push_back(path);
      for (const auto& names : SplitNames()) other_split |= BelongsToAny(path, names);
    }
    if (chosen.empty() && other_split) {
      return absl::NotFoundError(absl::StrCat("list ", folder, ": no file of split '", split_name,
                                              "' among ", relative.size(), " data files"));
    }
    if (!chosen.empty()) relative = std::move(chosen);
  }
  if (relative.empty()) {
    return absl::NotFoundError(absl::StrCat("list ", folder, ": no data files (", kKinds, ")"));
  }
  for (std::string& path : relative) path = (fs::path(folder) / path).string();
  return relative;
}

absl::StatusOr<std::vector<std::string>> Glob(const std::string& pattern) {
  glob_t found;
  const int code = glob(pattern.c_str(), GLOB_NOSORT | GLOB_BRACE | GLOB_TILDE, nullptr, &found);
  std::vector<std::string> paths;
  if (code == 0) paths.assign(found.gl_pathv, found.gl_pathv + found.gl_pathc);
  globfree(&found);
  if (paths.empty()) return absl::NotFoundError(absl::StrCat("no file matches ", pattern));
  std::sort(paths.begin(), paths.end());
  return paths;
}

absl::string_view StripLine(absl::string_view line) {
  absl::ConsumeSuffix(&line, "\r");
  return line;
}

bool IsBlank(absl::string_view line) { return absl::StripAsciiWhitespace(line).empty(); }

}  // namespace

absl::StatusOr<std::vector<std::string>> ResolveFiles(const std::vector<std::string>& paths,
                                                      const std::string& split_name) {
  std::vector<std::string> files;
  for (const std::string& path : paths) {
    std::error_code ignored;
    std::vector<std::string> places = {path};
    if (!fs::exists(path, ignored) && path.find_first_of("*?[{~") != std::string::npos) {
      ASSIGN_OR_RETURN(places, Glob(path));
    }
    for (const std::string& place : places) {
      if (fs::is_directory(place, ignored)) {
        ASSIGN_OR_RETURN(const std::vector<std::string> below, ListFolder(place, split_name));
        files.insert(files.end(), below.begin(), below.end());
        continue;
      }
      if (!fs::exists(place, ignored)) {
        return absl::NotFoundError(absl::StrCat("open ", place, ": no such file or folder"));
      }
      if (DataKind(place).empty()) {
        return absl::InvalidArgumentError(
            absl::StrCat("open ", place, ": not a kind of file that is read (", kKinds, ")"));
      }
      files.push_back(place);
    }
  }
  return files;
}

absl::StatusOr<std::unique_ptr<RowReader>> RowReader::Open(const std::string& path) {
  ASSIGN_OR_RETURN(ByteSource source, ByteSource::Open(path));
  const absl::string_view kind = DataKind(path);
  if ((kind == ".parquet") != source.is_parquet()) {
    return absl::InvalidArgumentError(absl::StrCat("open ", path, ": its content is ",
                                                   source.is_parquet() ? "" : "not ", "parquet"));
  }
  std::unique_ptr<RowReader> reader(new RowReader(std::move(source), path));
  reader->is_text_ = kind == ".txt";
  if (!reader->source_.is_parquet()) {
    ASSIGN_OR_RETURN(const bool more, reader->Fill());
    (void)more;
    if (absl::StartsWith(reader->buffer_, "\xef\xbb\xbf")) reader->at_ = 3;
  }
  if (kind == ".json") RETURN_IF_ERROR(reader->LoadJsonDocument());
  return reader;
}

// False at the end of the file. What was consumed is dropped first.
absl::StatusOr<bool> RowReader::Fill() {
  if (at_end_) return false;
  buffer_.erase(0, at_);
  at_ = 0;
  // Grows with the line, so that a huge one is not scanned again and again.
  ASSIGN_OR_RETURN(const size_t count,
                   source_.Read(std::max(kChunkBytes, buffer_.size()), &buffer_));
  at_end_ = count == 0;
  return !at_end_;
}

absl::Status RowReader::LoadJsonDocument() {
  while (true) {
    ASSIGN_OR_RETURN(const bool more, Fill());
    if (!more) break;
  }
  const size_t first = buffer_.find_first_not_of(" \t\r\n", at_);
  if (first == std::string::npos) return absl::OkStatus();
  if (buffer_[first] == '[') {
    line_ = 1 + std::count(buffer_.begin(), buffer_.begin() + first, '\n');
    at_ = first + 1;
    in_array_ = true;
    return absl::OkStatus();
  }
  const absl::StatusOr<Json> whole = ParseRowJson(absl::string_view(buffer_).substr(at_), path_);
  if (!whole.ok() || !whole->is_object()) return absl::OkStatus();  // JSON lines, faults by line
  for (const char* key : {"data", "train"}) {
    const Json* rows = JsonFind(*whole, key);
    if (rows == nullptr || !rows->is_array()) continue;
    for (const Json& row : *rows) elements_.push_back(DumpJson(row));
    from_object_ = true;
    return absl::OkStatus();
  }
  // One object over several lines is one row.
  elements_.push_back(buffer_.substr(at_));
  from_object_ = true;
  return absl::OkStatus();
}

absl::StatusOr<std::optional<RawRow>> RowReader::Next() {
  if (in_array_) return NextElement();
  if (!from_object_) return NextLine();
  if (line_ == static_cast<int64_t>(elements_.size())) return std::nullopt;
  const std::string& element = elements_[line_++];
  return RawRow{element, line_};
}

absl::StatusOr<std::optional<RawRow>> RowReader::NextLine() {
  size_t searched = at_;
  while (true) {
    const size_t end = buffer_.find('\n', searched);
    if (end != std::string::npos) {
      const absl::string_view line = StripLine(absl::string_view(buffer_).substr(at_, end - at_));
      at_ = end + 1;
      searched = at_;
      ++line_;
      if (!IsBlank(line)) return RawRow{line, line_};
      continue;
    }
    const size_t kept = buffer_.size() - at_;
    ASSIGN_OR_RETURN(const bool more, Fill());
    if (more) {
      searched = kept;
      continue;
    }
    const absl::string_view line = StripLine(absl::string_view(buffer_).substr(at_));
    at_ = buffer_.size();
    if (IsBlank(line)) return std::nullopt;
    return RawRow{line, ++line_};
  }
}

// Cuts the next element out of the top-level array by brackets and strings alone; what is inside is
// checked when the row is parsed.
absl::StatusOr<std::optional<RawRow>> RowReader::NextElement() {
  const auto fault = [&](absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat(path_, ":", line_, ": ", what));
  };
  size_t i = at_;
  for (; i < buffer_.size(); ++i) {  // to the element's first byte
    const char c = buffer_[i];
    if (c == '\n') ++line_;
    if (absl::ascii_isspace(c) || c == ',') continue;
    break;
  }
  if (i == buffer_.size()) return fault("the top-level array has no end: the file is cut off");
  if (buffer_[i] == ']') {
    if (!IsBlank(absl::string_view(buffer_).substr(i + 1))) {
      return fault("text after the end of the top-level array");
    }
    at_ = i;
    return std::nullopt;
  }
  const size_t begin = i;
  const int64_t line = line_;
  int depth = 0;
  bool in_string = false;
  for (; i < buffer_.size(); ++i) {
    const char c = buffer_[i];
    if (c == '\n') ++line_;
    if (in_string) {
      if (c == '\\') ++i;
      in_string = c != '"';
      continue;
    }
    if (c == '"') in_string = true;
    if (c == '{' || c == '[') ++depth;
    if (depth == 0 && (c == ',' || c == ']')) break;
    if (c == '}' || c == ']') --depth;
  }
  if (i >= buffer_.size()) {
    return fault(absl::StrCat("the row that starts on line ", line, " has no end"));
  }
  at_ = i;
  return RawRow{
      absl::StripTrailingAsciiWhitespace(absl::string_view(buffer_).substr(begin, i - begin)),
      line};
}

}  // namespace switchyard
