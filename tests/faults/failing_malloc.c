// LD_PRELOAD: the allocation number FAILING_MALLOC of the process answers null, once. For row 28 of
// tests/faults.
#define _GNU_SOURCE
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>

extern void* __libc_malloc(size_t size);
extern void* __libc_calloc(size_t count, size_t size);
extern void* __libc_realloc(void* block, size_t size);

static atomic_long calls;
static long wanted;

__attribute__((constructor)) static void Begin(void) {
  const char* text = getenv("FAILING_MALLOC");
  wanted = text == NULL ? 0 : atol(text);
}

static int Fails(void) {
  if (wanted == 0 || atomic_fetch_add(&calls, 1) + 1 != wanted) return 0;
  errno = ENOMEM;
  return 1;
}

void* malloc(size_t size) { return Fails() ? NULL : __libc_malloc(size); }
void* calloc(size_t count, size_t size) { return Fails() ? NULL : __libc_calloc(count, size); }
void* realloc(void* block, size_t size) { return Fails() ? NULL : __libc_realloc(block, size); }
