// Logs and fatal checks. One line per state change, `key=value` at the end:
//   SY_LOG(INFO) << "job started job=" << id << " attempt=" << n;
// Lines go to stderr as "2026-11-24T11:20:01.123Z I file.cc:42] message". Thread-safe: one write(2)
// per line. The level is set once, in main.
#ifndef SWITCHYARD_BASE_LOG_H_
#define SWITCHYARD_BASE_LOG_H_

#include <sstream>

namespace switchyard {

// kNone: no lines; only what ends the process is still printed.
enum class LogLevel { kDebug = 0, kInfo = 1, kWarning = 2, kError = 3, kNone = 4 };

// Lines below `level` are dropped. Default: kInfo.
void SetLogLevel(LogLevel level);
// Put before every message, such as "rank 3 "; empty by default. Call before threads start.
void SetLogPrefix(const char* prefix);

namespace log_internal {

bool Enabled(LogLevel level);

// Collects one line and writes it when destroyed; aborts afterwards when fatal.
class Line {
 public:
  Line(LogLevel level, const char* file, int line, bool fatal = false);
  ~Line();
  Line(const Line&) = delete;
  Line& operator=(const Line&) = delete;
  std::ostream& stream() { return stream_; }

 private:
  LogLevel level_;
  bool fatal_;
  std::ostringstream stream_;
};

struct Voidify {
  void operator&(std::ostream&) const {}
};

}  // namespace log_internal
}  // namespace switchyard

#define SY_LOG_LEVEL_DEBUG ::switchyard::LogLevel::kDebug
#define SY_LOG_LEVEL_INFO ::switchyard::LogLevel::kInfo
#define SY_LOG_LEVEL_WARNING ::switchyard::LogLevel::kWarning
#define SY_LOG_LEVEL_ERROR ::switchyard::LogLevel::kError

#define SY_LOG(level)                                        \
  !::switchyard::log_internal::Enabled(SY_LOG_LEVEL_##level) \
      ? (void)0                                              \
      : ::switchyard::log_internal::Voidify() &              \
            ::switchyard::log_internal::Line(SY_LOG_LEVEL_##level, __FILE__, __LINE__).stream()

// For programmer errors only, never for input. Prints and aborts.
#define SY_CHECK(condition)                                                                  \
  (condition) ? (void)0                                                                      \
              : ::switchyard::log_internal::Voidify() &                                      \
                    ::switchyard::log_internal::Line(SY_LOG_LEVEL_ERROR, __FILE__, __LINE__, \
                                                     /*fatal=*/true)                         \
                            .stream()                                                        \
                        << "bug: check failed: " #condition " "

#endif  // SWITCHYARD_BASE_LOG_H_
