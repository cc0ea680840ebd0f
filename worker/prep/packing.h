// Which documents share a row. Pure. Documents are never split.
#ifndef SWITCHYARD_WORKER_PREP_PACKING_H_
#define SWITCHYARD_WORKER_PREP_PACKING_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "worker/prep/config.h"

namespace switchyard {

// Rows as lists of document indices. `row_length` > 0 unless packing is kNone; every length is
// positive and at most row_length.
//   kNone        one document per row, in order.
//   kSequential  in order; a row is closed when the next document does not fit.
//   kBestFit     longest first (equal lengths in order) into the fullest row that has room. The
//   rows
//                are then ordered by their earliest document, and documents within a row by index,
//                so that without shuffling training follows the data set's order as far as packing
//                allows.
std::vector<std::vector<int64_t>> PackDocuments(absl::Span<const int64_t> lengths,
                                                int64_t row_length, Packing packing);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_PREP_PACKING_H_
