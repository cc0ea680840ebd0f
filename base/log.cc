#include "base/log.h"

#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <string>

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace switchyard {
namespace {

std::atomic<LogLevel> g_level{LogLevel::kInfo};

std::string& Prefix() {
  static std::string* prefix = new std::string;
  return *prefix;
}

const char* BaseName(const char* path) {
  const char* base = path;
  for (const char* p = path; *p != '\0'; ++p) {
    if (*p == '/') base = p + 1;
  }
  return base;
}

}  // namespace

void SetLogLevel(LogLevel level) { g_level = level; }
void SetLogPrefix(const char* prefix) { Prefix() = prefix; }

namespace log_internal {

bool Enabled(LogLevel level) { return level >= g_level.load(std::memory_order_relaxed); }

Line::Line(LogLevel level, const char* file, int line, bool fatal) : level_(level), fatal_(fatal) {
  stream_ << absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", absl::Now(), absl::UTCTimeZone()) << ' '
          << "DIWE"[static_cast<int>(level_)] << ' ' << BaseName(file) << ':' << line << "] "
          << Prefix();
}

Line::~Line() {
  stream_ << '\n';
  const std::string text = stream_.str();
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t n = ::write(STDERR_FILENO, text.data() + done, text.size() - done);
    if (n <= 0) break;
    done += static_cast<size_t>(n);
  }
  if (fatal_) std::abort();
}

}  // namespace log_internal
}  // namespace switchyard
