"""The example program of an artifact for a microcontroller: what firmware has to do, in one file.

In: a `Spec`. Out: C source text.
Invariant: it builds as freestanding C11 with the header and the object and nothing else; start-up code
and linker script are the part's own. Inputs get the same values as `example.pattern` gives (halves: 0 and 1).
"""

from __future__ import annotations

from tilewright.artifact.header import C_TYPES, comment, macro
from tilewright.runtime.model import Spec, TensorSpec


def board_example(spec: Spec) -> str:
    """Text of example.c."""
    n, upper = spec.name, macro(spec.name)
    ins, outs = spec.inputs, spec.outputs
    lines = [
        f"/* Runs {n} (compiled for {comment(spec.target)}) from firmware without an operating system.",
        " *",
        " * Build with the start-up code and the linker script of your part, for example",
        " *   arm-none-eabi-gcc -mcpu=... -mthumb -mfloat-abi=hard -O2 -ffreestanding -nostdlib \\",
        f" *     -T part.ld startup.c example.c {n}.o -lgcc -o firmware.elf",
        " * The floating-point unit (and Helium on Armv8.1-M) must be switched on before the first run.",
        " */",
        f'#include "{n}.h"',
        "",
        "/* Not on the stack: that is small on these parts. */",
        f"{upper}_ARENA(arena);",
        *(f"static {n}_input_{i}_t input_{i}[{max(t.elements, 1)}];" for i, t in enumerate(ins)),
        *(f"static {n}_output_{i}_t output_{i}[{max(t.elements, 1)}];" for i, t in enumerate(outs)),
        "",
        f'_Static_assert(sizeof arena == {upper}_ARENA_BYTES, "the arena is what the model needs");',
        "",
        "/* Where a sensor would write: a pattern that is the same in every run. */",
        "static void fill(void) {",
        *(line for i, t in enumerate(ins) for line in _fill(i, t)),
        "}",
        "",
        "/* One inference; 0 if all went well. The results are in output_0 and so on. */",
        "int32_t infer(void);",
        "int32_t infer(void) {",
        *([f"  static const int64_t sizes[] = {macro(n)}_SIZES_LARGEST;"] if spec.sizes else []),
        f"  const void *const inputs[] = {{{', '.join(_pointers(spec)) or '0'}}};",
        f"  void *const outputs[] = {{{', '.join(f'output_{i}' for i in range(len(outs))) or '0'}}};",
        f"  return {n}_run(inputs, outputs, arena);",
        "}",
        "",
        "int main(void) {",
        "  fill();",
        "  return (int)infer();",
        "}",
    ]
    return "\n".join(lines) + "\n"


def _fill(i: int, t: TensorSpec) -> list[str]:
    if t.dtype == "float16":  # 1.0 or 0.0 as bits: there is no arithmetic on halves in C
        value = "(uint16_t)(k % 2 ? 0x3C00 : 0)"
    elif t.dtype.startswith("float"):
        value = f"({C_TYPES[t.dtype]})((int)(k * 7 % 17) - 8) / 16"
    else:
        value = f"({C_TYPES[t.dtype]})(k % 2)"
    return [f"  for (uint32_t k = 0; k < {t.elements}u; ++k)", f"    input_{i}[k] = {value};"]


def _pointers(spec: Spec) -> list[str]:
    return [*(f"input_{i}" for i in range(len(spec.inputs))), *(["sizes"] if spec.sizes else [])]
