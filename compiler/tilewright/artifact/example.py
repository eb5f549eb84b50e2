"""The example program of an artifact: a whole C program that a user can build, run and cut up.

In: a `Spec`. Out: C source text.
Invariant: it builds as C11 with `cc example.c NAME.o` and nothing else (pool.c and -pthread with
threads), and fills inputs with the same values as `pattern` here.
"""

from __future__ import annotations

import numpy as np

from tilewright.artifact.header import C_TYPES, comment, macro
from tilewright.runtime.model import Array, Spec, TensorSpec


def pattern(tensor: TensorSpec) -> Array:
    """What the example puts into an input that it is not given: floats k/16 for k in -8..8, integers
    0 and 1 (which no index can be out of range with, unless its range is a single one)."""
    i = np.arange(tensor.elements)
    dtype = np.dtype(tensor.dtype)
    values = (i * 7 % 17 - 8) / 16 if dtype.kind == "f" else i % 2
    return values.astype(dtype).reshape(tensor.shape)


def example(spec: Spec) -> str:
    """Text of example.c."""
    used = {t.dtype for t in (*spec.inputs, *spec.outputs)}
    parts = {
        "NAME": spec.name,
        "UPPER": macro(spec.name),
        "TARGET": comment(spec.target),
        "INPUTS": _table(spec, "INPUT", spec.inputs),
        "OUTPUTS": _table(spec, "OUTPUT", spec.outputs),
        "SIZES": _sizes(spec),
        "HALF": _HALF if "float16" in used else "",
        "GET": "".join(_get(d) for d in sorted(used)),
        "SET": "".join(_set(d) for d in sorted({t.dtype for t in spec.inputs})),
    }
    text = _PROGRAM
    for key, value in parts.items():
        text = text.replace(f"@{key}@", value)
    return text


def _sizes(spec: Spec) -> str:
    """The largest of all sizes that are open."""
    if not spec.sizes:
        return ""
    largest = f"{macro(spec.name)}_SIZES_LARGEST"
    return f"  static const int64_t sizes[] = {largest};\n  in[INPUTS] = sizes;\n"


def _table(spec: Spec, kind: str, tensors: tuple[TensorSpec, ...]) -> str:
    upper = macro(spec.name)
    rows = [
        f'    {{"{_c_string(t.name)}", {t.dtype.upper()}, {upper}_{kind}_{i}_ELEMENTS, '
        f"{upper}_{kind}_{i}_BYTES}},\n"
        for i, t in enumerate(tensors)
    ]
    return "".join(rows) or "    {NULL, 0, 0, 0},\n"  # C has no empty arrays


def _c_string(text: str) -> str:
    """Bytes of a C string literal; octal escapes end after three digits, whatever follows."""
    return "".join(
        chr(b) if 32 <= b < 127 and b not in b'"\\?' else f"\\{b:03o}" for b in text.encode("utf-8")
    )


def _get(dtype: str) -> str:
    element = f"((const {C_TYPES[dtype]} *)data)[i]"
    value = f"from_half({element})" if dtype == "float16" else f"(double){element}"
    return f"  case {dtype.upper()}:\n    return {value};\n"


def _set(dtype: str) -> str:
    if dtype == "float16":
        value = "to_half(pattern)"
    else:
        value = f"({C_TYPES[dtype]}){'pattern' if dtype.startswith('float') else '(i % 2)'}"
    return f"  case {dtype.upper()}:\n    (({C_TYPES[dtype]} *)data)[i] = {value};\n    break;\n"


_HALF = """\
/* binary16 to double. */
static double from_half(uint16_t h) {
  int exponent = h >> 10 & 31, fraction = h & 1023;
  double v = exponent == 31 ? (fraction ? NAN : INFINITY)
             : exponent     ? ldexp(1024 + fraction, exponent - 25)
                            : ldexp(fraction, -24);
  return h >> 15 ? -v : v;
}

/* A multiple of 1/16 between -1 and 1 to binary16, exactly. */
static uint16_t to_half(float v) {
  uint32_t bits;
  memcpy(&bits, &v, 4);
  return v == 0 ? 0 : (uint16_t)((bits >> 16 & 0x8000u) | (((bits >> 23 & 255u) - 112u) << 10) |
                                 (bits >> 13 & 1023u));
}

"""

