// Slices of a data set as users of Hugging Face's `datasets` write them:
//   "train"  "train[:1000]"  "[10%:20%]"  "train[-100:]"  "train+validation"
#ifndef SWITCHYARD_WORKER_PREP_SPLIT_H_
#define SWITCHYARD_WORKER_PREP_SPLIT_H_

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace switchyard {

struct SplitBound {
  int64_t value = 0;  // negative: from the end
  bool percent = false;
};

// One part between '+' signs.
struct SplitPart {
  std::string name;  // empty: whatever the path holds
  std::optional<SplitBound> begin;
  std::optional<SplitBound> end;

  // True when the slice can be taken without knowing how many rows there are.
  bool IsAbsolute() const;
  // The rows [first, second) of `num_rows`, clamped; percentages are rounded to the nearest row, as
  // `datasets` does by default.
  std::pair<int64_t, int64_t> Resolve(int64_t num_rows) const;
};

// An empty text is one part without name or bounds. Errors: InvalidArgument, with the text.
absl::StatusOr<std::vector<SplitPart>> ParseSplit(const std::string& text);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_PREP_SPLIT_H_
