// Only in builds with ThreadSanitizer, and part of every program of such a build.
//
// Debian's Abseil is not instrumented, so that ThreadSanitizer does not see what absl::Mutex and
// absl::Notification order, and calls everything they guard a race. The functions here stand in
// front of Abseil's own (the dynamic linker takes the program's first), tell ThreadSanitizer, and
// call on. Conditions are evaluated inside Abseil, at times on the thread of another waiter that
// lets go of the mutex; reads there are ignored, for the mutex is held.
#include <dlfcn.h>
#include <sanitizer/tsan_interface.h>
#include <stdlib.h>

#include <string>

#include "absl/base/options.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"

extern "C" void AnnotateIgnoreReadsBegin(const char* file, int line);
extern "C" void AnnotateIgnoreReadsEnd(const char* file, int line);

namespace {

#define SY_STRING_OF(x) #x
#define SY_STRING(x) SY_STRING_OF(x)

// Abseil's own function; `name`: mangled, behind the namespaces.
template <typename Function>
Function Real(const char* name) {
  const std::string inside = SY_STRING(ABSL_OPTION_INLINE_NAMESPACE_NAME);
  const std::string prefix = ABSL_OPTION_USE_INLINE_NAMESPACE
                                 ? "_ZN4absl" + std::to_string(inside.size()) + inside
                                 : "_ZN4absl";
  void* const function = dlsym(RTLD_NEXT, (prefix + name).c_str());
  if (function == nullptr) abort();
  return reinterpret_cast<Function>(function);
}

class IgnoreReads {
 public:
  IgnoreReads() { AnnotateIgnoreReadsBegin(__FILE__, __LINE__); }
  ~IgnoreReads() { AnnotateIgnoreReadsEnd(__FILE__, __LINE__); }
};

}  // namespace

namespace absl {
ABSL_NAMESPACE_BEGIN

void Mutex::Lock() {
  static const auto real = Real<void (*)(Mutex*)>("5Mutex4LockEv");
  {
    const IgnoreReads ignore;
    real(this);
  }
  __tsan_acquire(this);
}

void Mutex::Unlock() {
  static const auto real = Real<void (*)(Mutex*)>("5Mutex6UnlockEv");
  __tsan_release(this);
  const IgnoreReads ignore;
  real(this);
}

void Mutex::Await(const Condition& condition) {
  static const auto real =
      Real<void (*)(Mutex*, const Condition&)>("5Mutex5AwaitERKNS0_9ConditionE");
  __tsan_release(this);
  {
    const IgnoreReads ignore;
    real(this, condition);
  }
  __tsan_acquire(this);
}

bool Mutex::AwaitWithTimeout(const Condition& condition, Duration timeout) {
  static const auto real = Real<bool (*)(Mutex*, const Condition&, Duration)>(
      "5Mutex16AwaitWithTimeoutERKNS0_9ConditionENS0_8DurationE");
  __tsan_release(this);
  bool result;
  {
    const IgnoreReads ignore;
    result = real(this, condition, timeout);
  }
  __tsan_acquire(this);
  return result;
}

void Notification::Notify() {
  static const auto real = Real<void (*)(Notification*)>("12Notification6NotifyEv");
  // HasBeenNotified is inline and reads the flag behind the mutex.
  __tsan_release(reinterpret_cast<char*>(this) + sizeof(Mutex));
  real(this);
}

ABSL_NAMESPACE_END
}  // namespace absl
