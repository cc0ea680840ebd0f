#include "worker/prep/flags.h"

#include <algorithm>
#include <numeric>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status_macros.h"

namespace switchyard {
namespace {

// Levenshtein.
size_t EditDistance(absl::string_view a, absl::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), 0);
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t above = row[j];
      row[j] = std::min({above + 1, row[j - 1] + 1, diagonal + (a[i - 1] == b[j - 1] ? 0 : 1)});
      diagonal = above;
    }
  }
  return row.back();
}

}  // namespace

void FlagSet::Text(const char* name, std::string* value, const char* help, bool required) {
  flags_.push_back({name, Arity::kOne, required, *value, help, [value](const std::string& text) {
                      *value = text;
                      return absl::OkStatus();
                    }});
}

void FlagSet::List(const char* name, std::vector<std::string>* value, const char* help,
                   bool required) {
  flags_.push_back({name, Arity::kMany, required, "", help, [value](const std::string& text) {
                      value->push_back(text);
                      return absl::OkStatus();
                    }});
}

void FlagSet::Switch(const char* name, bool* value, const char* help) {
  flags_.push_back({name, Arity::kNone, false, "", help, [value](const std::string&) {
                      *value = true;
                      return absl::OkStatus();
                    }});
}

void FlagSet::Integer(const char* name, int64_t* value, int64_t smallest, const char* help) {
  flags_.push_back({name, Arity::kOne, false, absl::StrCat(*value), help,
                    [value, smallest](const std::string& text) {
                      if (absl::SimpleAtoi(text, value) && *value >= smallest) {
                        return absl::OkStatus();
                      }
                      return absl::InvalidArgumentError(absl::StrCat(
                          "'", text, "' is not a whole number from ", smallest, " on"));
                    }});
}

void FlagSet::Parsed(const char* name, const std::string& shown_default, const char* help,
                     std::function<absl::Status(const std::string&)> parse) {
  flags_.push_back({name, Arity::kOne, false, shown_default, help, std::move(parse)});
}

FlagSet::Flag* FlagSet::Find(absl::string_view name) {
  for (Flag& flag : flags_) {
    if (flag.name == name) return &flag;
  }
  return nullptr;
}

std::string FlagSet::Nearest(absl::string_view name) const {
  const Flag* nearest = nullptr;
  size_t least = 1 + name.size() / 2;
  for (const Flag& flag : flags_) {
    const size_t distance = EditDistance(name, flag.name);
    if (distance < least) {
      least = distance;
      nearest = &flag;
    }
  }
  return nearest == nullptr ? "; see --help"
                            : absl::StrCat("; did you mean --", nearest->name, "?");
}

absl::Status FlagSet::Parse(const std::vector<std::string>& arguments) {
  size_t i = 0;
  while (i < arguments.size()) {
    absl::string_view word = arguments[i++];
    if (!absl::StartsWith(word, "--")) {
      return absl::InvalidArgumentError(
          absl::StrCat(usage_, ": stray argument '", word, "'; see --help"));
    }
    word.remove_prefix(2);
    const size_t equals = word.find('=');
    const absl::string_view name = word.substr(0, equals);
    Flag* flag = Find(name);
    if (flag == nullptr) {
      return absl::InvalidArgumentError(
          absl::StrCat(usage_, ": unknown flag --", name, Nearest(name)));
    }
    std::vector<std::string> values;
    if (equals != absl::string_view::npos) values.emplace_back(word.substr(equals + 1));
    const auto take = [&] {
      while (i < arguments.size() && !absl::StartsWith(arguments[i], "--")) {
        values.push_back(arguments[i++]);
        if (flag->arity == Arity::kOne) break;
      }
    };
    if (values.empty() && flag->arity != Arity::kNone) take();
    if (values.empty() != (flag->arity == Arity::kNone)) {
      return absl::InvalidArgumentError(
          absl::StrCat(usage_, ": --", name,
                       flag->arity == Arity::kNone ? " takes no value" : " needs a value"));
    }
    if (values.empty()) values.emplace_back();
    for (const std::string& value : values) {
      if (absl::Status status = flag->set(value); !status.ok()) {
        return absl::InvalidArgumentError(
            absl::StrCat(usage_, ": --", name, ": ", status.message()));
      }
    }
    flag->seen = true;
  }
  for (const Flag& flag : flags_) {
    if (flag.required && !flag.seen) {
      return absl::InvalidArgumentError(
          absl::StrCat(usage_, ": --", flag.name, " is required; see --help"));
    }
  }
  return absl::OkStatus();
}

std::string FlagSet::Help() const {
  std::string out = absl::StrCat(usage_, " [flags]\n\n", about_, "\n\n");
  for (const Flag& flag : flags_) {
    const char* value = flag.arity == Arity::kNone  ? ""
                        : flag.arity == Arity::kOne ? " X"
                                                    : " X...";
    absl::StrAppendFormat(&out, "  %-28s %s", absl::StrCat("--", flag.name, value), flag.help);
    if (flag.required) absl::StrAppend(&out, " (required)");
    if (!flag.shown_default.empty()) absl::StrAppend(&out, " (default: ", flag.shown_default, ")");
    out += "\n";
  }
  return out;
}

}  // namespace switchyard
