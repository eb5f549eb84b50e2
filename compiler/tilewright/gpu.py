"""A program as code for an NVIDIA GPU.

In: a `Program` for a target with `[gpu]`. Out: PTX, machine code where ptxas is installed, launches in
order, and what ptxas says about every kernel.
Invariant: kernels are compiled once, whatever the number of steps that launch them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import gcd
from typing import Any

from tilewright.artifact.cuda.text import Argument, Image
from tilewright.artifact.cuda.text import Launch as ImageLaunch
from tilewright.codegen.cuda import Launch, emit_cuda, launch_of
from tilewright.codegen.llvm import to_assembly
from tilewright.codegen.module import Place
from tilewright.codegen.ptxas import KernelReport, assemble
from tilewright.errors import TargetError
from tilewright.program import Program

NO_PTXAS = (
    "ptxas was not found: only PTX was made, and registers, spills and occupancy are not known; install "
    "CUDA or `pip install 'tilewright[cuda]'`"
)


@dataclass(frozen=True, slots=True)
class GpuCode:
    """What an artifact holds, and a report per kernel (none without ptxas)."""

    image: Image
    reports: tuple[KernelReport, ...]

    @property
    def notes(self) -> list[str]:
        """What the user should know."""
        return [] if self.image.cubin else [NO_PTXAS]

    def facts(self) -> list[dict[str, Any]]:
        """Kernels for the manifest."""
        return [asdict(r) for r in self.reports]


def generate_gpu(program: Program) -> GpuCode:
    """Code of all kernels as one module; `ToolchainError` if LLVM or ptxas refuses them."""
    gpu = program.target.gpu
    if gpu is None:
        raise TargetError(f"{program.target.name} is not a GPU")
    launches = {k.name: launch_of(k) for k in program.kernels}
    for name, launch in launches.items():
        _check(name, launch, gpu.threads_block, gpu.shared_block)
    ptx = gpu_assembly(program)
    made = assemble(ptx, gpu, launches)
    names = tuple(launches)
    calls = tuple(
        ImageLaunch(
            names.index(s.kernel), launches[s.kernel].blocks, launches[s.kernel].threads,
            _arguments(program, s.places),
        )
        for s in program.steps
    )  # fmt: skip
    cubin = made.cubin if made else b""
    image = Image(gpu.sm, ptx, cubin, program.weights, names, calls)
    return GpuCode(image, made.kernels if made else ())


def gpu_assembly(program: Program) -> str:
    """PTX of all kernels."""
    text = emit_cuda(program.kernels, program.target, alignments(program))
    return to_assembly(text, program.target)


def alignments(program: Program) -> dict[str, list[int]]:
    """Bytes, up to 16, that every step's pointers are multiples of: bases come from the driver's allocator,
    which aligns to 256."""
    found: dict[str, list[int]] = {}
    for s in program.steps:
        old = found.get(s.kernel, [16] * len(s.places))
        found[s.kernel] = [gcd(a, p.offset) for a, p in zip(old, s.places, strict=True)]
    return found


def _check(name: str, launch: Launch, threads: int, shared: int) -> None:
    if launch.threads > threads or launch.shared_bytes > shared:
        raise TargetError(
            f"kernel {name} wants {launch.threads} threads and {launch.shared_bytes} bytes of shared memory "
            f"per block, the GPU has {threads} and {shared}"
        )


def _arguments(program: Program, places: Sequence[Place]) -> tuple[Argument, ...]:
    """Places of a step's tensors as bases and offsets."""
    inputs = len(program.inputs)
    bases = {"weights": 0, "arena": 1, "input": 2, "output": 2 + inputs}
    return tuple(Argument(bases[p.base] + p.number, p.offset) for p in places)
