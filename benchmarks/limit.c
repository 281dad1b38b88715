/* The memory limit of a rehearsal step: the bytes a buffer has to move, and nothing else. One thread, one call per
 * step.
 *
 * A step writes rows of a batch, which lie one after the other, into slots of a slab, then gathers slots into a staging
 * area, record by record, in one of three ways: memcpy, stores that bypass the caches, ordinary vector stores. Compiled
 * and called by limit.py, which owns all memory; what pages it lies on is decided there.
 */
#define _POSIX_C_SOURCE 200112L
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

enum Way { kMemcpy, kStream, kStores };

/* Only whole records of a page or more, on whole lines, are worth bypassing memcpy for. */
enum { kLine = 64, kVectorFrom = 4096 };

/* One tensor of a sample: `record` bytes each, in the slab, in the batch and in the staging area. */
struct Column {
  size_t record;
  char* slab;
  const char* batch;
  char* staging;
};

#if defined(__AVX512F__)
typedef __m512i Vector;
#define LOAD(source) _mm512_loadu_si512(source)
#define STORE(target, value) _mm512_store_si512(target, value)
#define STREAM(target, value) _mm512_stream_si512(target, value)
#elif defined(__AVX__)
typedef __m256i Vector;
#define LOAD(source) _mm256_loadu_si256((const __m256i*)(source))
#define STORE(target, value) _mm256_store_si256(target, value)
#define STREAM(target, value) _mm256_stream_si256(target, value)
#elif defined(__SSE2__)
typedef __m128i Vector;
#define LOAD(source) _mm_loadu_si128((const __m128i*)(source))
#define STORE(target, value) _mm_store_si128(target, value)
#define STREAM(target, value) _mm_stream_si128(target, value)
#endif

static void Copy(enum Way way, char* restrict target, const char* restrict source, size_t bytes) {
#if defined(__SSE2__)
  if (way != kMemcpy && bytes >= kVectorFrom && (uintptr_t)target % kLine == 0) {
    const size_t whole = bytes - bytes % sizeof(Vector);
    if (way == kStream) {
      for (size_t i = 0; i < whole; i += sizeof(Vector)) STREAM((Vector*)(target + i), LOAD(source + i));
    } else {
      for (size_t i = 0; i < whole; i += sizeof(Vector)) STORE((Vector*)(target + i), LOAD(source + i));
    }
    target += whole;
    source += whole;
    bytes -= whole;
  }
#else
  (void)way;
#endif
  memcpy(target, source, bytes);
}

static void Fence(enum Way way) {
#if defined(__SSE2__)
  if (way == kStream) _mm_sfence();
#else
  (void)way;
#endif
}

static uint64_t Now(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Row rows[i] of the batch goes to slots[i]; slot drawn[i] goes to row i of the staging area. ns: insert, draw. */
void LimitStep(enum Way insert, enum Way draw, size_t num_columns, const struct Column* columns, size_t num_writes,
               const int64_t* rows, const int64_t* slots, size_t num_drawn, const int64_t* drawn, uint64_t ns[2]) {
  const uint64_t start = Now();
  for (const struct Column* c = columns; c < columns + num_columns; ++c) {
    for (size_t i = 0; i < num_writes; ++i) {
      Copy(insert, c->slab + (size_t)slots[i] * c->record, c->batch + (size_t)rows[i] * c->record, c->record);
    }
  }
  Fence(insert);
  const uint64_t between = Now();
  for (const struct Column* c = columns; c < columns + num_columns; ++c) {
    for (size_t i = 0; i < num_drawn; ++i) {
      Copy(draw, c->staging + i * c->record, c->slab + (size_t)drawn[i] * c->record, c->record);
    }
  }
  Fence(draw);
  ns[0] = between - start;
  ns[1] = Now() - between;
}
