/* Runs compiled models in a program of their own, checks and times them.
 *
 *   models ROUNDS WRITE COUNT THREADS LEFT_OUT ..
 *
 * In: for a model whose `data` is D, the file in_D with its inputs one after the other.
 * Out, on stdout: "begin K" before model K runs for the first time (what comes last tells which one
 * crashed), "ran K status checksum", "unsupported K", and in the end "time K least median" in
 * nanoseconds. If WRITE is 1, the outputs of model K go to out_K. If COUNT is 1, the program reads the
 * count of instructions around one more run by the system call that count.c looks for. Models whose
 * numbers are LEFT_OUT do not run.
 *
 * Every round runs all models in turn, so that what the machine does meanwhile meets them all. A model
 * runs as often in a turn as takes TURN nanoseconds: then the clock does not matter.
 */
#define _GNU_SOURCE
#include "driver.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { ALIGN = 64, MARK = 0x7457, TURN = 200000, MOST_RUNS = 10000 };

typedef struct {
  const void **inputs;
  void **outputs;
  void *arena;
  uint64_t *times;
  uint64_t runs; /* in a turn */
  int active;
} state;

static const struct tilewright_parallel *threads; /* NULL: models run on one */

static void fail(const char *what, const char *name) {
  fprintf(stderr, "%s %s\n", what, name);
  exit(3);
}

static void *aligned(size_t size) {
  void *p = NULL;
  if (posix_memalign(&p, ALIGN, size + ALIGN) != 0)
    fail("there is no memory for", "tensors");
  return p;
}

static void *table(size_t count, size_t size) {
  void *p = calloc(count + 1, size);
  if (!p)
    fail("there is no memory for", "tables");
  return p;
}

static void prepare(const struct model *m, state *s) {
  char name[32];
  snprintf(name, sizeof name, "in_%u", m->data);
  FILE *f = fopen(name, "rb");
  if (!f)
    fail("cannot open", name);
  s->inputs = table(m->input_count, sizeof *s->inputs);
  for (unsigned i = 0; i < m->input_count; ++i) {
    void *p = aligned(m->input_bytes[i]);
    if (fread(p, 1, m->input_bytes[i], f) != m->input_bytes[i])
      fail("too short:", name);
    s->inputs[i] = p;
  }
  fclose(f);
  s->outputs = table(m->output_count, sizeof *s->outputs);
  for (unsigned i = 0; i < m->output_count; ++i) {
    s->outputs[i] = aligned(m->output_bytes[i]);
    memset(s->outputs[i], 0xFF, m->output_bytes[i]); /* NaN: nothing may depend on it */
  }
  s->arena = aligned(m->arena_bytes);
  memset(s->arena, 0xFF, m->arena_bytes);
}

static void write_outputs(const struct model *m, unsigned k, const state *s) {
  char name[32];
  snprintf(name, sizeof name, "out_%u", k);
  FILE *f = fopen(name, "wb");
  int ok = f != NULL;
  for (unsigned i = 0; ok && i < m->output_count; ++i)
    ok = fwrite(s->outputs[i], 1, m->output_bytes[i], f) == m->output_bytes[i];
  if (!ok || fclose(f) != 0)
    fail("cannot write", name);
}

/* FNV-1a over all outputs. */
static uint64_t checksum(const struct model *m, const state *s) {
  uint64_t h = 14695981039346656037u;
  for (unsigned i = 0; i < m->output_count; ++i)
    for (size_t b = 0; b < m->output_bytes[i]; ++b)
      h = (h ^ ((const uint8_t *)s->outputs[i])[b]) * 1099511628211u;
  return h;
}

static uint64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* A run, on the threads that there are. */
static int32_t run(const struct model *m, state *s) {
  if (threads)
    return m->run_parallel(s->inputs, s->outputs, s->arena, threads);
  return m->run(s->inputs, s->outputs, s->arena);
}

/* A write to no file, which fails and does nothing: the emulator's plugin notes its count here. */
static void mark(void) { (void)syscall(SYS_write, -1, NULL, MARK); }

/* Mean time of a run in one turn. */
static uint64_t turn(const struct model *m, state *s) {
  uint64_t start = now(), n = s->runs ? s->runs : 1;
  for (uint64_t i = 0; i < n; ++i)
    (void)run(m, s);
  uint64_t each = (now() - start) / n;
  if (!s->runs) /* the first round tells how long a run takes */
    s->runs = each * MOST_RUNS <= TURN ? MOST_RUNS : TURN / each + 1;
  return each;
}

static int by_size(const void *a, const void *b) {
  uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
  return x < y ? -1 : x > y;
}

static int left_out(unsigned k, int argc, char **argv) {
  for (int i = 5; i < argc; ++i)
    if (strtoul(argv[i], NULL, 10) == k)
      return 1;
  return 0;
}

static void first_run(unsigned k, state *s, int write, int count) {
  const struct model *m = &models[k];
  if (!m->supported()) {
    printf("unsupported %u\n", k);
    return;
  }
  prepare(m, s);
  printf("begin %u\n", k);
  fflush(stdout);
  int32_t status = run(m, s);
  printf("ran %u %d %016llx\n", k, (int)status, (unsigned long long)checksum(m, s));
  s->active = status == 0;
  if (write)
    write_outputs(m, k, s);
  if (count) {
    mark();
    m->run(s->inputs, s->outputs, s->arena);
    mark();
  }
}

int main(int argc, char **argv) {
  if (argc < 5)
    fail("usage: models ROUNDS WRITE COUNT", "THREADS LEFT_OUT ..");
  size_t rounds = strtoul(argv[1], NULL, 10);
  int32_t wanted = (int32_t)strtol(argv[4], NULL, 10);
  if (wanted > 1 && !(threads = start_threads(wanted)))
    fail("cannot start", "threads");
  state *states = table(model_count, sizeof *states);
  for (unsigned k = 0; k < model_count; ++k)
    if (!left_out(k, argc, argv))
      first_run(k, &states[k], argv[2][0] == '1', argv[3][0] == '1');
  for (unsigned k = 0; k < model_count; ++k)
    states[k].times = table(rounds, sizeof *states[k].times);
  for (size_t r = 0; r < rounds; ++r)
    for (unsigned k = 0; k < model_count; ++k)
      if (states[k].active)
        states[k].times[r] = turn(&models[k], &states[k]);
  for (unsigned k = 0; rounds && k < model_count; ++k)
    if (states[k].active) {
      uint64_t *t = states[k].times;
      qsort(t, rounds, sizeof *t, by_size);
      printf("time %u %llu %llu\n", k, (unsigned long long)t[0], (unsigned long long)t[rounds / 2]);
    }
  return 0;
}
