// Calls that change files, made to fail: for LD_PRELOAD, or linked into a test. Only paths that
// contain FAILING_CALLS_UNDER count. Calls are numbered from 1 in the order in which they come.
//
//   FAILING_CALLS_UNDER   part of a path: "/staging/"
//   FAILING_CALLS_AT      the number of the call that fails; 0: none
//   FAILING_CALLS_MODE    eio, enospc: it fails so; enospc-on: it and all after it, until
//                         FAILING_CALLS_LAST; short: a write writes half, other calls succeed;
//                         kill: the process dies before it, killed-after: after it; slow: it takes
//                         a second
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum Mode { kNone, kEio, kEnospc, kEnospcOn, kShort, kKill, kKilledAfter, kSlow };

static atomic_long calls;
static long wanted, last;
static enum Mode mode;
static char under[512];

// For tests that link this: begins to count again.
void ArmFailingCalls(const char* part, long at, const char* how, long until) {
  static const char* const kNames[] = {"",      "eio",  "enospc",       "enospc-on",
                                       "short", "kill", "killed-after", "slow"};
  snprintf(under, sizeof(under), "%s", part);
  mode = kNone;
  for (int i = 1; i < 8; ++i) {
    if (strcmp(how, kNames[i]) == 0) mode = (enum Mode)i;
  }
  wanted = at;
  last = until;
  atomic_store(&calls, 0);
}

// Calls under the path since then.
long CountedCalls(void) { return atomic_load(&calls); }

__attribute__((constructor)) static void Begin(void) {
  const char* part = getenv("FAILING_CALLS_UNDER");
  const char* at = getenv("FAILING_CALLS_AT");
  const char* how = getenv("FAILING_CALLS_MODE");
  const char* until = getenv("FAILING_CALLS_LAST");
  if (part != NULL && at != NULL && how != NULL) {
    ArmFailingCalls(part, atol(at), how, until != NULL ? atol(until) : 1L << 60);
  }
}

__attribute__((noreturn)) static void Die(void) {
  kill(getpid(), SIGKILL);
  for (;;) pause();
}

enum Verdict { kGoOn, kFail, kHalf, kDieAfter };

static enum Verdict Count(const char* path, int is_write) {
  if (mode == kNone || under[0] == 0 || path == NULL || strstr(path, under) == NULL) return kGoOn;
  const long call = atomic_fetch_add(&calls, 1) + 1;
  if (mode == kEnospcOn) {
    if (call < wanted || call > last) return kGoOn;
    errno = ENOSPC;
    return kFail;
  }
  if (call != wanted) return kGoOn;
  switch (mode) {
    case kEio:
      errno = EIO;
      return kFail;
    case kEnospc:
      errno = ENOSPC;
      return kFail;
    case kShort:
      return is_write ? kHalf : kGoOn;
    case kKill:
      Die();
    case kKilledAfter:
      return kDieAfter;
    case kSlow:
      usleep(1000 * 1000);
      return kGoOn;
    default:
      return kGoOn;
  }
}

static enum Verdict CountFd(int fd, int is_write) {
  if (mode == kNone) return kGoOn;
  char link[64], path[4096];
  snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
  const ssize_t n = readlink(link, path, sizeof(path) - 1);
  if (n <= 0) return kGoOn;
  path[n] = 0;
  return Count(path, is_write);
}

#define NEXT(name)               \
  static __typeof__(name)* next; \
  if (next == NULL) next = (__typeof__(name)*)dlsym(RTLD_NEXT, #name)

#define ANSWER(verdict, call)          \
  do {                                 \
    if ((verdict) == kFail) return -1; \
    __typeof__(call) result = (call);  \
    if ((verdict) == kDieAfter) Die(); \
    return result;                     \
  } while (0)

static int Changes(int flags) { return (flags & O_ACCMODE) != O_RDONLY || (flags & O_CREAT) != 0; }

#define OPEN(name)                                                                         \
  int name(const char* path, int flags, ...) {                                             \
    NEXT(name);                                                                            \
    va_list arguments;                                                                     \
    va_start(arguments, flags);                                                            \
    const mode_t access = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(arguments, mode_t) : 0; \
    va_end(arguments);                                                                     \
    const enum Verdict verdict = Changes(flags) ? Count(path, 0) : kGoOn;                  \
    ANSWER(verdict, next(path, flags, access));                                            \
  }
OPEN(open)
OPEN(open64)

#define WRITE(name, declaration, fd, size, whole, half)   \
  ssize_t name declaration {                              \
    NEXT(name);                                           \
    const enum Verdict verdict = CountFd(fd, (size) > 1); \
    if (verdict == kHalf) return half;                    \
    ANSWER(verdict, whole);                               \
  }
WRITE(write, (int fd, const void* data, size_t size), fd, size, next(fd, data, size),
      next(fd, data, size / 2))
WRITE(pwrite, (int fd, const void* data, size_t size, off_t at), fd, size, next(fd, data, size, at),
      next(fd, data, size / 2, at))
WRITE(pwrite64, (int fd, const void* data, size_t size, off64_t at), fd, size,
      next(fd, data, size, at), next(fd, data, size / 2, at))

#define ON_FD(name, declaration, fd, call)       \
  int name declaration {                         \
    NEXT(name);                                  \
    const enum Verdict verdict = CountFd(fd, 0); \
    ANSWER(verdict, call);                       \
  }
ON_FD(fsync, (int fd), fd, next(fd))
ON_FD(fdatasync, (int fd), fd, next(fd))
ON_FD(ftruncate, (int fd, off_t size), fd, next(fd, size))
ON_FD(ftruncate64, (int fd, off64_t size), fd, next(fd, size))
ON_FD(fallocate, (int fd, int flags, off_t at, off_t size), fd, next(fd, flags, at, size))
ON_FD(fallocate64, (int fd, int flags, off64_t at, off64_t size), fd, next(fd, flags, at, size))

int mkdir(const char* path, mode_t access) {
  NEXT(mkdir);
  const enum Verdict verdict = Count(path, 0);
  ANSWER(verdict, next(path, access));
}

int rename(const char* from, const char* to) {
  NEXT(rename);
  const enum Verdict verdict = Count(to, 0);
  ANSWER(verdict, next(from, to));
}