_PROGRAM = r"""/* Runs @NAME@ (compiled for @TARGET@).
 *
 *   cc -O2 example.c @NAME@.o -o example
 *   ./example                            on a fixed pattern; prints a summary and the latency
 *   ./example IN0.bin ..                 on raw tensors from files, in the model's order
 *   ./example IN0.bin .. OUT0.bin ..     and writes the results as raw tensors
 *   ./example -n 1000 ..                 times 1000 runs
 *
 * With threads:
 *   cc -O2 -DWITH_THREADS example.c pool.c @NAME@.o -o example -pthread
 *   ./example -t 4 ..
 */
#define _POSIX_C_SOURCE 200809L
#include "@NAME@.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#ifdef WITH_THREADS
#include "tilewright.h"
#endif

enum { BOOL, INT8, INT16, INT32, INT64, UINT8, UINT16, UINT32, UINT64, FLOAT16, FLOAT32, FLOAT64 };

typedef struct {
  const char *name;
  int type;
  size_t elements, bytes;
} tensor;

enum { INPUTS = @UPPER@_INPUT_COUNT, OUTPUTS = @UPPER@_OUTPUT_COUNT };

static const tensor inputs[] = {
@INPUTS@};
static const tensor outputs[] = {
@OUTPUTS@};

@HALF@/* Element i as a number. */
static double element(const tensor *t, const void *data, size_t i) {
  switch (t->type) {
@GET@  }
  return 0;
}

/* The same values in every run: floats k/16 for k in -8 .. 8, integers 0 and 1. */
static void fill(const tensor *t, void *data) {
  for (size_t i = 0; i < t->elements; ++i) {
    float pattern = (float)((int)(i * 7 % 17) - 8) / 16;
    (void)pattern, (void)data;
    switch (t->type) {
@SET@    }
  }
}

static void summarise(const tensor *t, const void *data) {
  double low = INFINITY, high = -INFINITY, sum = 0;
  for (size_t i = 0; i < t->elements; ++i) {
    double v = element(t, data, i);
    low = v < low ? v : low;
    high = v > high ? v : high;
    sum += v;
  }
  printf("%s: %zu elements", t->name, t->elements);
  if (t->elements)
    printf(", min %g, max %g, mean %g, first %g", low, high, sum / (double)t->elements,
           element(t, data, 0));
  printf("\n");
}

/* Aligned memory that is never empty; ends the program if there is none. */
static void *allocate(size_t bytes) {
  void *p = aligned_alloc(@UPPER@_ARENA_ALIGN, (bytes / @UPPER@_ARENA_ALIGN + 1) * @UPPER@_ARENA_ALIGN);
  if (!p) {
    fprintf(stderr, "cannot allocate %zu bytes\n", bytes);
    exit(1);
  }
  return p;
}

static void read_file(const char *path, const tensor *t, void *data) {
  FILE *f = fopen(path, "rb");
  size_t got = f ? fread(data, 1, t->bytes, f) : 0;
  if (!f || got != t->bytes || fgetc(f) != EOF) {
    fprintf(stderr, "%s: cannot read the %zu bytes of input %s\n", path, t->bytes, t->name);
    exit(1);
  }
  fclose(f);
}

static void write_file(const char *path, const tensor *t, const void *data) {
  FILE *f = fopen(path, "wb");
  size_t put = f ? fwrite(data, 1, t->bytes, f) : 0;
  if (!f || put != t->bytes || fclose(f) != 0) {
    fprintf(stderr, "%s: cannot write the %zu bytes of output %s\n", path, t->bytes, t->name);
    exit(1);
  }
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

int main(int argc, char **argv) {
  int runs = 10, threads = 1, at = 1;
  for (; at + 1 < argc && argv[at][0] == '-'; at += 2) {
    if (strcmp(argv[at], "-n") == 0)
      runs = atoi(argv[at + 1]);
    else if (strcmp(argv[at], "-t") == 0)
      threads = atoi(argv[at + 1]);
    else
      break;
  }
  int files = argc - at;
  if (runs < 1 || threads < 1 || (files != 0 && files != INPUTS && files != INPUTS + OUTPUTS)) {
    fprintf(stderr, "usage: %s [-n runs] [-t threads] [%d input files [%d output files]]\n", argv[0],
            (int)INPUTS, (int)OUTPUTS);
    return 2;
  }
  if (!@NAME@_cpu_supported()) {
    fprintf(stderr, "this CPU lacks features that @NAME@ was compiled for (@TARGET@)\n");
    return 1;
  }

  const void *in[INPUTS + 1];
@SIZES@  void *out[OUTPUTS + 1];
  for (int i = 0; i < INPUTS; ++i) {
    void *data = allocate(inputs[i].bytes);
    if (files)
      read_file(argv[at + i], &inputs[i], data);
    else
      fill(&inputs[i], data);
    in[i] = data;
  }
  for (int i = 0; i < OUTPUTS; ++i)
    out[i] = allocate(outputs[i].bytes);
  void *arena = allocate(@UPPER@_ARENA_BYTES);

  const struct tilewright_parallel *parallel = NULL;
#ifdef WITH_THREADS
  tilewright_pool *pool = threads > 1 ? tilewright_pool_create(threads) : NULL;
  if (threads > 1 && !pool) {
    fprintf(stderr, "cannot start %d threads\n", threads);
    return 1;
  }
  if (pool)
    parallel = tilewright_pool_parallel(pool);
#else
  if (threads > 1) {
    fprintf(stderr, "built without threads: compile with -DWITH_THREADS\n");
    return 2;
  }
#endif

  double best = INFINITY, total = 0;
  for (int i = 0; i < runs; ++i) {
    double start = now();
    int32_t status = @NAME@_run_parallel(in, out, arena, parallel);
    double seconds = now() - start;
    if (status != 0) {
      fprintf(stderr, "@NAME@_run_parallel returned %d\n", (int)status);
      return 1;
    }
    best = seconds < best ? seconds : best;
    total += seconds;
  }

  for (int i = 0; i < OUTPUTS; ++i) {
    if (files == INPUTS + OUTPUTS && OUTPUTS > 0)
      write_file(argv[at + INPUTS + i], &outputs[i], out[i]);
    else
      summarise(&outputs[i], out[i]);
  }
  printf("@NAME@: %.3f ms (least of %d runs, mean %.3f), %d thread%s\n", best * 1e3, runs,
         total / runs * 1e3, threads, threads == 1 ? "" : "s");
#ifdef WITH_THREADS
  tilewright_pool_destroy(pool);
#endif
  for (int i = 0; i < INPUTS; ++i)
    free((void *)in[i]);
  for (int i = 0; i < OUTPUTS; ++i)
    free(out[i]);
  free(arena);
  return 0;
}
"""
