#include "server/artifacts/checkpoint_reader.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/crc32c.h"
#include "base/json.h"
#include "base/status_macros.h"
#include "server/artifacts/publisher.h"
#include "server/error.h"

namespace switchyard {
namespace {

constexpr char kManifest[] = "switchyard/manifest.json";
constexpr int64_t kMaxManifestBytes = 64 << 20;

absl::Status Damaged(const CheckpointRecord& checkpoint, absl::string_view file,
                     absl::string_view why) {
  return MakeError(absl::StatusCode::kDataLoss, "CHECKPOINT_DAMAGED",
                   absl::StrCat("read the checkpoint of step ", checkpoint.step, " of job ",
                                checkpoint.job.value(), ": ", file, ": ", why),
                   {{"file", std::string(file)}, {"step", absl::StrCat(checkpoint.step)}});
}

absl::Status Unreadable(absl::string_view what, int error) {
  return MakeError(absl::StatusCode::kUnavailable, "ARTIFACTS_UNAVAILABLE",
                   ErrnoStatus("open", what, error).message());
}

// `flags` of open; below `folder`, through no link.
int OpenBeneath(int folder, const std::string& path, int flags) {
  struct open_how how = {};
  how.flags = static_cast<uint64_t>(flags | O_CLOEXEC);
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS;
  while (true) {
    const long fd = ::syscall(SYS_openat2, folder, path.c_str(), &how, sizeof(how));
    if (fd >= 0 || (errno != EINTR && errno != EAGAIN)) return static_cast<int>(fd);
  }
}

// The checkpoint's folder below the artifact root.
absl::StatusOr<UniqueFd> OpenFolder(const std::string& root, const CheckpointRecord& checkpoint) {
  UniqueFd top(::open(root.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!top.valid()) return Unreadable(root, errno);
  const std::string parent = absl::StrCat(JobFolder("", checkpoint.job).substr(1), "/checkpoints");
  UniqueFd above(OpenBeneath(top.get(), parent, O_PATH | O_DIRECTORY));
  // As when the file system is not mounted.
  if (!above.valid()) return Unreadable(absl::StrCat(root, "/", parent), errno);
  UniqueFd folder(
      OpenBeneath(above.get(), absl::StrCat("step-", checkpoint.step), O_PATH | O_DIRECTORY));
  if (!folder.valid()) {
    return Damaged(checkpoint, "its folder", ErrnoStatus("open", checkpoint.path, errno).message());
  }
  return folder;
}

absl::StatusOr<UniqueFd> OpenFile(const std::string& root, const CheckpointRecord& checkpoint,
                                  const std::string& name, int64_t* size) {
  ASSIGN_OR_RETURN(const UniqueFd folder, OpenFolder(root, checkpoint));
  // Without O_NONBLOCK the open of a pipe would wait for a writer.
  UniqueFd fd(OpenBeneath(folder.get(), name, O_RDONLY | O_NONBLOCK));
  if (!fd.valid()) {
    const int error = errno;
    if (error == ENOENT) return Damaged(checkpoint, name, "it is missing");
    if (error == ELOOP || error == EXDEV) {
      return Damaged(checkpoint, name, "it is, or lies behind, a symbolic link");
    }
    return Unreadable(absl::StrCat(checkpoint.path, "/", name), error);
  }
  struct stat st;
  if (::fstat(fd.get(), &st) != 0) return Unreadable(name, errno);
  if (!S_ISREG(st.st_mode)) return Damaged(checkpoint, name, "it is not a regular file");
  if (st.st_nlink != 1) {
    return Damaged(checkpoint, name, absl::StrCat("it has ", st.st_nlink, " names (hard links)"));
  }
  *size = st.st_size;
  return fd;
}

absl::StatusOr<std::string> ReadAll(int fd, int64_t size) {
  std::string text(static_cast<size_t>(size), '\0');
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t n = ::pread(fd, text.data() + done, text.size() - done, static_cast<off_t>(done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return Unreadable(kManifest, errno);
    if (n == 0) break;
    done += static_cast<size_t>(n);
  }
  text.resize(done);
  return text;
}

}  // namespace

absl::StatusOr<std::vector<CheckpointFileEntry>> CheckpointReader::ListFiles(
    const CheckpointRecord& checkpoint) const {
  int64_t size = 0;
  ASSIGN_OR_RETURN(const UniqueFd fd, OpenFile(root_, checkpoint, kManifest, &size));
  if (size > kMaxManifestBytes) {
    return Damaged(checkpoint, kManifest, absl::StrCat("it has ", size, " bytes"));
  }
  ASSIGN_OR_RETURN(const std::string text, ReadAll(fd.get(), size));
  const uint32_t crc = Crc32c(text);
  if (crc != checkpoint.manifest_crc32c) {
    return Damaged(
        checkpoint, kManifest,
        absl::StrFormat("it has crc32c %08x, %08x was committed", crc, checkpoint.manifest_crc32c));
  }
  ASSIGN_OR_RETURN(const Json manifest, ParseJson(text, kManifest));
  std::vector<CheckpointFileEntry> files = {{kManifest, static_cast<int64_t>(text.size()), crc}};
  // Verified when it was published, so that what it lists is well formed.
  const Json* listed = JsonFind(manifest, "files");
  for (const Json& file : listed != nullptr ? *listed : Json::array()) {
    CheckpointFileEntry entry;
    entry.name = JsonGet<std::string>(file, "name").value_or("");
    entry.size = JsonGet<int64_t>(file, "size").value_or(-1);
    const std::string sum = JsonGet<std::string>(file, "crc32c").value_or("");
    if (entry.name.empty() || entry.size < 0 || !absl::SimpleHexAtoi(sum, &entry.crc32c)) {
      return Damaged(checkpoint, kManifest, absl::StrCat("not a file entry: ", DumpJson(file)));
    }
    files.push_back(std::move(entry));
  }
  std::sort(files.begin(), files.end(),
            [](const auto& a, const auto& b) { return a.name < b.name; });
  return files;
}

absl::StatusOr<UniqueFd> CheckpointReader::Open(const CheckpointRecord& checkpoint,
                                                const CheckpointFileEntry& file) const {
  int64_t size = 0;
  ASSIGN_OR_RETURN(UniqueFd fd, OpenFile(root_, checkpoint, file.name, &size));
  if (size != file.size) {
    return Damaged(checkpoint, file.name,
                   absl::StrCat("it has ", size, " bytes, the manifest says ", file.size));
  }
  return fd;
}

}  // namespace switchyard
