#include "worker/agent/host_stats.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/fd.h"

namespace switchyard {
namespace {

std::string ReadOrEmpty(const std::string& path) { return ReadFile(path).value_or(""); }

// The number after `name` at the start of a line, or `fallback`.
int64_t FindNumber(absl::string_view text, absl::string_view name, int64_t fallback) {
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    if (!absl::ConsumePrefix(&line, name)) continue;
    const std::vector<absl::string_view> words =
        absl::StrSplit(line, absl::ByAnyChar(": "), absl::SkipEmpty());
    int64_t value;
    if (!words.empty() && absl::SimpleAtoi(words[0], &value)) return value;
  }
  return fallback;
}

}  // namespace

HostMemory ReadHostMemory() {
  const std::string text = ReadOrEmpty("/proc/meminfo");
  return {FindNumber(text, "MemTotal:", 0) * 1024, FindNumber(text, "MemAvailable:", 0) * 1024};
}

ProcessUsage ReadProcessUsage(pid_t pid) {
  // "pid (name with spaces) state ppid ..."; utime and stime are fields 14 and 15, rss is 24.
  const std::string text = ReadOrEmpty(absl::StrCat("/proc/", pid, "/stat"));
  const size_t name_end = text.rfind(')');
  if (name_end == std::string::npos) return {};
  const std::vector<absl::string_view> fields =
      absl::StrSplit(absl::string_view(text).substr(name_end + 1), ' ', absl::SkipEmpty());
  int64_t user = 0, system = 0, pages = 0;
  if (fields.size() < 22 || !absl::SimpleAtoi(fields[11], &user) ||
      !absl::SimpleAtoi(fields[12], &system) || !absl::SimpleAtoi(fields[21], &pages)) {
    return {};
  }
  return {static_cast<double>(user + system) / static_cast<double>(::sysconf(_SC_CLK_TCK)),
          pages * ::sysconf(_SC_PAGESIZE)};
}

std::string DescribeProcess(pid_t pid) {
  const std::string text = ReadOrEmpty(absl::StrCat("/proc/", pid, "/stat"));
  const size_t name_end = text.rfind(')');
  if (name_end == std::string::npos || name_end + 2 >= text.size()) return "is gone";
  std::string description = absl::StrCat("is in state ", text.substr(name_end + 2, 1));
  const std::string where = ReadOrEmpty(absl::StrCat("/proc/", pid, "/wchan"));
  if (where.size() > 1) absl::StrAppend(&description, ", waits in ", where);
  return description;
}

int64_t ParseOomKills(absl::string_view vmstat) { return FindNumber(vmstat, "oom_kill ", -1); }

int64_t ReadOomKills() { return ParseOomKills(ReadOrEmpty("/proc/vmstat")); }

std::string ReadBootId() {
  return std::string(absl::StripAsciiWhitespace(ReadOrEmpty("/proc/sys/kernel/random/boot_id")));
}

std::string ReadMachineId() {
  const std::string id(absl::StripAsciiWhitespace(ReadOrEmpty("/etc/machine-id")));
  return id == "uninitialized" ? "" : id;  // what an image has before its first boot
}

absl::StatusOr<int> FindFreePort(const std::string& address) {
  addrinfo hints{};
  hints.ai_flags = AI_NUMERICHOST | AI_PASSIVE;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* info = nullptr;
  if (const int error = ::getaddrinfo(address.c_str(), "0", &hints, &info); error != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("find a free port of ", address, ": ", ::gai_strerror(error)));
  }
  const absl::Cleanup free_info = [info] { ::freeaddrinfo(info); };
  const UniqueFd fd(::socket(info->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return ErrnoStatus("make a socket for", address, errno);
  sockaddr_storage bound{};
  socklen_t size = sizeof(bound);
  if (::bind(fd.get(), info->ai_addr, info->ai_addrlen) != 0 ||
      ::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&bound), &size) != 0) {
    return ErrnoStatus("find a free port of", address, errno);
  }
  return ntohs(bound.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6*>(&bound)->sin6_port
                                           : reinterpret_cast<sockaddr_in*>(&bound)->sin_port);
}

}  // namespace switchyard
