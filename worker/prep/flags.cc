#include "worker/prep/flags.h"

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/edit_distance.h"
#include "base/status_macros.h"

namespace switchyard {

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
  std::vector<std::string> names;
  for (const Flag& flag : flags_) names.push_back(flag.name);
  const std::string nearest = switchyard::Nearest(name, names);
  return nearest.empty() ? "; see --help" : absl::StrCat("; did you mean --", nearest, "?");
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
