#include "server/artifacts/publisher.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "base/crc32c.h"
#include "base/failpoint.h"
#include "base/fd.h"
#include "base/json.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "server/error.h"
#include "server/store/artifact_root.h"

namespace switchyard {
namespace {

Failpoint before_begin("publish.before_begin", FailpointKind::kFallible);
Failpoint after_begin("publish.after_begin", FailpointKind::kEvent);
Failpoint before_rename("publish.before_rename", FailpointKind::kFallible);
Failpoint after_rename("publish.after_rename", FailpointKind::kEvent);
Failpoint before_end("publish.before_end", FailpointKind::kEvent);
Failpoint after_end("publish.after_end", FailpointKind::kEvent);
Failpoint before_collect("collect.before_remove", FailpointKind::kFallible);
Failpoint before_delete("delete.before_begin", FailpointKind::kFallible);
Failpoint before_withdraw("delete.before_rename", FailpointKind::kFallible);
Failpoint after_withdraw("delete.after_rename", FailpointKind::kEvent);
Failpoint before_remove("delete.before_remove", FailpointKind::kFallible);
Failpoint before_deleted("delete.before_end", FailpointKind::kEvent);
Failpoint after_deleted("delete.after_end", FailpointKind::kEvent);

constexpr char kManifest[] = "/switchyard/manifest.json";
constexpr int kMaxResumeChoices = 100;
constexpr int64_t kMaxManifestBytes = 64 << 20;

absl::Status Rejected(const std::string& folder, absl::string_view why) {
  return MakeError(absl::StatusCode::kInvalidArgument, "CHECKPOINT_REJECTED",
                   absl::StrCat("commit checkpoint ", folder, ": ", why), {{"path", folder}});
}

// Relative, inside the folder, without tricks.
bool IsSafeName(const std::string& name) {
  if (name.empty() || name[0] == '/' || name.size() > 512) return false;
  for (const std::filesystem::path& part : std::filesystem::path(name)) {
    if (part == ".." || part == "." || part.empty()) return false;
  }
  return true;
}

bool Exists(const std::string& path) {
  struct stat st;
  return ::lstat(path.c_str(), &st) == 0;
}

std::string Parent(const std::string& path) { return path.substr(0, path.rfind('/')); }

// Follows no links.
absl::Status RemoveFolder(const std::string& path) {
  std::error_code error;
  std::filesystem::remove_all(path, error);
  if (!error) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat("remove ", path, ": ", error.message()));
}

// For what a later call removes if this one cannot.
void TryToRemove(const std::string& path) {
  const absl::Status status = RemoveFolder(path);
  if (!status.ok()) SY_LOG(WARNING) << "remove failed error=" << status.message();
}

// The names of the folders in `path`, ascending; none when it is not there.
absl::StatusOr<std::vector<std::string>> ListFolders(const std::string& path) {
  std::vector<std::string> names;
  std::error_code error;
  std::filesystem::directory_iterator it(path, error);
  for (; !error && it != std::filesystem::directory_iterator(); it.increment(error)) {
    std::error_code ignored;  // what vanishes meanwhile is no folder
    if (it->symlink_status(ignored).type() == std::filesystem::file_type::directory) {
      names.push_back(it->path().filename().string());
    }
  }
  if (error && error != std::errc::no_such_file_or_directory) {
    return absl::UnavailableError(absl::StrCat("list ", path, ": ", error.message()));
  }
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace

class Publisher::Claim {
 public:
  Claim(Publisher& publisher, Place place) : publisher_(publisher), place_(std::move(place)) {
    absl::MutexLock lock(&publisher_.mu_);
    const auto free = [this]() ABSL_SHARED_LOCKS_REQUIRED(publisher_.mu_) {
      return !publisher_.claimed_.contains(place_);
    };
    publisher_.mu_.Await(absl::Condition(&free));
    publisher_.claimed_.insert(place_);
  }
  ~Claim() {
    absl::MutexLock lock(&publisher_.mu_);
    publisher_.claimed_.erase(place_);
  }
  Claim(const Claim&) = delete;
  Claim& operator=(const Claim&) = delete;

 private:
  Publisher& publisher_;
  const Place place_;
};

std::string JobFolder(const std::string& artifact_root, const JobId& job) {
  // projects/<p>/jobs/<j>
  const std::string& name = job.value();
  const size_t project = sizeof("projects/") - 1;
  const size_t end = name.find('/', project);
  return absl::StrCat(artifact_root, "/", name.substr(project, end - project), "/",
                      name.substr(name.rfind('/') + 1));
}

absl::StatusOr<int64_t> Publisher::Verify(const std::string& folder,
                                          const CheckpointRecord& checkpoint) {
  std::vector<FileSum> sums;
  ASSIGN_OR_RETURN(const int64_t size, Inspect(folder, checkpoint, sums));
  if (!verify_checksums_) return size;
  const absl::Status whole = CompareChecksums(sums);
  if (absl::IsInvalidArgument(whole)) return Rejected(folder, whole.message());
  RETURN_IF_ERROR(whole);
  return size;
}

absl::StatusOr<int64_t> Publisher::Inspect(const std::string& folder,
                                           const CheckpointRecord& checkpoint,
                                           std::vector<FileSum>& sums) {
  const std::string manifest_path = absl::StrCat(folder, kManifest);
  struct stat st;
  if (::lstat(manifest_path.c_str(), &st) != 0 || !S_ISREG(st.st_mode)) {
    return Rejected(folder, "switchyard/manifest.json is missing");
  }
  if (st.st_size > kMaxManifestBytes) {
    return Rejected(folder, absl::StrCat("switchyard/manifest.json has ", st.st_size,
                                         " bytes, at most ", kMaxManifestBytes, " are read"));
  }
  ASSIGN_OR_RETURN(const std::string text, ReadFile(manifest_path));
  const uint32_t crc = Crc32c(text);
  if (crc != checkpoint.manifest_crc32c) {
    return Rejected(folder, absl::StrFormat("switchyard/manifest.json has crc32c %08x, the request "
                                            "says %08x",
                                            crc, checkpoint.manifest_crc32c));
  }
  ASSIGN_OR_RETURN(const Json manifest, ParseJson(text, manifest_path));
  const int64_t version = JsonGet<int64_t>(manifest, "version").value_or(0);
  if (version != 1) return Rejected(folder, absl::StrCat("manifest version ", version, ", not 1"));
  const int64_t step = JsonGet<int64_t>(manifest, "step").value_or(-1);
  if (step != checkpoint.step) {
    return Rejected(folder,
                    absl::StrCat("the manifest is of step ", step, ", not ", checkpoint.step));
  }
  const std::string job = JsonGet<std::string>(manifest, "job").value_or("");
  if (job != checkpoint.job.value()) {
    return Rejected(folder,
                    absl::StrCat("the manifest is of job ", job, ", not ", checkpoint.job.value()));
  }
  const Json* files = JsonFind(manifest, "files");
  if (files == nullptr || !files->is_array() || files->empty()) {
    return Rejected(folder, "the manifest lists no files");
  }
  int64_t total = st.st_size;
  for (const Json& file : *files) {
    const std::string name = JsonGet<std::string>(file, "name").value_or("");
    const int64_t size = JsonGet<int64_t>(file, "size").value_or(-1);
    if (!IsSafeName(name)) return Rejected(folder, absl::StrCat("bad file name '", name, "'"));
    const std::string path = absl::StrCat(folder, "/", name);
    if (::lstat(path.c_str(), &st) != 0 || !S_ISREG(st.st_mode)) {
      return Rejected(folder, absl::StrCat(name, " is missing"));
    }
    if (st.st_size != size) {
      return Rejected(folder,
                      absl::StrCat(name, " has ", st.st_size, " bytes, the manifest says ", size));
    }
    total += size;
    sums.push_back({path, name, JsonGet<std::string>(file, "crc32c").value_or(""), size,
                    int64_t{st.st_mtim.tv_sec} * 1'000'000'000 + st.st_mtim.tv_nsec,
                    static_cast<uint64_t>(st.st_ino)});
  }
  return total;
}

absl::Status Publisher::Publish(const CheckpointRecord& checkpoint) {
  const std::string parent = Parent(checkpoint.path);
  RETURN_IF_ERROR(MakeFolders(parent));
  if (Exists(checkpoint.staging_path) && Exists(checkpoint.path)) {
    // Left by a publication that was dropped, or by a deletion that did not finish: no row holds
    // it.
    TryToRemove(checkpoint.path);
  }
  RETURN_IF_ERROR(before_rename.Check());
  if (::renameat2(AT_FDCWD, checkpoint.staging_path.c_str(), AT_FDCWD, checkpoint.path.c_str(),
                  RENAME_NOREPLACE) != 0) {
    const int error = errno;
    // A repeated call: the rename is done already and shows the same manifest. Else the place is
    // taken by a folder that no row knows as committed.
    if (!Verify(checkpoint.path, checkpoint).ok()) {
      return ErrnoStatus(absl::StrCat("rename ", checkpoint.staging_path, " to"), checkpoint.path,
                         error);
    }
  }
  after_rename.Pass();
  RETURN_IF_ERROR(SyncFolder(parent));
  RETURN_IF_ERROR(SyncFolder(Parent(parent)));
  const std::string staging = Parent(checkpoint.staging_path);
  return Exists(staging) ? SyncFolder(staging) : absl::OkStatus();
}

absl::StatusOr<CheckpointRecord> Publisher::Commit(const CommitRequest& request) {
  CheckpointRecord checkpoint = request.checkpoint;
  // The fence first: what a stale attempt asks for is not even looked at.
  RETURN_IF_ERROR(
      store_.CheckFence(request.node, request.incarnation, {checkpoint.job, checkpoint.attempt}));
  RETURN_IF_ERROR(CheckArtifactRoot(store_, root_));
  const std::string folder = JobFolder(root_, checkpoint.job);
  const std::string expected =
      absl::StrCat(folder, "/staging/", checkpoint.attempt, "/step-", checkpoint.step);
  if (checkpoint.staging_path != expected) {
    return Rejected(checkpoint.staging_path, absl::StrCat("expected ", expected));
  }
  checkpoint.path = absl::StrCat(folder, "/checkpoints/step-", checkpoint.step);
  // What is seen of the folders below must hold until the row is COMMITTED: a second call in
  // between would take the freshly renamed folder for a leftover.
  const Claim claim(*this, {checkpoint.job, checkpoint.step});
  // Without the staging folder this can only be a repetition; its files are then at their place.
  const bool staged = Exists(checkpoint.staging_path);
  ASSIGN_OR_RETURN(checkpoint.size_bytes,
                   Verify(staged ? checkpoint.staging_path : checkpoint.path, checkpoint));
  RETURN_IF_ERROR(before_begin.Check());
  ASSIGN_OR_RETURN(CheckpointRecord row,
                   store_.BeginCheckpoint(request.node, request.incarnation, checkpoint));
  if (row.state == CheckpointState::kCommitted) {
    if (staged) TryToRemove(checkpoint.staging_path);
    return row;
  }
  after_begin.Pass();
  const absl::Status published = Publish(row);
  before_end.Pass();
  ASSIGN_OR_RETURN(row, store_.EndCheckpoint(row, published));
  after_end.Pass();
  RETURN_IF_ERROR(published);
  // The checkpoint stands whether or not older ones can go now.
  const absl::Status retired = Retire(row.job);
  if (!retired.ok()) {
    SY_LOG(WARNING) << "retention failed job=" << row.job << " error=" << retired.message();
  }
  return row;
}

IsHeld Publisher::HeldBy() const {
  if (holds_ == nullptr) return nullptr;
  return [holds = holds_](const CheckpointRecord& c) { return holds->IsHeld(c.path); };
}

absl::Status Publisher::Retire(const JobId& job) {
  RETURN_IF_ERROR(before_delete.Check());
  return store_.RetireCheckpoints(job, HeldBy()).status();
}

absl::Status Publisher::Delete(const JobId& job, int64_t step, const DeletionRequest& request) {
  return store_.BeginDeletion(job, step, request, HeldBy()).status();
}

absl::Status Publisher::RemoveFiles(const CheckpointRecord& checkpoint) {
  const std::string parent = Parent(checkpoint.path);
  // A file system that is not mounted looks like files that are gone.
  if (!Exists(parent)) {
    return absl::UnavailableError(
        absl::StrCat("remove ", checkpoint.path, ": folder ", parent, " is not there"));
  }
  // First out of sight, in one step: nobody should find half a checkpoint where whole ones are.
  const std::string bin = absl::StrCat(Parent(parent), "/deleting");
  const std::string withdrawn = absl::StrCat(bin, "/", checkpoint.path.substr(parent.size() + 1));
  if (Exists(checkpoint.path)) {
    RETURN_IF_ERROR(MakeFolders(bin));
    RETURN_IF_ERROR(RemoveFolder(withdrawn));
    RETURN_IF_ERROR(before_withdraw.Check());
    if (::rename(checkpoint.path.c_str(), withdrawn.c_str()) != 0) {
      return ErrnoStatus(absl::StrCat("rename ", checkpoint.path, " to"), withdrawn, errno);
    }
    after_withdraw.Pass();
    RETURN_IF_ERROR(SyncFolder(parent));
  }
  RETURN_IF_ERROR(before_remove.Check());
  RETURN_IF_ERROR(RemoveFolder(withdrawn));
  ::rmdir(bin.c_str());  // when it was the last
  return absl::OkStatus();
}

absl::Status Publisher::RemoveDeleted() {
  ASSIGN_OR_RETURN(const std::vector<CheckpointRecord> deleting,
                   store_.CheckpointsIn(CheckpointState::kDeleting));
  absl::Status first;
  for (const CheckpointRecord& c : deleting) {
    // A download may have begun before its row was DELETING; it ends first.
    if (holds_ != nullptr && holds_->IsHeld(c.path)) continue;
    const Claim claim(*this, {c.job, c.step});
    // Since the list was made the step may have been committed anew, at the same place.
    ASSIGN_OR_RETURN(const bool still, store_.IsStill(c));
    if (!still) continue;
    const absl::Status removed = RemoveFiles(c);
    if (!removed.ok()) {
      first.Update(removed);
      continue;
    }
    before_deleted.Pass();
    RETURN_IF_ERROR(store_.EndDeletion(c));
    after_deleted.Pass();
    SY_LOG(INFO) << "checkpoint removed job=" << c.job << " step=" << c.step
                 << " bytes=" << c.size_bytes;
  }
  return first;
}

absl::StatusOr<std::vector<AttemptId>> Publisher::ListStaged() {
  std::vector<AttemptId> found;
  ASSIGN_OR_RETURN(const std::vector<std::string> projects, ListFolders(root_));
  for (const std::string& project : projects) {
    const std::string project_folder = absl::StrCat(root_, "/", project);
    ASSIGN_OR_RETURN(const std::vector<std::string> jobs, ListFolders(project_folder));
    for (const std::string& job : jobs) {
      const std::string staging = absl::StrCat(project_folder, "/", job, "/staging");
      ASSIGN_OR_RETURN(const std::vector<std::string> attempts, ListFolders(staging));
      for (const std::string& attempt : attempts) {
        AttemptId id{JobId(absl::StrCat("projects/", project, "/jobs/", job)), 0};
        if (absl::SimpleAtoi(attempt, &id.number)) found.push_back(id);
      }
    }
  }
  return found;
}

absl::Status Publisher::RemoveStaged(const AttemptId& attempt) {
  // Attempts that the database does not know may run: it was restored from a backup.
  ASSIGN_OR_RETURN(const AttemptRecord record, store_.GetAttempt(attempt));
  if (!IsFinal(record.state)) {
    return absl::FailedPreconditionError(absl::StrCat(
        "attempt ", attempt.number, " of job ", attempt.job.value(), " is ", Name(record.state)));
  }
  const std::string staging = JobFolder(root_, attempt.job) + "/staging";
  const std::string folder = absl::StrCat(staging, "/", attempt.number);
  ASSIGN_OR_RETURN(const auto committing, store_.CheckpointsIn(CheckpointState::kCommitting));
  for (const CheckpointRecord& c : committing) {
    if (absl::StartsWith(c.staging_path, folder + "/")) {
      return absl::UnavailableError(
          absl::StrCat("the checkpoint of step ", c.step, " is being published from ", folder));
    }
  }
  if (!Exists(folder)) return absl::OkStatus();
  RETURN_IF_ERROR(before_collect.Check());
  RETURN_IF_ERROR(RemoveFolder(folder));
  ::rmdir(staging.c_str());  // when it was the last
  SY_LOG(INFO) << "staging removed folder=" << folder;
  return absl::OkStatus();
}

absl::Status Publisher::Recover() {
  RETURN_IF_ERROR(CheckArtifactRoot(store_, root_));
  ASSIGN_OR_RETURN(const auto committing, store_.CheckpointsIn(CheckpointState::kCommitting));
  for (CheckpointRecord checkpoint : committing) {
    const bool renamed = !Exists(checkpoint.staging_path);
    absl::StatusOr<int64_t> size =
        Verify(renamed ? checkpoint.path : checkpoint.staging_path, checkpoint);
    absl::Status status = size.status();
    if (size.ok()) {
      checkpoint.size_bytes = *size;
      status = Publish(checkpoint);
    }
    SY_LOG(INFO) << "checkpoint recovered job=" << checkpoint.job << " step=" << checkpoint.step
                 << " result=" << (status.ok() ? "COMMITTED" : status.message());
    RETURN_IF_ERROR(store_.EndCheckpoint(checkpoint, status).status());
  }
  return absl::OkStatus();
}

absl::optional<absl::Status> Publisher::IsWhole(const CheckpointRecord& checkpoint) {
  if (checker_ == nullptr) return Verify(checkpoint.path, checkpoint).status();
  std::vector<FileSum> sums;
  const absl::Status status = Inspect(checkpoint.path, checkpoint, sums).status();
  return status.ok() ? checker_->Ask(checkpoint.path, sums) : status;
}

absl::StatusOr<std::string> Publisher::ResumePath(const JobRecord& job) {
  if (!job.needs.resumable) return std::string();
  ASSIGN_OR_RETURN(const auto checkpoints, store_.ListCheckpoints(job.id, 0, kMaxResumeChoices));
  for (const CheckpointRecord& c : checkpoints) {
    // A file system that is not mounted looks like checkpoints that are gone, all at once.
    if (!Exists(Parent(c.path))) {
      return absl::UnavailableError(
          absl::StrCat("folder ", Parent(c.path), " of committed checkpoints is not there"));
    }
    const absl::optional<absl::Status> verdict = IsWhole(c);
    if (!verdict) {
      return absl::UnavailableError(
          absl::StrCat("the checksums of the checkpoint of step ", c.step, " are being read"));
    }
    const absl::Status& status = *verdict;
    if (status.ok()) return c.path;
    // Only what was seen to be wrong counts; a file that cannot be read may be whole.
    if (!absl::IsInvalidArgument(status)) {
      return absl::UnavailableError(
          absl::StrCat("its checkpoints cannot be read: ", status.message()));
    }
    SY_LOG(WARNING) << "checkpoint rejected job=" << job.id << " step=" << c.step
                    << " error=" << status.message();
    RETURN_IF_ERROR(store_.RejectCheckpoint(c, std::string(status.message())));
  }
  return std::string();
}

}  // namespace switchyard
