// What a checkpoint folder holds: written last, so a folder with a manifest is complete.
// Torch-free. The format is in docs/contracts.md.
#ifndef SWITCHYARD_WORKER_TRAINER_CHECKPOINT_MANIFEST_H_
#define SWITCHYARD_WORKER_TRAINER_CHECKPOINT_MANIFEST_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/json.h"

namespace switchyard {

inline constexpr char kManifestName[] = "switchyard/manifest.json";
inline constexpr char kTrainStateName[] = "switchyard/state.json";

struct ManifestFile {
  std::string name;  // relative to the folder, "switchyard/state.json"
  int64_t size = 0;  // bytes
  uint32_t crc32c = 0;
};

struct Manifest {
  std::string job;  // "projects/p/jobs/j"
  std::string job_uid;
  int64_t attempt = 0;
  int64_t step = 0;
  bool final = false;
  int64_t world_size = 1;
  int64_t ep_size = 1;
  std::optional<double> loss;  // absent, or not finite: null
  std::optional<double> validation_loss;
  std::vector<ManifestFile> files;  // every file of the folder but the manifest, by name
};

std::string DumpManifest(const Manifest& manifest);
// Errors: InvalidArgument: not a manifest of version 1, names that leave the folder or repeat.
absl::StatusOr<Manifest> ParseManifest(absl::string_view text, absl::string_view what);
// `folder`'s. Errors: also NotFound: not a complete checkpoint of ours.
absl::StatusOr<Manifest> ReadManifest(const std::string& folder);

// The files exist with their sizes. Errors: DataLoss naming the file and both sizes.
absl::Status CheckFileSizes(const std::string& folder, const Manifest& manifest);

// Reads the whole file. Errors: as the file system.
absl::StatusOr<uint32_t> FileCrc32c(const std::string& path);

// Everything a resumed run needs besides tensors.
struct TrainState {
  int64_t step = 0;  // optimizer steps done
  uint32_t seed = 0;
  std::string dataset_fingerprint;
  int64_t global_batch_size = 0;
  int64_t tokens_seen = 0;
  int64_t skipped_total = 0;
  int64_t nonfinite_in_a_row = 0;
  Json lr_schedule = Json::object();  // the job's LrScheduleSpec, for the record
  std::string torch_version;
};

std::string DumpTrainState(const TrainState& state);
absl::StatusOr<TrainState> ParseTrainState(absl::string_view text, absl::string_view what);
absl::StatusOr<TrainState> ReadTrainState(const std::string& folder);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_CHECKPOINT_MANIFEST_H_
