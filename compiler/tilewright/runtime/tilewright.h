/* tilewright runtime: optional threads for compiled models. C99 and C++.
 *
 * A compiled model NAME needs nothing of this file to run on one thread:
 *     int32_t NAME_run(const void *const *inputs, void *const *outputs, void *arena);
 * To run on several threads, hand NAME_run_parallel a `tilewright_parallel`: either the pool below or
 * your own scheduler behind the same two fields.
 */
#ifndef TILEWRIGHT_H
#define TILEWRIGHT_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Does the iterations [begin, end) of a parallel loop. */
typedef void (*tilewright_task)(void *context, int64_t begin, int64_t end);

/* Runs `task` over [0, count) in contiguous ranges on any number of threads; returns when all are
 * done. `self` is passed through. */
typedef struct tilewright_parallel {
  void (*parallel_for)(void *self, tilewright_task task, void *context, int64_t count);
  void *self;
} tilewright_parallel;

/* A pool of threads - 1 workers; the calling thread is the remaining one. One caller at a time. */
typedef struct tilewright_pool tilewright_pool;

/* Creates a pool; returns NULL if threads < 1 or the system refuses memory or threads. */
tilewright_pool *tilewright_pool_create(int32_t threads);

/* The pool as an argument for NAME_run_parallel; valid until the pool is destroyed. */
const tilewright_parallel *tilewright_pool_parallel(const tilewright_pool *pool);

/* Stops and joins the workers. NULL is allowed. */
void tilewright_pool_destroy(tilewright_pool *pool);

#ifdef __cplusplus
}
#endif

#endif
