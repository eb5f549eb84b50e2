/* What the generated tables of a CUDA model are made of. */
#ifndef TILEWRIGHT_CUDA_TABLES_H
#define TILEWRIGHT_CUDA_TABLES_H

#include <stddef.h>
#include <stdint.h>

enum base { BASE_INPUT, BASE_OUTPUT, BASE_ARENA, BASE_WEIGHTS };

/* A pointer that a kernel gets: `offset` bytes into the arena, the weights, or tensor `number`. */
struct argument {
    enum base base;
    unsigned number;
    size_t offset;
};

struct kernel {
    const char* name;
    unsigned blocks, threads;
};

struct launch {
    unsigned kernel, count;
    const struct argument* arguments;
};

#endif
