/* What the driver knows of a model; the table itself is generated. */
#include <stddef.h>
#include <stdint.h>

struct model {
    int32_t (*run)(const void* const* inputs, void* const* outputs, void* arena);
    unsigned input_count, output_count;
    const size_t* input_bytes;
    const size_t* output_bytes;
    size_t arena_bytes;
};

extern const struct model models[];
extern const unsigned model_count;
