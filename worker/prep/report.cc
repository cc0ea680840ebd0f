#include "worker/prep/report.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace switchyard {
namespace {

Json SetJson(const DatasetReport& set) {
  Json histogram = Json::array();
  for (const auto& [up_to, count] : set.length_histogram) {
    histogram.push_back({{"up_to", up_to}, {"count", count}});
  }
  return Json{{"rows", set.rows},
              {"documents", set.documents},
              {"packed_rows", set.packed_rows},
              {"tokens", set.tokens},
              {"supervised_tokens", set.supervised_tokens},
              {"dropped_overlong", set.dropped_overlong},
              {"truncated", set.truncated},
              {"dropped_unsupervised", set.dropped_unsupervised},
              {"malformed", set.malformed},
              {"malformed_examples", set.malformed_examples},
              {"padding_share_unpacked", set.PaddingUnpacked()},
              {"row_fill", set.RowFill()},
              {"length_histogram", histogram},
              {"longest", set.longest},
              {"row_length", set.row_length},
              {"format", set.format},
              {"files", set.files},
              {"warnings", set.warnings}};
}

std::string Percent(double share) { return absl::StrFormat("%.1f%%", 100.0 * share); }

void AppendSet(const DatasetReport& set, const std::string& packing, std::string* out) {
  const auto line = [out](absl::string_view name, const std::string& value) {
    absl::StrAppendFormat(out, "  %-22s %s\n", name, value);
  };
  absl::StrAppend(out, set.name, "\n");
  std::string files = absl::StrJoin(
      set.files.begin(), set.files.begin() + std::min<size_t>(3, set.files.size()), ", ");
  if (set.files.size() > 3) absl::StrAppend(&files, ", and ", set.files.size() - 3, " more");
  line("files", files);
  line("format", set.format);
  line("rows", absl::StrCat(set.rows));
  line("malformed rows", absl::StrCat(set.malformed));
  for (const std::string& example : set.malformed_examples) {
    absl::StrAppend(out, "    ", example, "\n");
  }
  if (set.malformed > static_cast<int64_t>(set.malformed_examples.size())) {
    absl::StrAppend(out, "    and ", set.malformed - set.malformed_examples.size(), " more\n");
  }
  line("without a target", absl::StrCat(set.dropped_unsupervised, " (dropped)"));
  line("too long", absl::StrCat(set.truncated, " truncated, ", set.dropped_overlong, " dropped"));
  line("documents kept", absl::StrCat(set.documents));
  const double supervised =
      set.tokens == 0 ? 0.0 : static_cast<double>(set.supervised_tokens) / set.tokens;
  line("tokens", absl::StrCat(set.tokens));
  line("learnt tokens", absl::StrCat(set.supervised_tokens, " (", Percent(supervised), ")"));
  line("padding, unpacked", Percent(set.PaddingUnpacked()) + " (each padded to the longest)");
  line("padding, as set",
       absl::StrCat(Percent(1.0 - set.RowFill()), " (", set.packed_rows, " rows of ",
                    set.row_length, " tokens, packing ", packing, ")"));
  line("lengths in tokens", absl::StrCat("longest ", set.longest));
  int64_t most = 1;
  for (const auto& [up_to, count] : set.length_histogram) most = std::max(most, count);
  for (const auto& [up_to, count] : set.length_histogram) {
    absl::StrAppendFormat(out, "    up to %7d %9d %s\n", up_to, count,
                          std::string((count * 40 + most - 1) / most, '#'));
  }
  for (const std::string& warning : set.warnings)
    absl::StrAppend(out, "  warning: ", warning, "\n");
}

}  // namespace

double DatasetReport::PaddingUnpacked() const {
  const int64_t capacity = documents * longest_kept;
  return capacity == 0 ? 0.0 : 1.0 - static_cast<double>(tokens) / static_cast<double>(capacity);
}

double DatasetReport::RowFill() const {
  const int64_t capacity = packed_rows * row_length;
  return capacity == 0 ? 0.0 : static_cast<double>(tokens) / static_cast<double>(capacity);
}

void AddLength(DatasetReport* report, int64_t tokens) {
  auto& histogram = report->length_histogram;
  int64_t up_to = 16;
  while (up_to < tokens) up_to *= 2;
  report->longest = std::max(report->longest, tokens);
  if (histogram.empty()) histogram.emplace_back(up_to, 0);
  while (histogram.front().first > up_to) {
    histogram.insert(histogram.begin(), {histogram.front().first / 2, 0});
  }
  while (histogram.back().first < up_to) histogram.emplace_back(histogram.back().first * 2, 0);
  for (auto& [bound, count] : histogram) {
    if (bound == up_to) ++count;
  }
}

Json ReportJson(const PrepReport& report) {
  Json validation = Json::object();
  for (const DatasetReport& set : report.validation) validation[set.name] = SetJson(set);
  return Json{{"train", SetJson(report.train)},
              {"validation", validation},
              {"fingerprint", report.fingerprint}};
}

std::string ReportText(const PrepReport& report, const std::string& packing) {
  std::string out;
  AppendSet(report.train, packing, &out);
  for (const DatasetReport& set : report.validation) AppendSet(set, packing, &out);
  return out;
}

}  // namespace switchyard
