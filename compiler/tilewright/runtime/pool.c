/* A small thread pool: a share of the loop for every thread, taken in pieces, stolen by who is done; waiting
 * threads spin briefly, then park.
 *
 * In: a loop body and a count. Out: every iteration done exactly once. The caller puts a share into the
 * `range` of each thread and bumps the workers' tickets. A thread takes half of what is left of its own
 * share again and again, from the front, then half of what is left of another's, from the back: threads
 * keep to the same part of every loop, which their caches hold, yet one that is late or has lost its CPU
 * costs no more than the piece it is at. On an idle machine a loop of two shares takes a few compare-and-swaps.
 *
 * Invariants: the loop's fields (`task`, `context`, `count`, `unit`) are written only while all ranges are
 * empty and `left` is 0, and read only by who has taken a piece and not yet subtracted it from `left`; so a
 * worker that comes late finds nothing, or a piece of whatever loop runs by then. `left` counts what is not
 * done: the caller returns when it is 0, having acquired all that was written. Ranges are filled, and tickets
 * bumped, only by the thread that holds `busy`.
 *
 * Sleeping cannot miss a wake-up: the sleeper announces itself (`parked`), then looks at the word once
 * more; the waker changes the word, then looks at `parked`; a sequentially consistent fence between the
 * two steps on both sides means that at least one of them sees the other.
 */
#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE /* sched_getaffinity, syscall */
#endif

#include "tilewright.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#endif
#if defined(SYS_futex) && !defined(TILEWRIGHT_POOL_NO_FUTEX)
#define USE_FUTEX 1
#else
#define USE_FUTEX 0
#endif

#define MAX_THREADS 1024
#define LINE 128                     /* two cache lines: prefetchers fetch pairs */
#define STACK_BYTES ((size_t)4 << 20) /* kernels keep register tiles on the stack; libcs differ */
/* Bounds of the time that a thread spins before it sleeps, and where it starts, in nanoseconds. */
#define SPIN_MIN 5000
#define SPIN_START 50000
#define SPIN_MAX 100000
#define SPINS_PER_CLOCK 32
#define MAX_UNITS 0xffff /* a loop of more iterations goes by several at a time */

/* A thread that may sleep: whether it does, and how long it spins first. */
typedef struct {
  _Atomic uint32_t parked;
  int64_t spin_ns;
  int64_t spin_max_ns; /* 0: more threads than CPUs, spinning would keep the others from running */
#if !USE_FUTEX
  pthread_mutex_t lock;
  pthread_cond_t wake;
#endif
} sleeper;

typedef struct {
  _Alignas(LINE) _Atomic uint32_t range; /* what is left of the share: begin << 16 | end, in units */
  _Alignas(LINE) _Atomic uint32_t ticket;
  sleeper self;
  tilewright_pool *pool;
  int32_t number; /* 0: the caller's, which is no thread of its own */
  pthread_t handle;
} worker;

struct tilewright_pool {
  _Alignas(LINE) tilewright_parallel parallel;
  int32_t threads;
  /* The loop. */
  tilewright_task task;
  void *context;
  int64_t count, unit;
  /* Held by the thread whose loop the workers run. */
  _Alignas(LINE) _Atomic uint32_t busy;
  _Atomic uint32_t stop;
  _Alignas(LINE) _Atomic uint32_t left;
  _Alignas(LINE) sleeper caller;
  worker workers[];
};

/* ---------------------------------------------------------------- waiting */

static void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("isb"); /* waits about as long as x86 `pause`; `yield` does nothing on most cores */
#elif defined(__arm__)
  __asm__ volatile("yield");
#endif
}

static int64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void sleeper_init(sleeper *s, int may_spin) {
  s->spin_max_ns = may_spin ? SPIN_MAX : 0;
  s->spin_ns = may_spin ? SPIN_START : 0;
#if !USE_FUTEX
  pthread_mutex_init(&s->lock, NULL);
  pthread_cond_init(&s->wake, NULL);
#endif
}

static void sleeper_free(sleeper *s) {
#if !USE_FUTEX
  pthread_cond_destroy(&s->wake);
  pthread_mutex_destroy(&s->lock);
#else
  (void)s;
#endif
}

