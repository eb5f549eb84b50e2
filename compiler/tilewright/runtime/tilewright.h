/* tilewright runtime: optional threads for compiled models. C99, C++.
 *
 * A compiled model NAME needs nothing of this file to run on one thread:
 *     int32_t NAME_run(const void *const *inputs, void *const *outputs, void *arena);
 * To run on several threads, hand NAME_run_parallel a `tilewright_parallel`: either the pool below
 * (compile pool.c, link with -pthread) or your own scheduler behind the same two fields.
 */
#ifndef TILEWRIGHT_H
#define TILEWRIGHT_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__) || defined(__clang__)
#define TILEWRIGHT_API __attribute__((visibility("default")))
#else
#define TILEWRIGHT_API
#endif

/* Does the iterations [begin, end) of a parallel loop. */
typedef void (*tilewright_task)(void *context, int64_t begin, int64_t end);

/* Runs `task` over [0, count), statically cut into contiguous ranges, on any number of threads;
 * returns when all are done, and what they wrote is then visible to the caller. `self` is passed
 * through. */
typedef struct tilewright_parallel {
  void (*parallel_for)(void *self, tilewright_task task, void *context, int64_t count);
  void *self;
} tilewright_parallel;

/* A pool of `threads` - 1 workers; the calling thread does the remaining share.
 *
 * Several threads may use one pool: while one of them occupies the workers, the others (and loops
 * nested in a task) run their loops alone. Waiting threads spin for a short, bounded time, then sleep.
 * A pool does not survive fork(): create another one in the child. */
typedef struct tilewright_pool tilewright_pool;

/* Creates a pool; 0 means as many threads as this process may use CPUs. Returns NULL if `threads` is
 * negative or above 1024, or the system refuses memory or threads. */
TILEWRIGHT_API tilewright_pool *tilewright_pool_create(int32_t threads);

/* Number of threads that share a loop, the caller included. */
TILEWRIGHT_API int32_t tilewright_pool_threads(const tilewright_pool *pool);

/* The pool as an argument for NAME_run_parallel; valid until the pool is destroyed. */
TILEWRIGHT_API const tilewright_parallel *tilewright_pool_parallel(const tilewright_pool *pool);

/* Stops and joins the workers; no loop may be running. NULL is allowed. */
TILEWRIGHT_API void tilewright_pool_destroy(tilewright_pool *pool);

#ifdef __cplusplus
}
#endif

#endif
