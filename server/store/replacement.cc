#include "server/store/replacement.h"

#include <errno.h>
#include <stdio.h>
#include <unistd.h>

#include <filesystem>
#include <system_error>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/failpoint.h"
#include "base/fd.h"
#include "base/json.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "server/store/state_folder.h"

namespace switchyard {
namespace {

Failpoint between_steps("restore.between_steps", FailpointKind::kEvent);

std::string IntentPath(const std::string& folder) { return DatabasePath(folder) + ".replacing"; }

bool Exists(const std::string& path) { return ::access(path.c_str(), F_OK) == 0; }

absl::Status Rename(const std::string& from, const std::string& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) {
    return ErrnoStatus(absl::StrCat("rename ", from, " to"), to, errno);
  }
  between_steps.Pass();
  return absl::OkStatus();
}

}  // namespace

absl::Status ReplaceDatabase(const std::string& folder, const std::string& source,
                             const std::string& former) {
  const Json intent{{"source", source}, {"former", former}};
  RETURN_IF_ERROR(ReplaceFile(IntentPath(folder), DumpJson(intent) + "\n"));
  between_steps.Pass();
  return FinishReplacement(folder);
}

absl::Status FinishReplacement(const std::string& folder) {
  const absl::StatusOr<Json> intent = ReadJsonFile(IntentPath(folder));
  if (absl::IsNotFound(intent.status())) return absl::OkStatus();
  RETURN_IF_ERROR(intent.status());
  ASSIGN_OR_RETURN(const std::string source, JsonGet<std::string>(*intent, "source"));
  ASSIGN_OR_RETURN(const std::string former, JsonGet<std::string>(*intent, "former"));
  const std::string target = DatabasePath(folder);
  // Once the source has gone to its place, all that is there belongs to it.
  if (Exists(source)) {
    for (const char* suffix : {"-wal", "-shm", ""}) {
      if (Exists(target + suffix)) RETURN_IF_ERROR(Rename(target + suffix, former + suffix));
    }
    // Else a power cut could leave the former one's log beside the new one.
    RETURN_IF_ERROR(SyncFolder(folder));
    RETURN_IF_ERROR(Rename(source, target));
  } else if (!Exists(target)) {
    return absl::DataLossError(absl::StrCat("replace ", target, " by ", source,
                                            ": neither is there; the former one is ", former));
  }
  RETURN_IF_ERROR(SyncFolder(folder));
  if (::unlink(IntentPath(folder).c_str()) != 0) {
    return ErrnoStatus("remove", IntentPath(folder), errno);
  }
  between_steps.Pass();
  SY_LOG(INFO) << "the database was replaced by=" << source << " former=" << former;
  return SyncFolder(folder);
}

absl::Status CheckNoneIsMissing(const std::string& folder) {
  const std::string target = DatabasePath(folder);
  if (Exists(target)) return absl::OkStatus();
  std::error_code error;
  std::filesystem::directory_iterator it(folder, error);
  for (const std::filesystem::directory_iterator end; !error && it != end; it.increment(error)) {
    if (!absl::StartsWith(it->path().string(), target)) continue;
    return absl::FailedPreconditionError(absl::StrCat(
        "open ", target, ": it is not there, but ", it->path().filename().string(),
        " is: a database was here. Restore it (switchyardd restore), or move these files away to "
        "begin with an empty one"));
  }
  return error ? ErrnoStatus("list", folder, error.value()) : absl::OkStatus();
}

}  // namespace switchyard
