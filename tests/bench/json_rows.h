// Rows of a benchmark for programs: one JSON object per line.
#ifndef SWITCHYARD_TESTS_BENCH_JSON_ROWS_H_
#define SWITCHYARD_TESTS_BENCH_JSON_ROWS_H_

#include <fstream>
#include <stdexcept>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/json.h"

namespace switchyard::bench {

class JsonRows {
 public:
  // Empty: rows go nowhere. Throws when the file cannot be written.
  explicit JsonRows(const std::string& file) {
    if (file.empty()) return;
    out_.open(file);
    if (!out_) throw std::runtime_error(absl::StrCat(file, ": cannot be written"));
  }
  void Add(const Json& row) {
    if (out_.is_open()) out_ << DumpJson(row) << '\n' << std::flush;
  }

 private:
  std::ofstream out_;
};

}  // namespace switchyard::bench

#endif  // SWITCHYARD_TESTS_BENCH_JSON_ROWS_H_
