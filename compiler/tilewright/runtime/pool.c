/* A small thread pool: static partition, one generation counter, spin briefly, then park.
 *
 * The caller publishes a task, bumps `generation`, does its own share and waits for `pending` to reach
 * zero. Workers spin on `generation` for a bounded time, so that consecutive kernels of one inference
 * cost no system call, and then sleep on a condition variable, so that an idle pool costs nothing.
 * Every field that threads share is atomic or written only while no worker runs.
 */
#include "tilewright.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

enum { CACHE_LINE = 64, SPINS = 4000 };

struct tilewright_pool {
  _Atomic uint32_t generation; /* one more for every task */
  char pad0[CACHE_LINE - sizeof(uint32_t)];
  _Atomic int32_t pending; /* workers that have not finished the current task */
  char pad1[CACHE_LINE - sizeof(int32_t)];
  _Atomic int32_t sleeping; /* workers that wait on `wake` */
  _Atomic int32_t stop;
  int32_t threads;
  tilewright_task task;
  void *context;
  int64_t count;
  pthread_mutex_t lock;
  pthread_cond_t wake;
  tilewright_parallel parallel;
  pthread_t *handles;
};

typedef struct {
  tilewright_pool *pool;
  int32_t index;
} worker_argument;

static void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__) || defined(__arm__)
  __asm__ volatile("yield");
#endif
}

/* Share `index` of [0, count): the first count % threads shares are one longer. */
static void run_share(const tilewright_pool *pool, int32_t index) {
  int64_t size = pool->count / pool->threads, extra = pool->count % pool->threads;
  int64_t begin = index * size + (index < extra ? index : extra);
  int64_t end = begin + size + (index < extra ? 1 : 0);
  if (begin < end)
    pool->task(pool->context, begin, end);
}

/* Waits until the generation differs from `seen`: spinning first, parked afterwards. */
static uint32_t await_task(tilewright_pool *pool, uint32_t seen) {
  for (int i = 0; i < SPINS; ++i) {
    uint32_t now = atomic_load_explicit(&pool->generation, memory_order_acquire);
    if (now != seen)
      return now;
    relax();
  }
  pthread_mutex_lock(&pool->lock);
  atomic_fetch_add(&pool->sleeping, 1);
  while (atomic_load(&pool->generation) == seen)
    pthread_cond_wait(&pool->wake, &pool->lock);
  atomic_fetch_sub(&pool->sleeping, 1);
  pthread_mutex_unlock(&pool->lock);
  return atomic_load(&pool->generation);
}

static void publish(tilewright_pool *pool) {
  atomic_fetch_add(&pool->generation, 1);
  if (atomic_load(&pool->sleeping) > 0) {
    pthread_mutex_lock(&pool->lock);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
  }
}

static void *worker(void *argument) {
  worker_argument own = *(worker_argument *)argument;
  tilewright_pool *pool = own.pool;
  uint32_t seen = 0;
  free(argument);
  for (;;) {
    seen = await_task(pool, seen);
    if (atomic_load_explicit(&pool->stop, memory_order_acquire))
      return NULL;
    run_share(pool, own.index);
    atomic_fetch_sub_explicit(&pool->pending, 1, memory_order_release);
  }
}

static void parallel_for(void *self, tilewright_task task, void *context, int64_t count) {
  tilewright_pool *pool = self;
  if (pool->threads == 1 || count <= 1) {
    task(context, 0, count);
    return;
  }
  pool->task = task;
  pool->context = context;
  pool->count = count;
  atomic_store_explicit(&pool->pending, pool->threads - 1, memory_order_relaxed);
  publish(pool);
  run_share(pool, 0);
  for (int spins = 0; atomic_load_explicit(&pool->pending, memory_order_acquire) > 0; ++spins) {
    if (spins < SPINS)
      relax();
    else
      sched_yield(); /* a worker lost its core: do not keep ours from it */
  }
}

tilewright_pool *tilewright_pool_create(int32_t threads) {
  tilewright_pool *pool = threads >= 1 ? calloc(1, sizeof *pool) : NULL;
  if (!pool)
    return NULL;
  pool->handles = calloc((size_t)threads, sizeof *pool->handles);
  if (!pool->handles) {
    free(pool);
    return NULL;
  }
  pthread_mutex_init(&pool->lock, NULL);
  pthread_cond_init(&pool->wake, NULL);
  pool->parallel.parallel_for = parallel_for;
  pool->parallel.self = pool;
  pool->threads = 1;
  for (int32_t i = 1; i < threads; ++i) {
    worker_argument *argument = malloc(sizeof *argument);
    if (argument) {
      argument->pool = pool;
      argument->index = i;
    }
    if (!argument || pthread_create(&pool->handles[i], NULL, worker, argument) != 0) {
      free(argument);
      tilewright_pool_destroy(pool);
      return NULL;
    }
    pool->threads = i + 1;
  }
  return pool;
}

const tilewright_parallel *tilewright_pool_parallel(const tilewright_pool *pool) {
  return &pool->parallel;
}

void tilewright_pool_destroy(tilewright_pool *pool) {
  if (!pool)
    return;
  atomic_store_explicit(&pool->stop, 1, memory_order_release);
  publish(pool);
  for (int32_t i = 1; i < pool->threads; ++i)
    pthread_join(pool->handles[i], NULL);
  pthread_cond_destroy(&pool->wake);
  pthread_mutex_destroy(&pool->lock);
  free(pool->handles);
  free(pool);
}
