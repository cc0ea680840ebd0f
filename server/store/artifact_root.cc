#include "server/store/artifact_root.h"

#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "base/fd.h"
#include "base/json.h"
#include "base/status_macros.h"
#include "server/error.h"

namespace switchyard {
namespace {

std::string MarkerPath(const std::string& root) { return root + "/.switchyard-root"; }

absl::Status Refused(const std::string& root, absl::string_view why) {
  return absl::FailedPreconditionError(absl::StrCat(
      "open the artifact root ", root, ": ", why,
      ". Is it mounted? If it was meant to move, move all of it, ", MarkerPath(root), " too"));
}

}  // namespace

absl::StatusOr<std::string> ReadArtifactRootId(const std::string& root) {
  ASSIGN_OR_RETURN(const Json json, ReadJsonFile(MarkerPath(root)));
  return JsonGet<std::string>(json, "id");
}

absl::Status ClaimArtifactRoot(Store& store, const std::string& root) {
  const absl::StatusOr<std::string> found = ReadArtifactRootId(root);
  if (!found.ok() && !absl::IsNotFound(found.status())) return found.status();
  const std::string& known = store.artifact_root_id();
  if (!known.empty()) {
    if (!found.ok()) return Refused(root, "it lacks the file .switchyard-root of this database's");
    if (*found != known) return Refused(root, "it is the one of another database");
    return absl::OkStatus();
  }
  if (found.ok()) return store.SetArtifactRootId(*found);
  // A database of before there were ids.
  ASSIGN_OR_RETURN(const auto committed, store.CheckpointsIn(CheckpointState::kCommitted));
  ASSIGN_OR_RETURN(const auto committing, store.CheckpointsIn(CheckpointState::kCommitting));
  std::error_code error;
  const bool empty =
      !std::filesystem::exists(root, error) || std::filesystem::is_empty(root, error);
  if (empty && committed.size() + committing.size() > 0) {
    return Refused(root, "it is empty, but the database has checkpoints there");
  }
  RETURN_IF_ERROR(MakeFolders(root));
  const Json marker{{"id", store.database_uuid()}};
  RETURN_IF_ERROR(ReplaceFile(MarkerPath(root), DumpJson(marker) + "\n"));
  return store.SetArtifactRootId(store.database_uuid());
}

absl::Status CheckArtifactRoot(const Store& store, const std::string& root) {
  if (store.artifact_root_id().empty()) return absl::OkStatus();
  const absl::StatusOr<std::string> found = ReadArtifactRootId(root);
  if (found.ok() && *found == store.artifact_root_id()) return absl::OkStatus();
  return MakeError(
      absl::StatusCode::kUnavailable, "ARTIFACTS_UNAVAILABLE",
      absl::StrCat("the artifact root ", root, " is not there now, or is another one: ",
                   found.ok() ? "its id differs" : found.status().message()),
      {{"path", root}});
}

}  // namespace switchyard
