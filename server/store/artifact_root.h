// The artifact root as the database knows it: a file at its top, `.switchyard-root`, has an id that
// the database remembers. A file system that is not mounted looks like one from which every
// checkpoint has vanished; without its id nothing is concluded from what is not there.
#ifndef SWITCHYARD_SERVER_STORE_ARTIFACT_ROOT_H_
#define SWITCHYARD_SERVER_STORE_ARTIFACT_ROOT_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/store/store.h"

namespace switchyard {

// At start. A database without an id takes the root's, or gives it one (and makes the folder).
// Errors: FailedPrecondition: the root has another id or none, though the database has one, or is
// empty, though the database has checkpoints; those of files.
absl::Status ClaimArtifactRoot(Store& store, const std::string& root);

// Whether the root is there. A store without an id (tests, the simulation) takes any.
// Errors: Unavailable ARTIFACTS_UNAVAILABLE.
absl::Status CheckArtifactRoot(const Store& store, const std::string& root);

// The id of the root. Errors: NotFound: it has none.
absl::StatusOr<std::string> ReadArtifactRootId(const std::string& root);

}  // namespace switchyard

#endif  // SWITCHYARD_SERVER_STORE_ARTIFACT_ROOT_H_