/* Sleeps until `word` is no longer `old`. */
static void park(sleeper *s, _Atomic uint32_t *word, uint32_t old) {
  atomic_store_explicit(&s->parked, 1, memory_order_relaxed);
  atomic_thread_fence(memory_order_seq_cst);
#if USE_FUTEX
  while (atomic_load_explicit(word, memory_order_acquire) == old)
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, old, NULL, NULL, 0);
#else
  pthread_mutex_lock(&s->lock);
  while (atomic_load_explicit(word, memory_order_acquire) == old)
    pthread_cond_wait(&s->wake, &s->lock);
  pthread_mutex_unlock(&s->lock);
#endif
  atomic_store_explicit(&s->parked, 0, memory_order_relaxed);
}

/* Wakes `s` if it sleeps on `word`; a fence lies between the change of the word and this call. */
static void unpark(sleeper *s, _Atomic uint32_t *word) {
  if (!atomic_load_explicit(&s->parked, memory_order_relaxed))
    return;
#if USE_FUTEX
  syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
#else
  (void)word;
  pthread_mutex_lock(&s->lock);
  pthread_cond_broadcast(&s->wake);
  pthread_mutex_unlock(&s->lock);
#endif
}

/* Learns from a wait that outlasted the spinning: spin longer if that would have caught it, less if the
 * wait was too long to spin through. */
static void adapt(sleeper *s, int64_t waited_ns) {
  int64_t next = waited_ns <= s->spin_max_ns ? 2 * waited_ns : s->spin_ns / 2;
  next = next < s->spin_max_ns ? next : s->spin_max_ns;
  s->spin_ns = next > SPIN_MIN ? next : SPIN_MIN;
}

/* Returns when `word` is no longer `old`, having acquired what was written before it changed. */
static void await_change(sleeper *s, _Atomic uint32_t *word, uint32_t old) {
  if (atomic_load_explicit(word, memory_order_acquire) != old)
    return;
  if (s->spin_max_ns == 0) {
    park(s, word, old);
    return;
  }
  int64_t start = now_ns();
  do {
    for (int i = 0; i < SPINS_PER_CLOCK; ++i) {
      if (atomic_load_explicit(word, memory_order_acquire) != old)
        return;
      relax();
    }
  } while (now_ns() - start < s->spin_ns);
  park(s, word, old);
  adapt(s, now_ns() - start);
}

/* ---------------------------------------------------------------- loops */

/* First iteration of share `i` of `shares`; the first count % shares shares are one longer. */
static int64_t share_begin(int64_t count, int32_t shares, int32_t i) {
  int64_t extra = count % shares;
  return count / shares * i + (i < extra ? i : extra);
}

/* Takes half of what is left of a share, from its front or its back; 0 if nothing is. */
static uint32_t take(_Atomic uint32_t *range, int front, uint32_t *begin) {
  uint32_t old = atomic_load_explicit(range, memory_order_relaxed);
  for (;;) {
    uint32_t from = old >> 16, to = old & 0xffff, half = (to - from + 1) / 2;
    if (from == to)
      return 0;
    *begin = front ? from : to - half;
    if (atomic_compare_exchange_weak_explicit(
            range, &old, front ? (from + half) << 16 | to : from << 16 | (to - half),
            memory_order_acquire, memory_order_relaxed))
      return half;
  }
}

/* Does pieces of the loop until none is left, those of share `own` first. */
static void help(tilewright_pool *pool, int32_t own) {
  for (int32_t i = 0; i < pool->threads; ++i) {
    int32_t whose = own + i < pool->threads ? own + i : own + i - pool->threads;
    uint32_t begin, units;
    while ((units = take(&pool->workers[whose].range, i == 0, &begin))) {
      int64_t first = begin * pool->unit, last = first + units * pool->unit;
      pool->task(pool->context, first, last < pool->count ? last : pool->count);
      if (atomic_fetch_sub_explicit(&pool->left, units, memory_order_acq_rel) == units && own) {
        atomic_thread_fence(memory_order_seq_cst);
        unpark(&pool->caller, &pool->left);
      }
    }
  }
}

static void *work(void *argument) {
  worker *w = argument;
  for (uint32_t seen = 0;;) {
    await_change(&w->self, &w->ticket, seen);
    seen = atomic_load_explicit(&w->ticket, memory_order_acquire);
    if (atomic_load_explicit(&w->pool->stop, memory_order_relaxed))
      return NULL;
    help(w->pool, w->number);
  }
}

