#include "worker/prep/packing.h"

#include <algorithm>
#include <numeric>
#include <set>
#include <utility>

#include "base/log.h"

namespace switchyard {
namespace {

using Rows = std::vector<std::vector<int64_t>>;

Rows PackSequentially(absl::Span<const int64_t> lengths, int64_t row_length) {
  Rows rows;
  int64_t room = 0;
  for (size_t i = 0; i < lengths.size(); ++i) {
    if (rows.empty() || lengths[i] > room) {
      rows.emplace_back();
      room = row_length;
    }
    rows.back().push_back(static_cast<int64_t>(i));
    room -= lengths[i];
  }
  return rows;
}

Rows PackBestFit(absl::Span<const int64_t> lengths, int64_t row_length) {
  std::vector<int64_t> order(lengths.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return lengths[a] > lengths[b]; });
  Rows rows;
  const int64_t shortest = order.empty() ? 0 : lengths[order.back()];
  std::set<std::pair<int64_t, int64_t>> open;  // (room, row): the least room that suffices is first
  for (const int64_t document : order) {
    const int64_t length = lengths[document];
    const auto fit = open.lower_bound({length, -1});
    std::pair<int64_t, int64_t> row;
    if (fit == open.end()) {
      row = {row_length, static_cast<int64_t>(rows.size())};
      rows.emplace_back();
    } else {
      row = *fit;
      open.erase(fit);
    }
    rows[row.second].push_back(document);
    row.first -= length;
    if (row.first >= shortest) open.insert(row);
  }
  for (std::vector<int64_t>& row : rows) std::sort(row.begin(), row.end());
  std::sort(rows.begin(), rows.end());  // by first document, which no two rows share
  return rows;
}

}  // namespace

Rows PackDocuments(absl::Span<const int64_t> lengths, int64_t row_length, Packing packing) {
  for (const int64_t length : lengths) {
    SY_CHECK(length > 0 && (packing == Packing::kNone || length <= row_length))
        << "document of " << length << " tokens for rows of " << row_length;
  }
  switch (packing) {
    case Packing::kSequential:
      return PackSequentially(lengths, row_length);
    case Packing::kBestFit:
      return PackBestFit(lengths, row_length);
    case Packing::kNone:
      break;
  }
  Rows rows(lengths.size());
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = {static_cast<int64_t>(i)};
  return rows;
}

}  // namespace switchyard
