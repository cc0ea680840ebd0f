#include "client/output.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/log.h"
#include "google/protobuf/util/json_util.h"

namespace switchyard {
namespace {

// A string that YAML reads back as that string without quotes.
bool IsPlainYaml(const std::string& text) {
  if (text.empty() || text.size() > 200) return false;
  for (char c : text) {
    if (!absl::ascii_isalnum(c) && !absl::StrContains("_-./", c)) return false;
  }
  if (!absl::ascii_isalpha(text[0]) && text[0] != '/') return false;
  for (const char* word : {"true", "false", "yes", "no", "on", "off", "null", "none", "y", "n"}) {
    if (absl::EqualsIgnoreCase(text, word)) return false;
  }
  double number = 0;
  return !absl::SimpleAtod(text, &number);  // "nan", "inf"
}

std::string YamlScalar(const Json& value) {
  if (value.is_string()) {
    const auto& text = value.get_ref<const std::string&>();
    if (IsPlainYaml(text)) return text;
  }
  return DumpJson(value);  // JSON's scalars are YAML's
}

void AppendYaml(const Json& value, int indent, std::string& out) {
  const std::string pad(static_cast<size_t>(indent), ' ');
  if (value.is_object()) {
    for (const auto& [key, child] : value.items()) {
      absl::StrAppend(&out, pad, YamlScalar(Json(key)), ":");
      if (child.is_structured() && !child.empty()) {
        absl::StrAppend(&out, "\n");
        AppendYaml(child, indent + 2, out);
      } else {
        absl::StrAppend(&out, " ", YamlScalar(child), "\n");
      }
    }
  } else {
    for (const Json& child : value) {
      if (child.is_structured() && !child.empty()) {
        std::string nested;
        AppendYaml(child, indent + 2, nested);
        // The first line of the child stands behind the dash.
        absl::StrAppend(&out, pad, "- ", nested.substr(static_cast<size_t>(indent) + 2));
      } else {
        absl::StrAppend(&out, pad, "- ", YamlScalar(child), "\n");
      }
    }
  }
}

// Columns that `text` takes: bytes that start a UTF-8 character.
size_t Columns(absl::string_view text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

}  // namespace

Json MessageToJson(const google::protobuf::Message& message) {
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  options.always_print_primitive_fields = true;
  std::string text;
  const auto status = google::protobuf::util::MessageToJsonString(message, &text, options);
  SY_CHECK(status.ok()) << status.ToString();
  absl::StatusOr<Json> json = ParseJson(text, message.GetTypeName());
  SY_CHECK(json.ok()) << json.status();
  return *std::move(json);
}

std::string Print(const Json& value, Format format) {
  if (format == Format::kJson) return absl::StrCat(DumpJson(value, 2), "\n");
  if (!value.is_structured() || value.empty()) return absl::StrCat(YamlScalar(value), "\n");
  std::string out;
  AppendYaml(value, 0, out);
  return out;
}

std::string Table(const std::vector<std::string>& header,
                  const std::vector<std::vector<std::string>>& rows) {
  std::vector<size_t> widths;
  for (const std::string& cell : header) widths.push_back(Columns(cell));
  for (const auto& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], Columns(row[i]));
  }
  std::string out;
  const auto append = [&](const std::vector<std::string>& row) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      absl::StrAppend(&line, row[i]);
      if (i + 1 < row.size()) line.append(widths[i] - Columns(row[i]) + 2, ' ');
    }
    absl::StrAppend(&out, absl::StripTrailingAsciiWhitespace(line), "\n");
  };
  append(header);
  for (const auto& row : rows) append(row);
  return out;
}

std::string HumanBytes(int64_t bytes) {
  if (bytes < 1000) return absl::StrCat(bytes, " B");
  double value = static_cast<double>(bytes);
  const char* const units[] = {"B", "kB", "MB", "GB", "TB", "PB"};
  size_t unit = 0;
  while (value >= 999.95 && unit + 1 < sizeof(units) / sizeof(units[0])) {
    value /= 1000;
    ++unit;
  }
  return absl::StrFormat("%.1f %s", value, units[unit]);
}

std::string HumanCount(double count) {
  if (count < 1000) return absl::StrFormat("%.0f", count);
  if (count < 999950) return absl::StrFormat("%.1fk", count / 1e3);
  if (count < 999950e3) return absl::StrFormat("%.1fM", count / 1e6);
  return absl::StrFormat("%.1fG", count / 1e9);
}

std::string HumanDuration(absl::Duration duration) {
  const int64_t seconds = std::max<int64_t>(0, absl::ToInt64Seconds(duration));
  if (seconds < 60) return absl::StrCat(seconds, "s");
  if (seconds < 3600) return absl::StrFormat("%dm%02ds", seconds / 60, seconds % 60);
  if (seconds < 86400) return absl::StrFormat("%dh%02dm", seconds / 3600, seconds / 60 % 60);
  return absl::StrFormat("%dd%02dh", seconds / 86400, seconds / 3600 % 24);
}

std::string HumanAge(const google::protobuf::Timestamp& time, absl::Time now) {
  if (time.seconds() == 0) return "-";
  return absl::StrCat(HumanDuration(now - absl::FromUnixSeconds(time.seconds())), " ago");
}

std::string HumanLoss(double loss) {
  return std::isfinite(loss) ? absl::StrFormat("%.4f", loss) : "not finite";
}

std::string ShortName(absl::string_view name) {
  const size_t slash = name.rfind('/');
  return std::string(slash == absl::string_view::npos ? name : name.substr(slash + 1));
}

}  // namespace switchyard
