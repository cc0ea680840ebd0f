// checkpoints download: a checkpoint's files, brought here whole or not at all.
//
// They are gathered in FOLDER.partial, which a later call goes on with: what is there of a file is
// read once to know its checksum so far. When every file is whole and on the disk the folder gets
// its name.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <memory>
#include <system_error>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/crc32c.h"
#include "base/fd.h"
#include "base/status_macros.h"
#include "client/checkpoints.h"
#include "client/remote_checkpoint.h"

namespace switchyard {
namespace {

constexpr char kManifest[] = "switchyard/manifest.json";
constexpr int kMaxParallel = 64;

// Adds to `crc` what the file holds before `end`.
absl::Status AddFile(int fd, const std::string& path, int64_t end, uint32_t& crc) {
  std::vector<char> buffer(1 << 20);
  for (int64_t at = 0; at < end;) {
    const size_t wanted = static_cast<size_t>(std::min<int64_t>(end - at, buffer.size()));
    const ssize_t n = ::pread(fd, buffer.data(), wanted, at);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus("read", path, errno);
    if (n == 0) return absl::UnavailableError(absl::StrCat("read ", path, ": it became shorter"));
    crc = Crc32c(crc, buffer.data(), static_cast<size_t>(n));
    at += n;
  }
  return absl::OkStatus();
}

std::string ParentOf(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
}

class Downloader {
 public:
  Downloader(RemoteCheckpoint& remote, std::string folder)
      : remote_(remote), folder_(std::move(folder)), partial_(folder_ + ".partial") {}

  absl::Status Run(int parallel) {
    struct stat st;
    if (::lstat(folder_.c_str(), &st) == 0) {
      return absl::AlreadyExistsError(absl::StrCat(folder_, " is there already"));
    }
    RETURN_IF_ERROR(MakeFolders(partial_));
    // Held until this ends: two that write the same files would spoil them.
    UniqueFd lock(::open(partial_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!lock.valid()) return ErrnoStatus("open", partial_, errno);
    if (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
      return absl::FailedPreconditionError(
          absl::StrCat("another download writes to ", partial_, " now"));
    }
    RETURN_IF_ERROR(FetchManifest());
    RETURN_IF_ERROR(RemoveStrangers());
    std::atomic<size_t> next{0};
    std::vector<absl::Status> results(static_cast<size_t>(parallel));
    {
      std::vector<Thread> threads;
      for (absl::Status& result : results) {
        threads.emplace_back("download", [this, &next, &result](const StopToken&) {
          for (size_t i = next++; result.ok() && i < remote_.files().size(); i = next++) {
            result = Fetch(remote_.files()[i]);
            if (!result.ok()) next = remote_.files().size();  // the others end with their file
          }
        });
      }
    }
    for (const absl::Status& result : results) RETURN_IF_ERROR(result);
    RETURN_IF_ERROR(SyncFolders());
    if (::renameat2(AT_FDCWD, partial_.c_str(), AT_FDCWD, folder_.c_str(), RENAME_NOREPLACE) != 0) {
      return ErrnoStatus(absl::StrCat("rename ", partial_, " to"), folder_, errno);
    }
    return SyncFolder(ParentOf(folder_));
  }

  int64_t received() const { return received_; }

 private:
  // First: it says whether what is there already is of this checkpoint.
  absl::Status FetchManifest() {
    const auto manifest = std::find_if(remote_.files().begin(), remote_.files().end(),
                                       [](const RemoteFile& f) { return f.name == kManifest; });
    if (manifest == remote_.files().end()) {
      return absl::DataLossError("the coordinator lists no switchyard/manifest.json");
    }
    const absl::StatusOr<std::string> here = ReadFile(absl::StrCat(partial_, "/", kManifest));
    if (here.ok() && Crc32c(*here) == manifest->crc32c) return absl::OkStatus();
    std::error_code error;
    for (const auto& entry : std::filesystem::directory_iterator(partial_, error)) {
      std::filesystem::remove_all(entry.path(), error);
    }
    if (error)
      return absl::UnavailableError(absl::StrCat("clear ", partial_, ": ", error.message()));
    return Fetch(*manifest);
  }

  // Nothing is in the folder at the end but what the manifest lists.
  absl::Status RemoveStrangers() {
    std::error_code error;
    std::vector<std::filesystem::path> strangers;
    std::filesystem::recursive_directory_iterator it(partial_, error);
    for (; !error && it != std::filesystem::recursive_directory_iterator(); it.increment(error)) {
      if (it->is_directory() && !it->is_symlink()) continue;
      const std::string name = it->path().string().substr(partial_.size() + 1);
      if (std::none_of(remote_.files().begin(), remote_.files().end(),
                       [&](const RemoteFile& f) { return f.name == name; })) {
        strangers.push_back(it->path());
      }
    }
    for (const auto& path : strangers) std::filesystem::remove(path, error);
    return error ? absl::UnavailableError(absl::StrCat("clear ", partial_, ": ", error.message()))
                 : absl::OkStatus();
  }

  absl::Status Fetch(const RemoteFile& file) {
    const std::string path = absl::StrCat(partial_, "/", file.name);
    RETURN_IF_ERROR(MakeFolders(ParentOf(path)));
    UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644));
    if (!fd.valid()) return ErrnoStatus("open", path, errno);
    // Twice: what an earlier call left may have been spoiled since.
    for (const bool anew : {false, true}) {
      struct stat st;
      if (::fstat(fd.get(), &st) != 0) return ErrnoStatus("stat", path, errno);
      int64_t offset = anew || st.st_size > file.size ? 0 : st.st_size;
      if (::ftruncate(fd.get(), offset) != 0) return ErrnoStatus("truncate", path, errno);
      const bool had_some = offset > 0;
      uint32_t crc = 0;
      RETURN_IF_ERROR(AddFile(fd.get(), path, offset, crc));
      if (::lseek(fd.get(), offset, SEEK_SET) < 0) return ErrnoStatus("seek", path, errno);
      RETURN_IF_ERROR(remote_.Read(file, offset, [&](absl::string_view data) -> absl::Status {
        RETURN_IF_ERROR(WriteAll(fd.get(), data, path));
        crc = Crc32c(crc, data.data(), data.size());
        received_ += static_cast<int64_t>(data.size());
        return absl::OkStatus();
      }));
      if (crc == file.crc32c) {
        if (::fsync(fd.get()) != 0) return ErrnoStatus("fsync", path, errno);
        return absl::OkStatus();
      }
      if (!had_some) {
        return absl::DataLossError(absl::StrFormat("%s: has crc32c %08x, the manifest says %08x",
                                                   file.name, crc, file.crc32c));
      }
    }
    return absl::DataLossError(absl::StrCat(file.name, ": was spoiled while it was written"));
  }

