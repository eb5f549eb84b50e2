/* Runs @NAME@ (compiled for @TARGET@).
 *
 *   cc -O2 example.c @NAME@.c @NAME@_data.S -o example -ldl
 *   ./example                            on zeros; prints the latency
 *   ./example IN0.bin .. OUT0.bin ..     raw tensors from and to files, in the model's order
 */
#define _POSIX_C_SOURCE 200809L
#include "@NAME@.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { INPUTS = @UPPER@_INPUT_COUNT, OUTPUTS = @UPPER@_OUTPUT_COUNT, RUNS = 100 };

static const size_t input_bytes[INPUTS + 1] = {@INPUT_BYTES@0};
static const size_t output_bytes[OUTPUTS + 1] = {@OUTPUT_BYTES@0};

static void *allocate(size_t bytes) {
  void *p = calloc(bytes ? bytes : 1, 1);
  if (!p) {
    fprintf(stderr, "cannot allocate %zu bytes\n", bytes);
    exit(1);
  }
  return p;
}

/* Reads or writes a whole file; ends the program if that fails. */
static void transfer(const char *path, const char *mode, void *data, size_t bytes) {
  FILE *f = fopen(path, mode);
  size_t done = !f ? 0 : mode[0] == 'r' ? fread(data, 1, bytes, f) : fwrite(data, 1, bytes, f);
  if (!f || done != bytes || fclose(f) != 0) {
    fprintf(stderr, "%s: cannot %s %zu bytes\n", path, mode[0] == 'r' ? "read" : "write", bytes);
    exit(1);
  }
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

int main(int argc, char **argv) {
  int files = argc - 1;
  if (files != 0 && files != INPUTS + OUTPUTS) {
    fprintf(stderr, "usage: %s [%d input files %d output files]\n", argv[0], (int)INPUTS, (int)OUTPUTS);
    return 2;
  }
  const void *in[INPUTS + 1];
  void *out[OUTPUTS + 1];
  for (int i = 0; i < INPUTS; ++i) {
    void *data = allocate(input_bytes[i]);
    if (files)
      transfer(argv[1 + i], "rb", data, input_bytes[i]);
    in[i] = data;
  }
  for (int i = 0; i < OUTPUTS; ++i)
    out[i] = allocate(output_bytes[i]);

  @NAME@_model *model;
  int32_t failed = @NAME@_create(&model, 0);
  double best = 1e9;
  for (int i = 0; i < RUNS && !failed; ++i) {
    double start = now();
    failed = @NAME@_run(model, in, out);
    double seconds = now() - start;
    best = seconds < best ? seconds : best;
  }
  if (failed) {
    fprintf(stderr, "@NAME@: %s\n", @NAME@_error());
    @NAME@_destroy(model);
    return 1;
  }
  for (int i = 0; i < OUTPUTS && files; ++i)
    transfer(argv[1 + INPUTS + i], "wb", out[i], output_bytes[i]);
  printf("@NAME@: %.3f ms with copies (least of %d runs)\n", best * 1e3, (int)RUNS);
  @NAME@_destroy(model);
  for (int i = 0; i < INPUTS; ++i)
    free((void *)in[i]);
  for (int i = 0; i < OUTPUTS; ++i)
    free(out[i]);
  return 0;
}
