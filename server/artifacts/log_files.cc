#include "server/artifacts/log_files.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <tuple>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/failpoint.h"
#include "base/fd.h"
#include "base/status_macros.h"
#include "server/artifacts/publisher.h"

namespace switchyard {
namespace {

Failpoint log_write("log.write", FailpointKind::kFallible);

// Beyond this a log is a mistake, and a wrong offset would make a hole of any size.
constexpr int64_t kMaxLogBytes = int64_t{64} << 30;

absl::StatusOr<std::string> ReadAt(int fd, const std::string& path, int64_t offset, size_t limit) {
  std::string data(limit, '\0');
  size_t got = 0;
  while (got < limit) {
    const ssize_t n =
        ::pread(fd, data.data() + got, limit - got, offset + static_cast<int64_t>(got));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus("read", path, errno);
    if (n == 0) break;
    got += static_cast<size_t>(n);
  }
  data.resize(got);
  return data;
}

}  // namespace

std::string LogFiles::Folder(const JobId& job, int32_t attempt) const {
  return absl::StrCat(JobFolder(root_, job), "/", attempt);
}

std::string LogFiles::Path(const JobId& job, const LogPlace& place) const {
  return absl::StrCat(Folder(job, place.attempt), "/",
                      place.rank < 0 ? "prep" : absl::StrCat("rank-", place.rank), ".",
                      place.stream);
}

absl::Status LogFiles::Write(const JobId& job, const LogPlace& place, absl::string_view data) {
  if ((place.stream != "stdout" && place.stream != "stderr") || place.rank < -1 ||
      place.offset < 0 || place.offset > kMaxLogBytes) {
    return absl::InvalidArgumentError(absl::StrCat("write log: rank ", place.rank, ", stream '",
                                                   place.stream, "', offset ", place.offset));
  }
  RETURN_IF_ERROR(MakeFolders(Folder(job, place.attempt)));
  const std::string path = Path(job, place);
  UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0644));
  if (!fd.valid()) return ErrnoStatus("open", path, errno);
  if (const int error = log_write.Errno(); error != 0) return ErrnoStatus("write", path, error);
  size_t done = 0;
  while (done < data.size()) {
    const ssize_t n = ::pwrite(fd.get(), data.data() + done, data.size() - done,
                               place.offset + static_cast<int64_t>(done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus("write", path, errno);
    done += static_cast<size_t>(n);
  }
  if (::fdatasync(fd.get()) != 0) return ErrnoStatus("fdatasync", path, errno);
  return absl::OkStatus();
}

std::vector<LogPlace> LogFiles::List(const JobId& job, int32_t attempt) const {
  std::vector<LogPlace> places;
  std::error_code error;
  std::filesystem::directory_iterator it(Folder(job, attempt), error);
  for (const std::filesystem::directory_iterator end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    const size_t dot = name.find('.');
    if (dot == std::string::npos) continue;
    LogPlace place{attempt, -1, name.substr(dot + 1), 0};
    absl::string_view who = absl::string_view(name).substr(0, dot);
    if (who != "prep" &&
        (!absl::ConsumePrefix(&who, "rank-") || !absl::SimpleAtoi(who, &place.rank))) {
      continue;
    }
    places.push_back(std::move(place));
  }
  std::sort(places.begin(), places.end(), [](const LogPlace& a, const LogPlace& b) {
    return std::tie(a.rank, a.stream) < std::tie(b.rank, b.stream);
  });
  return places;
}

absl::StatusOr<std::string> LogFiles::Read(const JobId& job, const LogPlace& place,
                                           size_t limit) const {
  const std::string path = Path(job, place);
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) {
    return errno == ENOENT ? absl::StatusOr<std::string>("") : ErrnoStatus("open", path, errno);
  }
  return ReadAt(fd.get(), path, place.offset, limit);
}

absl::StatusOr<int64_t> LogFiles::TailOffset(const JobId& job, const LogPlace& place,
                                             int32_t lines) const {
  constexpr int64_t kBlock = 1 << 16;
  const std::string path = Path(job, place);
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return ErrnoStatus("open", path, errno);
  struct stat st;
  if (::fstat(fd.get(), &st) != 0) return ErrnoStatus("stat", path, errno);
  // The newline that ends the last line starts no new one.
  int64_t wanted = int64_t{lines} + 1;
  for (int64_t end = st.st_size; end > 0;) {
    const int64_t begin = std::max<int64_t>(0, end - kBlock);
    ASSIGN_OR_RETURN(const std::string block,
                     ReadAt(fd.get(), path, begin, static_cast<size_t>(end - begin)));
    if (end == st.st_size && !block.empty() && block.back() != '\n') wanted -= 1;
    for (int64_t i = static_cast<int64_t>(block.size()) - 1; i >= 0; --i) {
      if (block[i] == '\n' && --wanted == 0) return begin + i + 1;
    }
    end = begin;
  }
  return 0;
}

}  // namespace switchyard
