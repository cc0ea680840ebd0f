// Checks what a user asks for, all faults at once.
#ifndef SWITCHYARD_SERVER_API_VALIDATE_H_
#define SWITCHYARD_SERVER_API_VALIDATE_H_

#include <vector>

#include "absl/types/optional.h"
#include "server/error.h"
#include "switchyard/v1/job.pb.h"
#include "worker/trainer/models/model_config.h"

namespace switchyard {

struct SpecCheck {
  std::vector<FieldViolation> violations;  // fields from "spec." on
  // config.json of spec.model.path; none where the coordinator cannot read that folder, which is no
  // fault: the path is one of the nodes'.
  absl::optional<ModelConfig> model;
};
// Reads the model's config.json when it is there.
SpecCheck CheckSpec(const v1::JobSpec& spec);

// display_name, labels and recipe.
std::vector<FieldViolation> CheckJobFields(const v1::Job& job);

}  // namespace switchyard

#endif  // SWITCHYARD_SERVER_API_VALIDATE_H_
