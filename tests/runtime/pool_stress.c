/* Exercises the thread pool; prints "ok" or says what went wrong. Built with and without sanitizers.
 *
 * usage: pool_stress THREADS ROUNDS         check
 *        pool_stress THREADS ROUNDS time    print nanoseconds per empty loop
 */
#define _GNU_SOURCE
#include "tilewright.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MOST = 1000 };

typedef struct {
  uint32_t seen[MOST]; /* plain memory: a race or a missing barrier shows under TSan */
  const tilewright_parallel *nested;
} marks;

static void mark(void *context, int64_t begin, int64_t end) {
  marks *m = context;
  for (int64_t i = begin; i < end; ++i)
    m->seen[i] += 1;
}

static void mark_nested(void *context, int64_t begin, int64_t end) {
  marks *m = context;
  for (int64_t i = begin; i < end; ++i) {
    marks inner;
    memset(&inner, 0, sizeof inner);
    m->nested->parallel_for(m->nested->self, mark, &inner, 7);
    for (int k = 0; k < 7; ++k)
      if (inner.seen[k] != 1)
        return; /* leaves its mark out: reported by the caller */
    m->seen[i] += 1;
  }
}

static void nothing(void *context, int64_t begin, int64_t end) {
  (void)context, (void)begin, (void)end;
}

static int check(const tilewright_parallel *p, int64_t count, int nested) {
  static _Thread_local marks m;
  memset(&m, 0, sizeof m);
  m.nested = p;
  p->parallel_for(p->self, nested ? mark_nested : mark, &m, count);
  for (int64_t i = 0; i < MOST; ++i)
    if (m.seen[i] != (i < count)) {
      printf("count %d: iteration %d ran %u times\n", (int)count, (int)i, m.seen[i]);
      return 0;
    }
  return 1;
}

typedef struct {
  const tilewright_parallel *p;
  int rounds;
  int ok;
} caller;

static void *many(void *argument) {
  caller *c = argument;
  unsigned state = 12345u + (unsigned)(size_t)c % 977u;
  c->ok = 1;
  for (int r = 0; r < c->rounds && c->ok; ++r) {
    state = state * 1664525u + 1013904223u;
    c->ok = check(c->p, (state >> 16) % MOST, r % 16 == 0);
    if (r % 200 == 0) { /* long enough for every worker to park */
      struct timespec nap = {0, 2000000};
      nanosleep(&nap, NULL);
    }
  }
  return NULL;
}

int main(int argc, char **argv) {
  int threads = argc > 1 ? atoi(argv[1]) : 4, rounds = argc > 2 ? atoi(argv[2]) : 1000;
  tilewright_pool *pool = tilewright_pool_create(threads);
  if (!pool || tilewright_pool_threads(pool) != threads)
    return printf("cannot create %d threads\n", threads), 1;
  const tilewright_parallel *p = tilewright_pool_parallel(pool);
  if (argc > 3) {
    struct timespec a, b;
    double best = 1e18;
    for (int batch = 0; batch < 20; ++batch) {
      clock_gettime(CLOCK_MONOTONIC, &a);
      for (int r = 0; r < rounds; ++r)
        p->parallel_for(p->self, nothing, NULL, threads);
      clock_gettime(CLOCK_MONOTONIC, &b);
      double ns = ((double)(b.tv_sec - a.tv_sec) * 1e9 + (double)(b.tv_nsec - a.tv_nsec)) / rounds;
      best = ns < best ? ns : best;
    }
    printf("%.0f\n", best);
    tilewright_pool_destroy(pool);
    return 0;
  }
  caller one = {p, rounds, 0};
  many(&one);
  caller both[2] = {{p, rounds / 4, 0}, {p, rounds / 4, 0}};
  pthread_t handles[2];
  for (int i = 0; i < 2; ++i)
    if (pthread_create(&handles[i], NULL, many, &both[i]))
      return printf("cannot start a caller\n"), 1;
  for (int i = 0; i < 2; ++i)
    pthread_join(handles[i], NULL);
  tilewright_pool_destroy(pool);
  tilewright_pool_destroy(NULL);
  for (int i = 0; i < 20; ++i) { /* stopped before, while and after the workers first look */
    pool = tilewright_pool_create(threads);
    if (i % 2 && !check(tilewright_pool_parallel(pool), i, 0))
      return 1;
    tilewright_pool_destroy(pool);
  }
  if (tilewright_pool_create(-1) || tilewright_pool_create(100000))
    return printf("a nonsensical number of threads was accepted\n"), 1;
  if (!one.ok || !both[0].ok || !both[1].ok)
    return 1;
  puts("ok");
  return 0;
}
