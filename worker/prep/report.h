// What prep found in a data set, for programs (report.json) and for people.
#ifndef SWITCHYARD_WORKER_PREP_REPORT_H_
#define SWITCHYARD_WORKER_PREP_REPORT_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "base/json.h"

namespace switchyard {

struct DatasetReport {
  std::string name;
  std::vector<std::string> files;
  std::string format;     // as detected or told
  int64_t rows = 0;       // chosen by split and limit_rows, malformed ones included
  int64_t documents = 0;  // kept
  int64_t packed_rows = 0;
  int64_t tokens = 0;  // of kept documents
  int64_t supervised_tokens = 0;
  int64_t dropped_overlong = 0;                 // documents
  int64_t truncated = 0;                        // documents, kept
  int64_t dropped_unsupervised = 0;             // documents without a single target
  int64_t malformed = 0;                        // rows
  std::vector<std::string> malformed_examples;  // "file:line: why", the first kMaxExamples
  std::vector<std::string> warnings;
  int64_t row_length = 0;  // tokens a row holds; 0: the longest document
  int64_t longest = 0;     // tokens, before truncation
  // (up_to, count): documents of at most up_to tokens and more than the entry before, before
  // truncation; ascending, without empty entries at either end.
  std::vector<std::pair<int64_t, int64_t>> length_histogram;
  int64_t longest_kept = 0;

  static constexpr size_t kMaxExamples = 20;

  // Padding if every document were padded to the longest kept one, as a share of all positions.
  double PaddingUnpacked() const;
  // Real tokens as a share of the rows' capacity.
  double RowFill() const;
};

// Counts one document's length.
void AddLength(DatasetReport* report, int64_t tokens);

struct PrepReport {
  DatasetReport train;
  std::vector<DatasetReport> validation;
  std::string fingerprint;
};

// report.json of docs/contracts.md; it also has the keys files, format, warnings, row_length and
// longest of each set.
Json ReportJson(const PrepReport& report);
std::string ReportText(const PrepReport& report, const std::string& packing);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_PREP_REPORT_H_
