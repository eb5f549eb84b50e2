"""The parts of an artifact for an NVIDIA GPU that are not plain objects: host code and its tables.

In: a `Spec`, kernels with their launches, the machine code. Out: C sources, by file name.
Invariant: NAME.h is all a caller needs; the rest compiles with any C11 compiler on Linux, without a file
of CUDA's. Machine code and weights are taken in by the assembler (`.incbin`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

from tilewright.artifact.header import C_TYPES, comment, macro, unique_macros
from tilewright.runtime.model import Spec


@dataclass(frozen=True, slots=True)
class CudaKernel:
    """A kernel and how it is launched."""

    name: str
    blocks: int
    threads: int


@dataclass(frozen=True, slots=True)
class CudaArgument:
    """A pointer: `offset` bytes into `base` (input, output, arena, weights), tensor `number`."""

    base: str
    number: int
    offset: int


@dataclass(frozen=True, slots=True)
class CudaCode:
    """Everything of a model for one GPU. `image` is a cubin, or PTX text where there is no assembler."""

    compute_capability: int
    kernels: tuple[CudaKernel, ...]
    launches: tuple[tuple[int, tuple[CudaArgument, ...]], ...]
    ptx: str
    cubin: bytes | None
    weights: bytes

    @property
    def image(self) -> bytes:
        """What the driver loads; PTX must end in a zero byte."""
        return self.cubin if self.cubin is not None else self.ptx.encode() + b"\0"


def sources(spec: Spec, code: CudaCode) -> Mapping[str, str | bytes]:
    """All files but the library, the manifest and the header's users."""
    n = spec.name
    root = resources.files("tilewright.runtime")
    files: dict[str, str | bytes] = {
        f"{n}.h": header(spec),
        f"{n}_cuda.c": (root / "cuda_host.c").read_text(encoding="utf-8"),
        "cuda_host.h": (root / "cuda_host.h").read_text(encoding="utf-8"),
        "tilewright_cuda.h": f'#include "{n}.h"\n#include "{n}_kernels.h"\n',
        f"{n}_kernels.h": tables(spec, code),
        f"{n}.ptx": code.ptx,
        f"{n}.image": code.image,
        f"{n}.weights": code.weights or b"\0",
        "example.c": example(spec),
    }
    return files


def header(spec: Spec) -> str:
    """Text of NAME.h."""
    n, upper = spec.name, macro(spec.name)
    guard = f"TILEWRIGHT_MODEL_{upper}_H"
    lines = [
        f"/* {n}: a model compiled by tilewright for {comment(spec.target)}.",
        " *",
        " * Functions return 0, or another number after an error, which the text of",
        f" * {n}_message() (of this thread's last error) explains. inputs and outputs are arrays of pointers",
        " * to dense row-major tensors, in the order below. One thread at a time may use one instance.",
        " */",
        f"#ifndef {guard}", f"#define {guard}", "", "#include <stdint.h>", "",
        "#ifdef __cplusplus", 'extern "C" {', "#endif", "",
        f"#define {upper}_INPUT_COUNT {len(spec.inputs)}",
        f"#define {upper}_OUTPUT_COUNT {len(spec.outputs)}",
    ]  # fmt: skip
    for kind, tensors in (("INPUT", spec.inputs), ("OUTPUT", spec.outputs)):
        for i, (t, part) in enumerate(zip(tensors, unique_macros(tensors), strict=True)):
            shape = "x".join(map(str, t.shape)) or "scalar"
            lines.append(
                f"#define {upper}_{kind}_{i}_BYTES {t.nbytes} "
                f"/* {comment(t.name)}: {C_TYPES[t.dtype]} {shape} */"
            )
            del part
    lines += [
        "", f"typedef struct {n} {n}_t;", "",
        "/* Set the model up on CUDA device `device` (0 is the first): loads the driver, uploads the weights",
        " * and records the run. */",
        f"int32_t {n}_create({n}_t** out, int device);", "",
        "/* Run on tensors in host memory. */",
        f"int32_t {n}_run({n}_t* self, const void* const* inputs, void* const* outputs);", "",
        "/* Run on tensors in device memory (CUdeviceptr). */",
        f"int32_t {n}_run_device({n}_t* self, const unsigned long long* inputs,",
        f"{' ' * (len(n) + 21)}const unsigned long long* outputs);", "",
        f"void {n}_destroy({n}_t* self);",
        f"const char* {n}_message(void);", "",
        "#ifdef __cplusplus", "}", "#endif", f"#endif /* {guard} */", "",
    ]  # fmt: skip
    return "\n".join(lines)


