#include "base/json.h"

#include <cmath>
#include <limits>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/fd.h"
#include "base/status_macros.h"

namespace switchyard {
namespace {

// Replaces NaN, Infinity and -Infinity outside strings by null, keeping every byte's place.
std::string ReplaceBareWords(absl::string_view text) {
  std::string out(text);
  bool in_string = false;
  for (size_t i = 0; i < out.size(); ++i) {
    if (in_string) {
      if (out[i] == '\\')
        ++i;
      else if (out[i] == '"')
        in_string = false;
      continue;
    }
    if (out[i] == '"') in_string = true;
    for (absl::string_view word : {"NaN", "Infinity", "-Infinity"}) {
      if (absl::string_view(out).substr(i, word.size()) != word) continue;
      std::string null_text = "null";
      null_text.resize(std::max(word.size(), null_text.size()), ' ');
      out.replace(i, word.size(), null_text);
      i += null_text.size() - 1;
      break;
    }
  }
  return out;
}

std::string Shown(const Json& value) {
  std::string text = DumpJson(value);
  if (text.size() > 40) text = text.substr(0, 37) + "...";
  return text;
}

absl::Status WrongType(absl::string_view key, absl::string_view wanted, const Json& value) {
  return absl::InvalidArgumentError(
      absl::StrCat("key '", key, "': expected ", wanted, ", got ", Shown(value)));
}

bool Convert(const Json& value, bool* out) {
  if (!value.is_boolean()) return false;
  *out = value.get<bool>();
  return true;
}

bool Convert(const Json& value, int64_t* out) {
  if (value.is_number_unsigned()) {
    const uint64_t u = value.get<uint64_t>();
    if (u > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return false;
    *out = static_cast<int64_t>(u);
    return true;
  }
  if (value.is_number_integer()) {
    *out = value.get<int64_t>();
    return true;
  }
  if (value.is_number_float()) {
    const double d = value.get<double>();
    if (d != std::floor(d) || std::abs(d) > 9e15) return false;
    *out = static_cast<int64_t>(d);
    return true;
  }
  return value.is_string() && absl::SimpleAtoi(value.get_ref<const std::string&>(), out);
}

bool Convert(const Json& value, double* out) {
  if (value.is_number()) {
    *out = value.get<double>();
    return true;
  }
  if (!value.is_string()) return false;
  const std::string& text = value.get_ref<const std::string&>();
  if (text == "NaN")
    *out = std::numeric_limits<double>::quiet_NaN();
  else if (text == "Infinity")
    *out = std::numeric_limits<double>::infinity();
  else if (text == "-Infinity")
    *out = -std::numeric_limits<double>::infinity();
  else
    return false;
  return true;
}

bool Convert(const Json& value, std::string* out) {
  if (!value.is_string()) return false;
  *out = value.get_ref<const std::string&>();
  return true;
}

template <typename T>
bool Convert(const Json& value, std::vector<T>* out) {
  if (!value.is_array()) return false;
  out->clear();
  for (const Json& item : value) {
    T converted;
    if (!Convert(item, &converted)) return false;
    out->push_back(std::move(converted));
  }
  return true;
}

template <typename T>
constexpr absl::string_view kTypeName = "";
template <>
constexpr absl::string_view kTypeName<bool> = "true or false";
template <>
constexpr absl::string_view kTypeName<int64_t> = "an integer";
template <>
constexpr absl::string_view kTypeName<double> = "a number";
template <>
constexpr absl::string_view kTypeName<std::string> = "a string";
template <>
constexpr absl::string_view kTypeName<std::vector<int64_t>> = "a list of integers";
template <>
constexpr absl::string_view kTypeName<std::vector<double>> = "a list of numbers";
template <>
constexpr absl::string_view kTypeName<std::vector<std::string>> = "a list of strings";

}  // namespace

absl::StatusOr<Json> ParseJson(absl::string_view text, absl::string_view what) {
  Json value = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!value.is_discarded()) return value;
  const std::string replaced = ReplaceBareWords(text);
  if (replaced != text) {
    value = Json::parse(replaced, nullptr, /*allow_exceptions=*/false);
    if (!value.is_discarded()) return value;
  }
  // Where: the longest prefix that the SAX parser accepted.
  struct Locator : nlohmann::json_sax<Json> {
    size_t position = 0;
    bool null() override { return true; }
    bool boolean(bool) override { return true; }
    bool number_integer(number_integer_t) override { return true; }
    bool number_unsigned(number_unsigned_t) override { return true; }
    bool number_float(number_float_t, const string_t&) override { return true; }
    bool string(string_t&) override { return true; }
    bool binary(binary_t&) override { return true; }
    bool start_object(size_t) override { return true; }
    bool key(string_t&) override { return true; }
    bool end_object() override { return true; }
    bool start_array(size_t) override { return true; }
    bool end_array() override { return true; }
    bool parse_error(size_t at, const std::string&, const nlohmann::detail::exception&) override {
      position = at;
      return false;
    }
  } locator;
  Json::sax_parse(text, &locator);
  return absl::InvalidArgumentError(absl::StrCat("parse ", what, ": not valid JSON at byte ",
                                                 locator.position, " of ", text.size()));
}

absl::StatusOr<Json> ReadJsonFile(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  return ParseJson(text, path);
}

std::string DumpJson(const Json& value, int indent) {
  return value.dump(indent, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace);
}

const Json* JsonFind(const Json& object, absl::string_view key) {
  if (!object.is_object()) return nullptr;
  const auto it = object.find(std::string(key));
  return it == object.end() || it->is_null() ? nullptr : &*it;
}

template <typename T>
absl::StatusOr<T> JsonGet(const Json& object, absl::string_view key) {
  const Json* value = JsonFind(object, key);
  if (value == nullptr) return absl::NotFoundError(absl::StrCat("key '", key, "' is missing"));
  T out;
  if (!Convert(*value, &out)) return WrongType(key, kTypeName<T>, *value);
  return out;
}

template absl::StatusOr<bool> JsonGet(const Json&, absl::string_view);
template absl::StatusOr<int64_t> JsonGet(const Json&, absl::string_view);
template absl::StatusOr<double> JsonGet(const Json&, absl::string_view);
template absl::StatusOr<std::string> JsonGet(const Json&, absl::string_view);
template absl::StatusOr<std::vector<int64_t>> JsonGet(const Json&, absl::string_view);
template absl::StatusOr<std::vector<double>> JsonGet(const Json&, absl::string_view);
template absl::StatusOr<std::vector<std::string>> JsonGet(const Json&, absl::string_view);

}  // namespace switchyard
