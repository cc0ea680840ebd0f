// One data set, from files to packed documents.
#ifndef SWITCHYARD_WORKER_PREP_PREPARE_H_
#define SWITCHYARD_WORKER_PREP_PREPARE_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/prep/config.h"
#include "worker/prep/report.h"
#include "worker/prep/split.h"
#include "worker/prep/text_model.h"
#include "worker/trainer/data/token_file.h"

namespace switchyard {

// The files of one part of a split ("train+validation" has two).
struct DatasetPart {
  SplitPart split;
  std::vector<std::string> files;
};

// Errors: NotFound, InvalidArgument: paths that hold no data.
absl::StatusOr<std::vector<DatasetPart>> ResolveDataset(const DatasetConfig& dataset);

struct PreparedDataset {
  TokenData data;  // without fingerprint
  DatasetReport report;
};

// Reads, tokenizes, masks and packs. With `config.malformed_rows` kSkip malformed rows are counted
// and listed in the report; with kFail reading stops after DatasetReport::kMaxExamples of them, and
// a report with malformed > 0 means that the data must not be used (the data is then empty).
// Deterministic: the same files and settings give the same result, whatever the number of threads.
// Errors: NotFound, InvalidArgument, DataLoss: files that cannot be read; no document is left.
absl::StatusOr<PreparedDataset> PrepareDataset(const PrepConfig& config,
                                               const DatasetConfig& dataset,
                                               const std::vector<DatasetPart>& parts,
                                               const TextModel& model);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_PREP_PREPARE_H_
