/* What the driver knows of a compiled model; the table itself is generated (device/link.py). */
#ifndef TILEWRIGHT_DRIVER_H
#define TILEWRIGHT_DRIVER_H

#include <stddef.h>
#include <stdint.h>

struct tilewright_parallel; /* see tilewright.h */

struct model {
  int32_t (*run)(const void *const *inputs, void *const *outputs, void *arena);
  int32_t (*run_parallel)(const void *const *inputs, void *const *outputs, void *arena,
                          const struct tilewright_parallel *parallel); /* NULL: one thread only */
  int (*supported)(void); /* whether this CPU has what the code needs */
  unsigned data;          /* number of the file with the inputs */
  unsigned input_count, output_count;
  const size_t *input_bytes, *output_bytes;
  size_t arena_bytes;
};

extern const struct model models[];
extern const unsigned model_count;

/* Threads for all models, until the program ends; NULL if there are none to be had. */
const struct tilewright_parallel *start_threads(int32_t count);

#endif
