#include "base/edit_distance.h"

#include <algorithm>
#include <numeric>

namespace switchyard {

int EditDistance(absl::string_view a, absl::string_view b) {
  std::vector<int> row(b.size() + 1);
  std::iota(row.begin(), row.end(), 0);
  for (size_t i = 0; i < a.size(); ++i) {
    int diagonal = row[0];
    row[0] = static_cast<int>(i) + 1;
    for (size_t j = 0; j < b.size(); ++j) {
      const int replace = diagonal + (a[i] != b[j]);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replace, row[j] + 1, row[j + 1] + 1});
    }
  }
  return row.back();
}

std::string Nearest(absl::string_view word, const std::vector<std::string>& known) {
  const int allowed = std::max<int>(2, static_cast<int>(word.size()) / 3);
  int best = allowed + 1;
  std::string nearest;
  for (const std::string& candidate : known) {
    // A word this short resembles everything.
    const int distance = EditDistance(word, candidate);
    if (distance < best && distance < static_cast<int>(candidate.size())) {
      best = distance;
      nearest = candidate;
    }
  }
  return nearest;
}

}  // namespace switchyard