def tables(spec: Spec, code: CudaCode) -> str:
    """Text of NAME_kernels.h: kernels, launches and sizes for the host code."""
    n = spec.name
    lines = [
        "/* Generated: what the host code of this model runs. */",
        '#include "cuda_host.h"', "",
        f"#define MODEL(x) {n}_##x",
        "enum {",
        f"    COMPUTE_CAPABILITY = {code.compute_capability},",
        f"    INPUT_COUNT = {len(spec.inputs)}, OUTPUT_COUNT = {len(spec.outputs)},",
        f"    KERNEL_COUNT = {len(code.kernels)}, LAUNCH_COUNT = {len(code.launches)},",
        f"    MAX_ARGUMENTS = {max((len(a) for _, a in code.launches), default=0) + 1}",
        "};",
        f"static const size_t ARENA_BYTES = {spec.arena_bytes}u, WEIGHTS_BYTES = {len(code.weights)}u;",
        "", _data(n, "image", f"{n}.image"), _data(n, "weights", f"{n}.weights"), "",
    ]  # fmt: skip
    for kind, tensors in (("input", spec.inputs), ("output", spec.outputs)):
        sizes = ", ".join(f"{t.nbytes}u" for t in tensors) or "0"
        lines.append(f"static const size_t {kind}_bytes[] = {{{sizes}}};")
    lines.append("static const struct kernel kernels[] = {")
    lines += [f'    {{"{k.name}", {k.blocks}u, {k.threads}u}},' for k in code.kernels]
    lines.append("};")
    for i, (_, arguments) in enumerate(code.launches):
        items = ", ".join(f"{{BASE_{a.base.upper()}, {a.number}u, {a.offset}u}}" for a in arguments)
        lines.append(f"static const struct argument arguments_{i}[] = {{{items}}};")
    lines.append("static const struct launch launches[] = {")
    lines += [
        f"    {{{kernel}u, {len(arguments)}u, arguments_{i}}},"
        for i, (kernel, arguments) in enumerate(code.launches)
    ]
    lines += ["};", ""]
    return "\n".join(lines)


def _data(name: str, what: str, file: str) -> str:
    """The bytes of a file as a hidden read-only symbol."""
    symbol = f"{name}_{what}"
    return (
        f'__asm__(".pushsection .rodata\\n.balign 64\\n.globl {symbol}\\n.hidden {symbol}\\n"\n'
        f'        "{symbol}:\\n.incbin \\"{file}\\"\\n.byte 0\\n.popsection\\n");\n'
        f"extern const unsigned char {symbol}[];"
    )


def example(spec: Spec) -> str:
    """A C program that runs the model once on zeros."""
    n = spec.name
    lines = [
        f"/* cc example.c ./{n}.so -o example && ./example */",
        f'#include "{n}.h"', "", "#include <stdio.h>", "#include <stdlib.h>", "", "int main(void) {",
        f"    {n}_t* model;",
        f"    if ({n}_create(&model, 0) != 0) {{",
        f'        fprintf(stderr, "%s\\n", {n}_message());', "        return 1;", "    }",
    ]  # fmt: skip
    for kind, tensors, const in (("inputs", spec.inputs, "const "), ("outputs", spec.outputs, "")):
        items = ", ".join(f"calloc(1, {t.nbytes})" for t in tensors) or "0"
        lines.append(f"    {const}void* {kind}[] = {{{items}}};")
    lines += [
        f"    int code = {n}_run(model, inputs, outputs);",
        f'    puts(code ? {n}_message() : "done");',
        f"    {n}_destroy(model);", "    return code;", "}", "",
    ]  # fmt: skip
    return "\n".join(lines)


def report(kernels: Sequence[Mapping[str, object]]) -> list[dict[str, object]]:
    """What the manifest says about the kernels."""
    return [dict(k) for k in kernels]
