/* Runs compiled models in a program of their own and times them.
 *
 * In: the table of models that `device/linux.py` writes, and for model K a file in_K with its inputs one
 * after the other. Out: files out_K, and a line "K code least median" (nanoseconds) each on stdout.
 * All models run in turn within a round, so that what the machine does meanwhile meets them all.
 */
#define _POSIX_C_SOURCE 200809L
#include "driver.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { ALIGN = 64 };

struct state {
    const void** inputs;
    void** outputs;
    void* arena;
    uint64_t* times;
    int32_t code;
};

static void fail(const char* what, const char* name) {
    fprintf(stderr, "%s %s\n", what, name);
    exit(3);
}

static void* aligned(size_t size) {
    char* p = malloc(size + ALIGN);
    if (p == NULL) {
        fail("no memory for", "tensors");
    }
    return p + (ALIGN - (uintptr_t)p % ALIGN);
}

static void read_inputs(const struct model* m, unsigned k, struct state* s) {
    char name[32];
    snprintf(name, sizeof name, "in_%u", k);
    FILE* f = fopen(name, "rb");
    if (f == NULL) {
        fail("cannot open", name);
    }
    s->inputs = calloc(m->input_count + 1, sizeof *s->inputs);
    for (unsigned i = 0; i < m->input_count; i++) {
        void* p = aligned(m->input_bytes[i]);
        if (fread(p, 1, m->input_bytes[i], f) != m->input_bytes[i]) {
            fail("too short:", name);
        }
        s->inputs[i] = p;
    }
    fclose(f);
    s->outputs = calloc(m->output_count + 1, sizeof *s->outputs);
    for (unsigned i = 0; i < m->output_count; i++) {
        s->outputs[i] = aligned(m->output_bytes[i]);
    }
    s->arena = aligned(m->arena_bytes);
    /* what the last run left must not matter */
    memset(s->arena, 0xA5, m->arena_bytes);
}

static void write_outputs(const struct model* m, unsigned k, const struct state* s) {
    char name[32];
    snprintf(name, sizeof name, "out_%u", k);
    FILE* f = fopen(name, "wb");
    if (f == NULL) {
        fail("cannot write", name);
    }
    for (unsigned i = 0; i < m->output_count; i++) {
        if (fwrite(s->outputs[i], 1, m->output_bytes[i], f) != m->output_bytes[i]) {
            fail("cannot write", name);
        }
    }
    if (fclose(f) != 0) {
        fail("cannot write", name);
    }
}

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static int by_size(const void* a, const void* b) {
    uint64_t x = *(const uint64_t*)a, y = *(const uint64_t*)b;
    return x < y ? -1 : x > y;
}

int main(int argc, char** argv) {
    long rounds = argc > 1 ? strtol(argv[1], NULL, 10) : 0;
    struct state* states = calloc(model_count, sizeof *states);
    for (unsigned k = 0; k < model_count; k++) {
        const struct model* m = &models[k];
        struct state* s = &states[k];
        read_inputs(m, k, s);
        s->times = calloc(rounds > 0 ? (size_t)rounds : 1, sizeof *s->times);
        s->code = m->run(s->inputs, s->outputs, s->arena);
        write_outputs(m, k, s);
    }
    for (long r = 0; r < rounds; r++) {
        for (unsigned k = 0; k < model_count; k++) {
            uint64_t start = now();
            models[k].run(states[k].inputs, states[k].outputs, states[k].arena);
            states[k].times[r] = now() - start;
        }
    }
    for (unsigned k = 0; k < model_count; k++) {
        uint64_t* t = states[k].times;
        qsort(t, rounds > 0 ? (size_t)rounds : 0, sizeof *t, by_size);
        printf("%u %d %llu %llu\n", k, (int)states[k].code, (unsigned long long)t[0],
               (unsigned long long)(rounds > 0 ? t[rounds / 2] : 0));
    }
    return 0;
}
