// From what a user wrote (files, folders, globs, a split's name) to files, and from files to rows.
#ifndef SWITCHYARD_WORKER_PREP_FILES_H_
#define SWITCHYARD_WORKER_PREP_FILES_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "worker/text/text_cc.h"

namespace switchyard {

// The data files behind `paths`, each path's in bytewise order of name. A folder means the data
// files below it (.jsonl .ndjson .json .parquet .txt, with .gz or .zst after them), hidden ones and
// other files left out. With a `split_name` a folder gives the files that belong to that split:
// below a folder of that name, or whose name starts with it ("train-00000-of-00002.parquet");
// "validation" also finds valid, val and dev. A folder without any such file is taken whole, unless
// it has files of another split.
// Errors: NotFound: nothing there. InvalidArgument: a file of a kind that is not read.
absl::StatusOr<std::vector<std::string>> ResolveFiles(const std::vector<std::string>& paths,
                                                      const std::string& split_name);

struct RawRow {
  absl::string_view text;  // JSON of one row, or a line of a .txt file; until the next Next()
  int64_t line = 0;        // from 1: line of the file; row of a parquet file or of a JSON object
};

// The rows of one file, one after the other. JSON lines and .txt: a row per line that is not blank;
// a byte order mark and carriage returns are dropped. .json: the elements of the top-level array,
// or of "data" or "train" of a top-level object, or JSON lines. One thread.
class RowReader {
 public:
  // Errors: NotFound; InvalidArgument.
  static absl::StatusOr<std::unique_ptr<RowReader>> Open(const std::string& path);
  // nullopt at the end. Errors: DataLoss: damaged archive; InvalidArgument: a .json file that is no
  // list of rows.
  absl::StatusOr<std::optional<RawRow>> Next();
  bool is_text() const { return is_text_; }

 private:
  RowReader(ByteSource source, std::string path) : source_(std::move(source)), path_(path) {}
  absl::StatusOr<bool> Fill();
  absl::Status LoadJsonDocument();
  absl::StatusOr<std::optional<RawRow>> NextLine();
  absl::StatusOr<std::optional<RawRow>> NextElement();

  ByteSource source_;
  std::string path_;
  bool is_text_ = false;
  bool in_array_ = false;  // buffer_ holds a whole .json file, at_ is inside its top-level array
  bool from_object_ = false;
  std::string buffer_;
  size_t at_ = 0;
  bool at_end_ = false;
  int64_t line_ = 0;
  std::vector<std::string> elements_;  // rows taken out of a top-level object
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_PREP_FILES_H_
