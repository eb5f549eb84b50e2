/* What the driver knows of a compiled model; the table itself is generated (device/link.py). */
#ifndef TILEWRIGHT_DRIVER_H
#define TILEWRIGHT_DRIVER_H

#include <stddef.h>
#include <stdint.h>

struct model {
  int32_t (*run)(const void *const *inputs, void *const *outputs, void *arena);
  int (*supported)(void); /* whether this CPU has what the code needs */
  unsigned data;          /* number of the file with the inputs */
  unsigned input_count, output_count;
  const size_t *input_bytes, *output_bytes;
  size_t arena_bytes;
};

extern const struct model models[];
extern const unsigned model_count;

#endif