  absl::Status SyncFolders() {
    RETURN_IF_ERROR(SyncFolder(partial_));
    std::error_code error;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(partial_, error)) {
      if (entry.is_directory()) RETURN_IF_ERROR(SyncFolder(entry.path().string()));
    }
    return absl::OkStatus();
  }

  RemoteCheckpoint& remote_;
  const std::string folder_;
  const std::string partial_;
  std::atomic<int64_t> received_{0};
};

}  // namespace

int RunDownload(CommandContext& context) {
  const std::string& word = context.parsed.arguments[1];
  std::string folder = context.parsed.arguments[2];
  while (folder.size() > 1 && folder.back() == '/') folder.pop_back();
  if (NamesFolder(word)) return context.FailUsage(absl::StrCat(word, " is a folder, not a job's"));
  int parallel = 4;
  if (!absl::SimpleAtoi(context.parsed.Get("parallel", "4"), &parallel) || parallel < 1 ||
      parallel > kMaxParallel) {
    return context.FailUsage(absl::StrCat("--parallel: expected 1 to ", kMaxParallel));
  }
  RemoteOptions options;
  if (!absl::SimpleAtoi(context.parsed.Get("chunk-bytes", "0"), &options.chunk_bytes) ||
      options.chunk_bytes < 0) {
    return context.FailUsage("--chunk-bytes: expected a number of bytes");
  }
  const std::string doing = absl::StrCat("download ", word);
  const absl::StatusOr<std::string> name = FindCheckpoint(context, word);
  if (!name.ok()) return FailCheckpoint(context, name.status(), doing);
  const absl::StatusOr<std::unique_ptr<RemoteCheckpoint>> remote =
      RemoteCheckpoint::Open(context.connection, context.terminal, *name, options);
  if (!remote.ok()) return FailCheckpoint(context, remote.status(), doing);
  Downloader downloader(**remote, folder);
  const absl::Status status = downloader.Run(parallel);
  if (!status.ok()) return FailCheckpoint(context, status, doing);
  int64_t bytes = 0;
  for (const RemoteFile& file : (*remote)->files()) bytes += file.size;
  if (context.format != Format::kTable) {
    context.terminal.out << Print(Json{{"name", *name},
                                       {"folder", folder},
                                       {"files", (*remote)->files().size()},
                                       {"bytes", bytes},
                                       {"bytes_received", downloader.received()}},
                                  context.format);
  } else {
    context.terminal.out << *name << " is in " << folder << ": " << (*remote)->files().size()
                         << " files, " << HumanBytes(bytes);
    if (downloader.received() < bytes) {
      context.terminal.out << ", of which " << HumanBytes(bytes - downloader.received())
                           << " were there";
    }
    context.terminal.out << "\n";
  }
  return 0;
}

}  // namespace switchyard
