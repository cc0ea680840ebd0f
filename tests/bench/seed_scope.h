// Random numbers that depend on a seed alone, also where ranks are threads.
#ifndef SWITCHYARD_TESTS_BENCH_SEED_SCOPE_H_
#define SWITCHYARD_TESTS_BENCH_SEED_SCOPE_H_

#include <ATen/Context.h>

#include <cstdint>

#include "absl/synchronization/mutex.h"

namespace switchyard::bench {

// Seeds ATen's default generators, which all threads share, and keeps other scopes away from them
// until its end. Not to be nested.
class SeedScope {
 public:
  explicit SeedScope(uint64_t seed) : lock_(&Mutex()) { at::manual_seed(seed); }

 private:
  static absl::Mutex& Mutex() {
    static absl::Mutex mutex;
    return mutex;
  }
  absl::MutexLock lock_;
};

}  // namespace switchyard::bench

#endif  // SWITCHYARD_TESTS_BENCH_SEED_SCOPE_H_
