// The nearest known word, for "did you mean".
#ifndef SWITCHYARD_BASE_EDIT_DISTANCE_H_
#define SWITCHYARD_BASE_EDIT_DISTANCE_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace switchyard {

// Levenshtein: insertions, deletions and replacements of one byte.
int EditDistance(absl::string_view a, absl::string_view b);

// The word of `known` nearest to `word`, the first among equals; empty when none is near: at most 2
// edits, or a third of the word's length when that is more.
std::string Nearest(absl::string_view word, const std::vector<std::string>& known);

}  // namespace switchyard

#endif  // SWITCHYARD_BASE_EDIT_DISTANCE_H_
