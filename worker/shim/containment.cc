#include "worker/shim/containment.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <string_view>

#include "worker/shim/attempt_files.h"

namespace switchyard {
namespace {

// Whether the open that failed says nothing about what it was to open.
bool IsOutOfMeans() { return errno == EMFILE || errno == ENFILE || errno == ENOMEM; }

// Files of /proc and cgroups have no size to ask for. `known`: cleared when this process lacks the
// descriptors or the memory to look.
std::string ReadAll(const std::string& path, bool* known = nullptr) {
  std::string text;
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    if (known != nullptr && IsOutOfMeans()) *known = false;
    return text;
  }
  char buffer[4096];
  ssize_t n;
  while ((n = ::read(fd, buffer, sizeof(buffer))) > 0 || (n < 0 && errno == EINTR)) {
    if (n > 0) text.append(buffer, static_cast<size_t>(n));
  }
  ::close(fd);
  return text;
}

bool WriteTo(const std::string& path, std::string_view text) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CLOEXEC);
  if (fd < 0) return false;
  const bool ok = ::write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size());
  ::close(fd);
  return ok;
}

// The words of one line of /proc/self/mountinfo.
std::vector<std::string_view> Words(std::string_view line) {
  std::vector<std::string_view> words;
  while (!line.empty()) {
    const size_t end = std::min(line.find(' '), line.size());
    if (end > 0) words.push_back(line.substr(0, end));
    line.remove_prefix(std::min(end + 1, line.size()));
  }
  return words;
}

// Where the cgroup v2 tree is mounted; empty: nowhere.
std::string FindMount() {
  const std::string mounts = ReadAll("/proc/self/mountinfo");
  std::string_view rest = mounts;
  while (!rest.empty()) {
    const size_t end = std::min(rest.find('\n'), rest.size());
    // "36 35 98:0 /root /mount/point options - type source ..."
    const std::vector<std::string_view> words = Words(rest.substr(0, end));
    for (size_t i = 6; i + 1 < words.size(); ++i) {
      if (words[i] == "-" && words[i + 1] == "cgroup2") return std::string(words[4]);
    }
    rest.remove_prefix(std::min(end + 1, rest.size()));
  }
  return "";
}

std::string OwnCgroup() {
  const std::string text = ReadAll("/proc/self/cgroup");
  std::string_view rest = text;
  while (!rest.empty()) {
    const size_t end = std::min(rest.find('\n'), rest.size());
    const std::string_view line = rest.substr(0, end);
    if (line.substr(0, 3) == "0::") return std::string(line.substr(3));
    rest.remove_prefix(std::min(end + 1, rest.size()));
  }
  return "";
}

bool IsZombie(const std::string& process) {
  const std::string stat = ReadAll(process + "/stat");
  const size_t name_end = stat.rfind(')');
  return name_end == std::string::npos || name_end + 2 >= stat.size() ||
         stat[name_end + 2] == 'Z' || stat[name_end + 2] == 'X';
}

// `known`: cleared when there may be more.
std::vector<pid_t> ScanForScope(const std::string& scope, bool* known = nullptr) {
  std::vector<pid_t> found;
  const std::string marker = std::string(kScopeVariable) + "=" + scope;
  DIR* folder = ::opendir("/proc");
  if (folder == nullptr) {
    if (known != nullptr) *known = false;
    return found;
  }
  while (const dirent* entry = ::readdir(folder)) {
    pid_t pid = 0;
    const char* end = entry->d_name + std::strlen(entry->d_name);
    if (std::from_chars(entry->d_name, end, pid).ptr != end || pid <= 1) continue;
    const std::string process = std::string("/proc/") + entry->d_name;
    const std::string environment = ReadAll(process + "/environ", known);
    size_t at = 0;
    while (at < environment.size()) {
      const size_t stop = std::min(environment.find('\0', at), environment.size());
      if (environment.compare(at, stop - at, marker) == 0) {
        if (!IsZombie(process)) found.push_back(pid);
        break;
      }
      at = stop + 1;
    }
  }
  ::closedir(folder);
  return found;
}

}  // namespace

std::string MakeCgroup(const std::string& name, std::string* why) {
  const std::string mount = FindMount();
  if (mount.empty()) {
    *why = "no cgroup v2 tree is mounted";
    return "";
  }
  const std::string own = OwnCgroup();
  const std::string path = mount + (own == "/" ? "" : own) + "/" + name;
  if (::mkdir(path.c_str(), 0755) != 0 && errno != EEXIST) {
    *why = "make " + path + ": " + std::strerror(errno);
    return "";
  }
  if (::access((path + "/cgroup.kill").c_str(), W_OK) != 0) {
    *why = "the kernel has no cgroup.kill";
    ::rmdir(path.c_str());
    return "";
  }
  return path;
}

void RemoveCgroup(const std::string& cgroup) {
  if (!cgroup.empty()) ::rmdir(cgroup.c_str());
}

void KillAll(const Containment& containment) {
  if (!containment.cgroup.empty()) {
    WriteTo(containment.cgroup + "/cgroup.kill", "1");
    return;
  }
  for (const pid_t pid : ScanForScope(containment.scope)) ::kill(pid, SIGKILL);
}

bool IsEmpty(const Containment& containment) {
  bool known = true;
  if (containment.cgroup.empty()) {
    return ScanForScope(containment.scope, &known).empty() && known;
  }
  const std::string events = ReadAll(containment.cgroup + "/cgroup.events", &known);
  return known && events.find("populated 1") == std::string::npos;  // also when the folder is gone
}

std::vector<pid_t> Members(const Containment& containment) {
  if (containment.cgroup.empty()) return ScanForScope(containment.scope);
  std::vector<pid_t> pids;
  const std::string text = ReadAll(containment.cgroup + "/cgroup.procs");
  const char* at = text.data();
  const char* const end = text.data() + text.size();
  while (at < end) {
    pid_t pid = 0;
    const auto [next, error] = std::from_chars(at, end, pid);
    if (error == std::errc() && pid > 0) pids.push_back(pid);
    at = next == at ? at + 1 : next;
  }
  return pids;
}

}  // namespace switchyard
