// The frames of docs/contracts.md as types. `ToJson` makes the object that goes on the wire (with
// its "type"); ParseRankFrame and ParseAgentFrame read one. Unknown keys are ignored, so that an
// agent and a trainer of neighbouring versions can talk; an unknown type is an error.
// Doubles that are not finite travel as the strings "NaN", "Infinity", "-Infinity".
#ifndef SWITCHYARD_WORKER_LINK_MESSAGES_H_
#define SWITCHYARD_WORKER_LINK_MESSAGES_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/failure_reason.h"
#include "base/json.h"

namespace switchyard {

// How a trainer exits. Any other status, or a signal, is a failure.
inline constexpr int kExitDone = 0;
inline constexpr int kExitError = 1;
inline constexpr int kExitStopped = 3;  // ended by a stop frame or SIGTERM

// ---- rank to agent ----

// First frame of every rank: the process is up and has read its config.
struct HelloFrame {
  int64_t rank = 0;
  int64_t pid = 0;
};

struct PhaseFrame {
  std::string name;  // loading, training, validating, saving
  std::string message;
};

// Planned bytes of the fullest rank. Rank 0 only.
struct PlanFrame {
  int64_t weights = 0;
  int64_t gradients = 0;
  int64_t optimizer = 0;
  int64_t activations = 0;
  int64_t buffers = 0;
  int64_t total = 0;
};

// One optimizer step; meanings as switchyard.v1.StepMetrics. Rank 0 only.
struct StepFrame {
  int64_t step = 0;
  int64_t total_steps = 0;
  double epoch = 0;
  double loss = 0;
  double aux_loss = 0;
  double grad_norm = 0;
  double learning_rate = 0;
  int64_t tokens = 0;
  int64_t supervised_tokens = 0;
  double step_seconds = 0;
  double tokens_per_second = 0;
  double supervised_tokens_per_second = 0;
  int64_t memory_bytes = 0;
  double mfu = 0;
  double expert_load_max_over_mean = 0;
  bool skipped = false;
  int64_t skipped_total = 0;
  int64_t checkpoint_failures = 0;  // of this attempt: checkpoints that could not be written
  std::optional<double> validation_loss;
  std::string validation_name;
  std::map<std::string, double> phase_seconds;
  std::vector<double> rank_busy_seconds;  // by rank; empty: not measured
};

// Rank 0 only.
struct ValidationFrame {
  int64_t step = 0;
  std::string name;
  double loss = 0;
  int64_t tokens = 0;
};

struct WarningFrame {
  std::string message;
};

// All ranks' files of a checkpoint are fsynced; asks for its publication. Rank 0 only.
struct CheckpointFrame {
  int64_t step = 0;
  std::string path;  // <job_dir>/staging/<attempt>/step-<n>
  uint32_t manifest_crc32c = 0;
  bool final = false;
  double loss = 0;
  std::optional<double> validation_loss;
};

// Why the rank is about to exit with kExitError.
struct ErrorFrame {
  FailureReason reason = FailureReason::kNone;
  std::string message;
  int64_t step = 0;
};

// Last frame before kExitDone or kExitStopped.
struct DoneFrame {
  int64_t step = 0;
  bool stopped = false;
};

using RankFrame = std::variant<HelloFrame, PhaseFrame, PlanFrame, StepFrame, ValidationFrame,
                               WarningFrame, CheckpointFrame, ErrorFrame, DoneFrame>;

// ---- agent to rank ----

struct TokensFile {
  std::string name;
  std::string path;
};

// First frame to every rank: all it needs to know.
struct ConfigFrame {
  Json job;              // JobSpec as protobuf JSON: snake_case, enums by name, defaults printed
  std::string job_name;  // projects/p/jobs/j
  std::string job_uid;
  int64_t attempt = 0;
  int64_t rank = 0;  // global
  int64_t world_size = 0;
  int64_t local_rank = 0;
  std::string master_address;
  int64_t master_port = 0;
  std::string device;  // "cpu" or "cuda:<index>"
  int64_t threads = 1;
  std::string job_dir;
  std::string resume_from;  // a committed checkpoint folder, or empty
  std::string train_tokens;
  std::vector<TokensFile> validation_tokens;
};

// Finish the step, agree, write a checkpoint if asked, exit kExitStopped.
struct StopFrame {
  std::string reason;
  bool checkpoint = false;
};

// Answer to a CheckpointFrame.
struct CheckpointResultFrame {
  int64_t step = 0;
  bool ok = false;
  std::string path;   // the committed folder
  std::string error;  // empty when ok
};

using AgentFrame = std::variant<ConfigFrame, StopFrame, CheckpointResultFrame>;

Json ToJson(const RankFrame& frame);
Json ToJson(const AgentFrame& frame);

// Errors: InvalidArgument: no or unknown "type", a member missing or of a wrong type; the message
// names the frame and the member.
absl::StatusOr<RankFrame> ParseRankFrame(const Json& frame);
absl::StatusOr<AgentFrame> ParseAgentFrame(const Json& frame);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_LINK_MESSAGES_H_
