"""NAME_selftest.c: runs a model on inputs that it makes itself and compares with known results.

In: a `Spec`, `Vectors`. Out: C source text; the same inputs as NumPy arrays.
Invariant: inputs are exact in every arithmetic (whole numbers, and fractions of 2**24), so C and NumPy make
the same ones; the C code is freestanding and keeps nothing. Standard library and NumPy only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilewright.artifact.header import C_TYPES, macro
from tilewright.runtime.model import Spec, TensorSpec

#: Elements of each output that are compared.
SAMPLES = 64


@dataclass(frozen=True, slots=True)
class Expected:
    """What one output holds: `values` at the flat indices `at`, each within `tolerance`."""

    at: tuple[int, ...]
    values: tuple[float | int, ...]
    tolerance: float | int


@dataclass(frozen=True, slots=True)
class Vectors:
    """`ranges`: per input the least value and the number of values if it holds whole numbers."""

    seed: int
    ranges: tuple[tuple[int, int], ...]
    outputs: tuple[Expected, ...]

    def facts(self) -> Mapping[str, Any]:
        """For the manifest."""
        outputs = [
            {"at": list(o.at), "values": list(o.values), "tolerance": o.tolerance}
            for o in self.outputs
        ]
        return {"seed": self.seed, "ranges": [list(r) for r in self.ranges], "outputs": outputs}


def make_inputs(spec: Spec, ranges: Sequence[tuple[int, int]], seed: int) -> list[Any]:
    """The arrays that the C code makes."""
    return [
        _values(_numbers(seed + i, t.elements), t.dtype, r).reshape(t.shape)
        for i, (t, r) in enumerate(zip(spec.inputs, ranges, strict=True))
    ]


def expect(output: Any) -> Expected:
    """Finite elements of `output`, evenly spread, with a tolerance: a thousandth of the largest
    magnitude for floats, one step for bytes, none for larger whole numbers."""
    flat = np.asarray(output).reshape(-1)
    indices = np.unique(np.linspace(0, max(flat.size - 1, 0), min(flat.size, SAMPLES)).astype(int))
    at = [int(i) for i in indices if np.isfinite(flat[i])]
    if flat.dtype.kind != "f":
        tolerance = 1 if flat.dtype.itemsize == 1 and flat.dtype.kind != "b" else 0
        return Expected(tuple(at), tuple(int(flat[i]) for i in at), tolerance)
    finite = np.abs(flat[np.isfinite(flat)].astype(np.float64))
    largest = float(finite.max()) if finite.size else 0.0
    values = tuple(float(f"{float(flat[i]):.9g}") for i in at)
    return Expected(tuple(at), values, float(f"{max(largest * 1e-3, 1e-30):.9g}"))


def _numbers(seed: int, count: int) -> Any:
    """u32[count] that look random: `number` of the C code."""
    x = np.arange(count, dtype=np.uint32) * np.uint32(0x9E3779B9) + np.uint32(seed & 0xFFFFFFFF)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ x >> np.uint32(shift)) * np.uint32(factor)
    return x ^ x >> np.uint32(16)


def _values(x: Any, dtype: str, bounds: tuple[int, int]) -> Any:
    if dtype == "float16":
        return (0x3C00 | x >> np.uint32(22)).astype(np.uint16).view(np.float16)
    if dtype.startswith("float"):
        return ((x >> np.uint32(8)) / 2.0**24).astype(dtype)
    low, count = bounds
    return (x % np.uint32(count) + np.int64(low)).astype(dtype)


# ---------------------------------------------------------------- C


def declarations(spec: Spec) -> list[str]:
    """Lines for the header."""
    n, upper = spec.name, macro(spec.name)
    return [
        f"/* {n}_selftest.c: runs the model on inputs that it makes and compares the outputs with values",
        " * known from compiling it. `scratch` is memory for inputs and outputs, aligned like the arena.",
        " * Returns 0 if all is right, 1 if the run fails, 2 + i if output i is wrong. */",
        f"#define {upper}_SELFTEST_SCRATCH_BYTES {_offsets(spec)[1]}",
        f"int32_t {n}_selftest(void *arena, void *scratch);",
        "",
    ]


def source(spec: Spec, vectors: Vectors) -> str:
    """Text of NAME_selftest.c."""
    n = spec.name
    offsets, _ = _offsets(spec)
    ins, outs = spec.inputs, spec.outputs
    names = [*(f"input_{i}" for i in range(len(ins))), *(f"output_{i}" for i in range(len(outs)))]
    lines = [
        f"/* Self-test of {n}: build it with the model, see {n}.h. */",
        f'#include "{n}.h"',
        "",
        "/* The k-th of the numbers that belong to a seed; they look random. */",
        "static uint32_t number(uint32_t seed, uint32_t k) {",
        "  uint32_t x = k * 0x9E3779B9u + seed;",
        "  x = (x ^ x >> 16) * 0x85EBCA6Bu;",
        "  x = (x ^ x >> 13) * 0xC2B2AE35u;",
        "  return x ^ x >> 16;",
        "}",
        "",
        *(_HALF if any(t.dtype == "float16" for t in outs) else []),
        *(
            line
            for i, (t, o) in enumerate(zip(outs, vectors.outputs, strict=True))
            for line in _table(i, t, o)
        ),
        f"int32_t {n}_selftest(void *arena, void *scratch) {{",
        "  unsigned char *bytes = (unsigned char *)scratch;",
        *(
            f"  {n}_{name}_t *{name} = ({n}_{name}_t *)(void *)(bytes + {at}u);"
            for name, at in zip(names, offsets, strict=True)
        ),
        f"  const void *inputs[{max(len(spec.given), 1)}];",
        f"  void *outputs[{max(len(outs), 1)}];",
        "  uint32_t k;",
        *([f"  static const int64_t sizes[] = {macro(n)}_SIZES_LARGEST;"] if spec.sizes else []),
        *(f"  inputs[{i}] = input_{i};" for i in range(len(ins))),
        *([f"  inputs[{len(ins)}] = sizes;"] if spec.sizes else []),
        *(f"  outputs[{i}] = output_{i};" for i in range(len(outs))),
        *(
            line
            for i, (t, r) in enumerate(zip(ins, vectors.ranges, strict=True))
            for line in _fill(i, t, r, vectors.seed + i)
        ),
        *(line for i, t in enumerate(outs) for line in _poison(i, t)),
        f"  if ({n}_run((const void *const *)inputs, (void *const *)outputs, arena) != 0)",
        "    return 1;",
        *(line for i, o in enumerate(vectors.outputs) for line in _compare(i, outs[i], o)),
        "  return 0;",
        "}",
    ]
    return "\n".join(lines) + "\n"


def _offsets(spec: Spec) -> tuple[list[int], int]:
    """Where inputs and outputs lie in the scratch memory, and its size."""
    offsets: list[int] = []
    size = 0
    for t in (*spec.inputs, *spec.outputs):
        offsets.append(size)
        size += -(-max(t.nbytes, 1) // spec.arena_align) * spec.arena_align
    return offsets, max(size, 1)


def _fill(i: int, t: TensorSpec, bounds: tuple[int, int], seed: int) -> list[str]:
    x = f"number({seed & 0xFFFFFFFF}u, k)"
    low, count = bounds
    if t.dtype == "float16":
        value = f"(uint16_t)(0x3C00u | {x} >> 22)"
    elif t.dtype.startswith("float"):
        value = f"({C_TYPES[t.dtype]})({x} >> 8) / 16777216"
    else:
        wide = "int64_t" if t.dtype in ("int64", "uint64") else "int32_t"
        value = f"({C_TYPES[t.dtype]})(({wide})({x} % {count}u) + ({low}))"
    return [f"  for (k = 0; k < {t.elements}u; ++k)", f"    input_{i}[k] = {value};"]


def _poison(i: int, t: TensorSpec) -> list[str]:
    """What an earlier run left must not pass."""
    return [
        f"  for (k = 0; k < {t.nbytes}u; ++k)",
        f"    ((unsigned char *)output_{i})[k] = 0xA5u;",
    ]


def _table(i: int, t: TensorSpec, o: Expected) -> list[str]:
    if not o.at:
        return []
    kind = "float" if t.dtype == "float16" else C_TYPES[t.dtype]
    literals = [_literal(v, t.dtype) for v in o.values]
    return [
        f"static const uint32_t at_{i}[] = {{", *_folded([f"{a}u" for a in o.at]), "};",
        f"static const {kind} want_{i}[] = {{", *_folded(literals), "};", "",
    ]  # fmt: skip


def _compare(i: int, t: TensorSpec, o: Expected) -> list[str]:
    if not o.at:
        return []
    got = f"half(output_{i}[at_{i}[k]])" if t.dtype == "float16" else f"output_{i}[at_{i}[k]]"
    if t.dtype.startswith("float"):  # written so that a NaN fails
        kind = "double" if t.dtype == "float64" else "float"
        limit = _literal(o.tolerance, t.dtype)
        test = [
            f"    {kind} d = {got} - want_{i}[k];",
            f"    if (!(d <= {limit} && d >= -{limit}))",
        ]
    elif o.tolerance:
        test = [
            f"    int32_t d = (int32_t){got} - (int32_t)want_{i}[k];",
            f"    if (d > {o.tolerance} || d < -{o.tolerance})",
        ]
    else:
        test = [f"    if ({got} != want_{i}[k])"]
    return [f"  for (k = 0; k < {len(o.at)}u; ++k) {{", *test, f"      return {2 + i};", "  }"]


def _literal(value: float | int, dtype: str) -> str:
    if dtype.startswith("float"):
        text = f"{float(value):.9g}"
        text += "" if any(c in text for c in ".e") else ".0"
        return text if dtype == "float64" else f"{text}f"
    if dtype == "uint64":
        return f"UINT64_C({value})"
    if dtype == "int64":
        return f"(-INT64_C({2**63 - 1}) - 1)" if value == -(2**63) else f"INT64_C({value})"
    if value == -(2**31):
        return "(-2147483647 - 1)"
    return f"{value}u" if dtype.startswith("u") else str(value)


def _folded(items: Sequence[str], per_line: int = 8) -> list[str]:
    return [f"    {', '.join(items[i : i + per_line])}," for i in range(0, len(items), per_line)]


_HALF = [
    "/* The value of a binary16; infinities and NaNs become a NaN. */",
    "static float half(uint16_t bits) {",
    "  int e = bits >> 10 & 31;",
    "  float m = (float)(bits & 1023) / 1024.0f + (e != 0 ? 1.0f : 0.0f);",
    "  int k = e != 0 ? e - 15 : -14;",
    "  if (e == 31)",
    "    return (m - m) / (m - m);",
    "  for (; k > 0; --k)",
    "    m *= 2.0f;",
    "  for (; k < 0; ++k)",
    "    m *= 0.5f;",
    "  return bits >> 15 ? -m : m;",
    "}",
    "",
]
