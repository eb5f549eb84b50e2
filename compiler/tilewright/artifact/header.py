"""The C header and the example program of an artifact.

In: a `Spec`. Out: C source text.
Invariant: the header needs nothing but <stdint.h>; every size is a compile-time constant.
"""

from __future__ import annotations

import re
from math import prod

import numpy as np

from tilewright.runtime.model import Spec, TensorSpec

_C_TYPES = {
    "float32": "float", "float64": "double", "float16": "uint16_t", "bool": "uint8_t", "int8": "int8_t",
    "int16": "int16_t", "int32": "int32_t", "int64": "int64_t", "uint8": "uint8_t",
    "uint16": "uint16_t", "uint32": "uint32_t", "uint64": "uint64_t",
}  # fmt: skip
#: CPU features that compilers can test for at run time, by their name in /proc/cpuinfo.
_BUILTIN_FEATURES = frozenset(
    {"avx2", "fma", "bmi2", "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
)


def tensor_bytes(t: TensorSpec) -> int:
    """Size of a tensor in memory."""
    return prod(t.shape) * np.dtype(t.dtype).itemsize


def _identifier(text: str) -> str:
    word = re.sub(r"\W", "_", text).upper()
    return word if word and not word[0].isdigit() else f"T_{word}"


def header(spec: Spec) -> str:
    """Text of NAME.h."""
    n, upper = spec.name, _identifier(spec.name)
    lines = [
        f"/* {n}: a model compiled by tilewright for {spec.target}.",
        " *",
        " * inputs and outputs are arrays of pointers to dense row-major tensors, in the order below.",
        f" * arena is scratch memory of {upper}_ARENA_BYTES bytes, aligned to {upper}_ARENA_ALIGN;",
        " * its content need not be kept between runs. No memory is allocated, nothing global is written,",
        " * so several threads may run the model at once, each with an arena of its own.",
        " */",
        f"#ifndef TILEWRIGHT_MODEL_{upper}_H",
        f"#define TILEWRIGHT_MODEL_{upper}_H",
        "",
        "#include <stdint.h>",
        "",
        "#ifdef __cplusplus",
        'extern "C" {',
        "#endif",
        "",
        f"#define {upper}_ARENA_BYTES {max(spec.arena_bytes, 64)}",
        f"#define {upper}_ARENA_ALIGN 64",
    ]
    for kind, tensors in (("INPUT", spec.inputs), ("OUTPUT", spec.outputs)):
        lines.append(f"#define {upper}_{kind}_COUNT {len(tensors)}")
        for i, t in enumerate(tensors):
            dims = ", ".join(map(str, t.shape)) or "scalar"
            lines.append("")
            lines.append(f"/* {kind.lower()} {i}: `{_comment(t.name)}`, {t.dtype}[{dims}] */")
            lines.append(f"#define {upper}_{kind}_{i}_BYTES {tensor_bytes(t)}")
            lines.append(f"#define {upper}_{kind}_{i}_ELEMENTS {prod(t.shape)}")
            lines.append(f"typedef {_C_TYPES[t.dtype]} {n}_{kind.lower()}_{i}_t;")
    lines += [
        "",
        "struct tilewright_parallel; /* see tilewright.h */",
        "",
        "/* Runs the model on the calling thread. Returns 0, or 1 if the arena is misaligned. */",
        f"int32_t {n}_run(const void *const *inputs, void *const *outputs, void *arena);",
        "",
        "/* The same on the caller's threads; `parallel` may be NULL. */",
        f"int32_t {n}_run_parallel(const void *const *inputs, void *const *outputs, void *arena,",
        f"{' ' * (len(n) + 22)}const struct tilewright_parallel *parallel);",
        "",
        "/* Whether this CPU has the features the code needs. */",
        f"static inline int {n}_cpu_supported(void) {{",
        *_cpu_check(spec),
        "}",
        "",
        "#ifdef __cplusplus",
        "}",
        "#endif",
        "",
        "#endif",
    ]
    return "\n".join(lines) + "\n"


def _comment(text: str) -> str:
    return text.replace("*/", "* /")


def _cpu_check(spec: Spec) -> list[str]:
    tests = [f'__builtin_cpu_supports("{f}")' for f in spec.features if f in _BUILTIN_FEATURES]
    if not tests:
        return ["  return 1;"]
    joined = " &&\n         ".join(tests)
    return [
        "#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))",
        f"  return {joined};",
        "#else",
        "  return 0;",
        "#endif",
    ]


def example(spec: Spec) -> str:
    """Text of example.c: runs the model on files or on a fixed pattern, prints or writes results."""
    n, upper = spec.name, _identifier(spec.name)
    buffers: list[str] = []
    for kind, tensors in (("input", spec.inputs), ("output", spec.outputs)):
        for i, _ in enumerate(tensors):
            buffers.append(
                f"static {n}_{kind}_{i}_t {kind}_{i}[{upper}_{kind.upper()}_{i}_ELEMENTS + 1];"
            )
    tables: list[str] = []
    for kind, tensors in (("input", spec.inputs), ("output", spec.outputs)):
        cells = ", ".join(f"{kind}_{i}" for i in range(len(tensors)))
        sizes = ", ".join(f"{upper}_{kind.upper()}_{i}_BYTES" for i in range(len(tensors)))
        qualifier = "const void *const" if kind == "input" else "void *const"
        tables.append(f"static {qualifier} {kind}s[] = {{{cells}}};")
        tables.append(f"static const size_t {kind}_bytes[] = {{{sizes}}};")
    fills = [
        f"    for (size_t i = 0; i < {upper}_INPUT_{i}_ELEMENTS; ++i) input_{i}[i] = "
        + (f"(float)(i % 17) / 17.0f;" if "float" in t.dtype else "(uint8_t)(i % 17);")  # noqa: F541
        for i, t in enumerate(spec.inputs)
    ]
    prints = [
        f'    printf("output {i}: %d elements, first %g\\n", {upper}_OUTPUT_{i}_ELEMENTS, '
        f"(double)output_{i}[0]);"
        for i, _ in enumerate(spec.outputs)
    ]
    return f"""\
/* Runs {n} once and prints a summary.
 *
 *   cc -O2 example.c {n}.o -o example
 *   ./example                        on a fixed pattern
 *   ./example IN0.bin .. OUT0.bin .. on raw tensors from files, results to files
 */
#include "{n}.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

static _Alignas({upper}_ARENA_ALIGN) unsigned char arena[{upper}_ARENA_BYTES];
{chr(10).join(buffers)}
{chr(10).join(tables)}

static int transfer(const char *path, const char *mode, void *data, size_t size) {{
  FILE *f = fopen(path, mode);
  size_t done = 0;
  if (f) {{
    done = mode[0] == 'r' ? fread(data, 1, size, f) : fwrite(data, 1, size, f);
    fclose(f);
  }}
  if (done != size)
    fprintf(stderr, "%s: expected %zu bytes\\n", path, size);
  return done == size;
}}

static double now(void) {{
  struct timespec t;
  timespec_get(&t, TIME_UTC);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}}

int main(int argc, char **argv) {{
  const int files = {upper}_INPUT_COUNT + {upper}_OUTPUT_COUNT;
  if (argc != 1 && argc != 1 + files) {{
    fprintf(stderr, "usage: %s [%d input files, %d output files]\\n", argv[0], {upper}_INPUT_COUNT,
            {upper}_OUTPUT_COUNT);
    return 2;
  }}
  if (!{n}_cpu_supported()) {{
    fprintf(stderr, "this CPU lacks features that {n} was compiled for ({spec.target})\\n");
    return 1;
  }}
  if (argc > 1) {{
    for (int i = 0; i < {upper}_INPUT_COUNT; ++i)
      if (!transfer(argv[1 + i], "rb", (void *)inputs[i], input_bytes[i]))
        return 1;
  }} else {{
{chr(10).join(fills)}
  }}
  int32_t status = {n}_run(inputs, outputs, arena);
  double start = now();
  if (status == 0 && argc == 1)
    status = {n}_run(inputs, outputs, arena);
  double seconds = now() - start;
  if (status != 0) {{
    fprintf(stderr, "{n}_run returned %d\\n", (int)status);
    return 1;
  }}
  if (argc > 1) {{
    for (int i = 0; i < {upper}_OUTPUT_COUNT; ++i)
      if (!transfer(argv[1 + {upper}_INPUT_COUNT + i], "wb", outputs[i], output_bytes[i]))
        return 1;
  }} else {{
    printf("{n}: %.3f ms\\n", seconds * 1e3);
{chr(10).join(prints)}
  }}
  return 0;
}}
"""
