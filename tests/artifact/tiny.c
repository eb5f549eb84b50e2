/* A model as the code generator makes one, written by hand: scaled = 2 x, total = sum(n).
 * Two types, a scalar output, read-only weights, and the arena is used. */
#include <stdint.h>

#include "tilewright.h"

#ifndef SCALE
#define SCALE 2.0f
#endif

static const float weights[6] = {SCALE, SCALE, SCALE, SCALE, SCALE, SCALE};

typedef struct {
  const float *x;
  float *scaled, *arena;
} context;

static void scale(void *argument, int64_t begin, int64_t end) {
  context *c = argument;
  for (int64_t i = begin; i < end; ++i) {
    c->arena[i] = c->x[i] * weights[i];
    c->scaled[i] = c->arena[i];
  }
}

int32_t tiny_run_parallel(const void *const *inputs, void *const *outputs, void *arena,
                          const tilewright_parallel *parallel) {
  if ((uintptr_t)arena & 63)
    return 1;
  context c = {inputs[0], outputs[0], arena};
  if (parallel)
    parallel->parallel_for(parallel->self, scale, &c, 6);
  else
    scale(&c, 0, 6);
  int64_t total = 0;
  for (int i = 0; i < 4; ++i)
    total += ((const int32_t *)inputs[1])[i];
  *(int64_t *)outputs[1] = total;
  return 0;
}

int32_t tiny_run(const void *const *inputs, void *const *outputs, void *arena) {
  return tiny_run_parallel(inputs, outputs, arena, 0);
}
