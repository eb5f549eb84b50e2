"""C text of a CUDA artifact: header, host code, data, example.

In: a `Spec` and an `Image`. Out: source texts.
Invariant: host code needs the C library and dlopen only, builds without warnings, and the sizes in it are
compile-time constants; the fixed parts are the files beside this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import accumulate

from tilewright.artifact.header import comment, macro, tensor_macros
from tilewright.runtime.model import Spec


@dataclass(frozen=True, slots=True)
class Argument:
    """Where a kernel's pointer points: bytes into a base.

    Bases: 0 the weights, 1 the arena, then the inputs, then the outputs.
    """

    base: int
    offset: int


@dataclass(frozen=True, slots=True)
class Launch:
    """One kernel call: index of the kernel, blocks, threads per block, arguments."""

    kernel: int
    blocks: int
    threads: int
    arguments: tuple[Argument, ...]


@dataclass(frozen=True, slots=True)
class Image:
    """All that a GPU runs: PTX, machine code (empty without ptxas), weights, kernels, calls in order.

    `capability` is the oldest compute capability that the PTX is for, 80 for 8.0.
    """

    capability: int
    ptx: str
    cubin: bytes
    weights: bytes
    kernels: tuple[str, ...]
    launches: tuple[Launch, ...]


def exports(spec: Spec) -> tuple[str, ...]:
    """The functions that NAME.so has for its callers."""
    names = ("create", "run", "launch", "input", "output", "error", "destroy")
    return tuple(f"{spec.name}_{n}" for n in names)


def host_source(spec: Spec, image: Image) -> str:
    """Text of NAME.c."""
    return _filled("host.c", spec, TABLES=_tables(spec, image))


def data_source(spec: Spec, image: Image) -> str:
    """Text of NAME_data.S, which includes NAME.cubin (where there is one), NAME.ptx and NAME.weights."""
    cubin = f'\t.incbin "{spec.name}.cubin"\n' if image.cubin else ""
    return _filled("data.S", spec, CUBIN=cubin)


def example(spec: Spec) -> str:
    """Text of example.c."""
    upper = macro(spec.name)

    def sizes(kind: str, count: int) -> str:
        return "".join(f"{upper}_{kind}_{i}_BYTES, " for i in range(count))

    return _filled(
        "example.c", spec, INPUT_BYTES=sizes("INPUT", len(spec.inputs)),
        OUTPUT_BYTES=sizes("OUTPUT", len(spec.outputs)),
    )  # fmt: skip


def header(spec: Spec) -> str:
    """Text of NAME.h."""
    tensors = [
        *tensor_macros(spec, "INPUT", spec.inputs), *tensor_macros(spec, "OUTPUT", spec.outputs)
    ]  # fmt: skip
    return _filled("model.h", spec, TENSORS="\n".join(tensors))


def _filled(file: str, spec: Spec, **parts: str) -> str:
    text = (resources.files("tilewright.artifact.cuda") / file).read_text(encoding="utf-8")
    parts |= {"NAME": spec.name, "UPPER": macro(spec.name), "TARGET": comment(spec.target)}
    for key, value in parts.items():
        text = text.replace(f"@{key}@", value)
    return text


def _tables(spec: Spec, image: Image) -> str:
    """Constants and tables of NAME.c; an entry that nobody reads ends each, as C has no empty arrays."""
    calls = image.launches
    sizes = [
        len(image.weights), spec.arena_bytes, *(t.nbytes for t in (*spec.inputs, *spec.outputs))
    ]  # fmt: skip
    first = [0, *accumulate(len(c.arguments) for c in calls)]
    lines = [
        "enum {",
        f"  CAPABILITY = {image.capability},",
        f"  CUBIN_BYTES = {len(image.cubin)},",
        f"  KERNELS = {len(image.kernels)},",
        f"  STEPS = {len(calls)},",
        f"  ARGUMENTS = {first[-1]},",
        f"  INPUTS = {len(spec.inputs)},",
        f"  OUTPUTS = {len(spec.outputs)}",
        "};",
        "",
        "/* Bytes of the weights, the arena and each tensor. */",
        *_array("size_t sizes", "FIRST_TENSOR + INPUTS + OUTPUTS", [f"{n}u" for n in sizes], "0"),
        *_array("char *const kernels", "KERNELS", [f'"{k}"' for k in image.kernels], "NULL"),
        *_array(
            "argument arguments", "ARGUMENTS",
            [f"{{{a.base}, {a.offset}u}}" for c in calls for a in c.arguments], "{0, 0}",
        ),
        *_array(
            "step steps", "STEPS",
            [
                f"{{{c.kernel}, {c.blocks}, {c.threads}, {at}, {len(c.arguments)}}}"
                for c, at in zip(calls, first, strict=False)
            ],
            "{0, 0, 0, 0, 0}",
        ),
    ]  # fmt: skip
    return "\n".join(lines)


def _array(what: str, count: str, items: Sequence[str], last: str) -> list[str]:
    rows = [f"  {', '.join(items[i : i + 6])}," for i in range(0, len(items), 6)]
    return [f"static const {what}[{count} + 1] = {{", *rows, f"  {last}}};"]
