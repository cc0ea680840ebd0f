// Token files in a cache folder, keyed by what they were made from.
#ifndef SWITCHYARD_WORKER_PREP_CACHE_H_
#define SWITCHYARD_WORKER_PREP_CACHE_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/json.h"
#include "worker/prep/config.h"
#include "worker/prep/prepare.h"

namespace switchyard {

// Why prep failed, as its exit code tells it.
enum class PrepFault {
  kNone,
  kData,    // exit 1: rows or data files
  kConfig,  // exit 2: settings, model folder, tokenizer, template
  kOutput,  // exit 3: the cache folder cannot be written
};

struct PrepOutcome {
  PrepFault fault = PrepFault::kNone;
  std::vector<std::string> messages;  // one per fault
  std::string folder;                 // <cache>/<digest>
  bool cached = false;
  Json report;  // report.json
};

// Makes, or finds, `cache_dir`/<digest>/ with train.tok, validation-<name>.tok and report.json. The
// digest is a SHA-256 (the first 32 hex digits name the folder, all 64 are the fingerprint) over
// the settings, the tokenizer's files, the chat template and the bytes of every data file; where
// files lie does not matter. A template that asks for the date makes the digest depend on it. Two
// calls for the same digest wait for each other (a lock file beside the folder); the folder appears
// whole, by rename, and a damaged one is made anew.
PrepOutcome RunPrep(const PrepConfig& config, const std::string& cache_dir);

// Everything but the writing: the report of the data as it would be prepared, malformed rows
// skipped and counted. Errors as RunPrep, in the outcome.
struct ValidateOutcome {
  PrepFault fault = PrepFault::kNone;
  std::vector<std::string> messages;
  PrepReport report;
};
ValidateOutcome ValidateData(PrepConfig config);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_PREP_CACHE_H_