/* Lets worker `i` look for work; the caller has to fence and unpark. */
static void call(tilewright_pool *pool, int32_t i) {
  _Atomic uint32_t *ticket = &pool->workers[i].ticket;
  atomic_store_explicit(ticket, atomic_load_explicit(ticket, memory_order_relaxed) + 1,
                        memory_order_release);
}

static void parallel_for(void *self, tilewright_task task, void *context, int64_t count) {
  tilewright_pool *pool = self;
  int32_t shares = count < pool->threads ? (int32_t)count : pool->threads;
  if (count <= 0)
    return;
  if (shares == 1 || atomic_exchange_explicit(&pool->busy, 1, memory_order_acquire)) {
    task(context, 0, count);
    return;
  }
  int64_t unit = (count + MAX_UNITS - 1) / MAX_UNITS, units = (count + unit - 1) / unit;
  pool->task = task;
  pool->context = context;
  pool->count = count;
  pool->unit = unit;
  atomic_store_explicit(&pool->left, (uint32_t)units, memory_order_relaxed);
  for (int32_t i = 0; i < shares; ++i) {
    int64_t begin = share_begin(units, shares, i), end = share_begin(units, shares, i + 1);
    atomic_store_explicit(&pool->workers[i].range, (uint32_t)(begin << 16 | end),
                          memory_order_release);
    if (i)
      call(pool, i);
  }
  atomic_thread_fence(memory_order_seq_cst);
  for (int32_t i = 1; i < shares; ++i)
    unpark(&pool->workers[i].self, &pool->workers[i].ticket);
  help(pool, 0);
  uint32_t left;
  while ((left = atomic_load_explicit(&pool->left, memory_order_acquire)))
    await_change(&pool->caller, &pool->left, left);
  atomic_store_explicit(&pool->busy, 0, memory_order_release);
}

/* ---------------------------------------------------------------- life */

static int32_t usable_cpus(void) {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0)
    return CPU_COUNT(&set);
#endif
  long online = sysconf(_SC_NPROCESSORS_ONLN);
  return online > 0 && online < MAX_THREADS ? (int32_t)online : MAX_THREADS;
}

/* Starts one worker. Signals are for the program's own threads: a worker blocks them all. */
static int start(worker *w) {
  pthread_attr_t attributes;
  sigset_t all, before;
  if (pthread_attr_init(&attributes) != 0)
    return 0;
  pthread_attr_setstacksize(&attributes, STACK_BYTES);
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  int refused = pthread_create(&w->handle, &attributes, work, w);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  pthread_attr_destroy(&attributes);
  return !refused;
}

tilewright_pool *tilewright_pool_create(int32_t threads) {
  int32_t cpus = usable_cpus();
  if (threads == 0)
    threads = cpus;
  if (threads < 1 || threads > MAX_THREADS)
    return NULL;
  /* sizeof is a multiple of LINE on both sides, as aligned_alloc wants it. */
  size_t bytes = sizeof(tilewright_pool) + (size_t)threads * sizeof(worker);
  tilewright_pool *pool = aligned_alloc(LINE, bytes);
  if (!pool)
    return NULL;
  memset(pool, 0, bytes);
  pool->parallel.parallel_for = parallel_for;
  pool->parallel.self = pool;
  pool->threads = 1;
  sleeper_init(&pool->caller, threads <= cpus);
  for (int32_t i = 1; i < threads; ++i) {
    worker *w = &pool->workers[i];
    w->pool = pool;
    w->number = i;
    sleeper_init(&w->self, threads <= cpus);
    if (!start(w)) {
      sleeper_free(&w->self);
      tilewright_pool_destroy(pool);
      return NULL;
    }
    pool->threads = i + 1;
  }
  return pool;
}

int32_t tilewright_pool_threads(const tilewright_pool *pool) {
  return pool->threads;
}

const tilewright_parallel *tilewright_pool_parallel(const tilewright_pool *pool) {
  return &pool->parallel;
}

void tilewright_pool_destroy(tilewright_pool *pool) {
  if (!pool)
    return;
  atomic_store_explicit(&pool->stop, 1, memory_order_relaxed);
  for (int32_t i = 1; i < pool->threads; ++i)
    call(pool, i);
  atomic_thread_fence(memory_order_seq_cst);
  for (int32_t i = 1; i < pool->threads; ++i) {
    worker *w = &pool->workers[i];
    unpark(&w->self, &w->ticket);
    pthread_join(w->handle, NULL);
    sleeper_free(&w->self);
  }
  sleeper_free(&pool->caller);
  free(pool);
}
