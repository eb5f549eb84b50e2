"""NVIDIA's assembler: PTX to machine code, and what it says about every kernel.

In: PTX text, a target with `[gpu]`. Out: a cubin and registers, spills, shared memory and occupancy of each
kernel; None where ptxas is not installed.
Invariant: ptxas is found on the PATH, else in the wheel `nvidia-cuda-nvcc-cu12` (the extra `cuda`).
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tilewright.codegen.cuda import Launch
from tilewright.errors import ToolchainError
from tilewright.schedule.target import Gpu

TIMEOUT_SECONDS = 600


@dataclass(frozen=True, slots=True)
class KernelReport:
    """What ptxas made of a kernel; `occupancy` is the share of a multiprocessor's threads at work."""

    name: str
    registers: int
    spill_bytes: int
    stack_bytes: int
    shared_bytes: int
    blocks: int
    threads: int
    occupancy: float


@dataclass(frozen=True, slots=True)
class Assembled:
    """Machine code of a module and a report on each kernel, in the order given."""

    cubin: bytes
    kernels: tuple[KernelReport, ...]


def find_ptxas() -> str | None:
    """The assembler's path, or None."""
    found = shutil.which("ptxas")
    if found is not None:
        return found
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations or () if spec is not None else ():
        for path in sorted(Path(folder).glob("*/bin/ptxas")):
            return str(path)
    return None


def assemble(ptx: str, gpu: Gpu, launches: dict[str, Launch]) -> Assembled | None:
    """Assemble a module; None without ptxas. `ToolchainError` has its first error."""
    ptxas = find_ptxas()
    if ptxas is None:
        return None
    with tempfile.TemporaryDirectory(prefix="tilewright-ptxas-") as name:
        source, made = Path(name) / "kernels.ptx", Path(name) / "kernels.cubin"
        source.write_text(ptx, encoding="utf-8")
        command = [ptxas, "-v", f"-arch=sm_{gpu.sm}", str(source), "-o", str(made)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=TIMEOUT_SECONDS
            )
        except (OSError, subprocess.TimeoutExpired) as err:
            raise ToolchainError(f"`{ptxas}` failed: {err}") from None
        if done.returncode:
            lines = [s for s in done.stderr.splitlines() if "error" in s] or ["no message"]
            raise ToolchainError(f"`{ptxas}` refused the generated code: {lines[0]}")
        reports = tuple(_report(n, done.stderr, gpu, launch) for n, launch in launches.items())
        return Assembled(made.read_bytes(), reports)


def _report(name: str, text: str, gpu: Gpu, launch: Launch) -> KernelReport:
    at = text.find(f"Compiling entry function '{name}'")
    part = text[at : text.find("Compiling entry function", at + 1)] if at >= 0 else ""

    def number(pattern: str) -> int:
        found = re.search(pattern, part)
        return int(found.group(1)) if found else 0

    registers = number(r"Used (\d+) registers")
    spills = number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads")
    return KernelReport(
        name, registers, spills, number(r"(\d+) bytes stack frame"), launch.shared_bytes,
        launch.blocks, launch.threads, occupancy(gpu, launch, registers),
    )  # fmt: skip


def occupancy(gpu: Gpu, launch: Launch, registers: int) -> float:
    """Threads of one multiprocessor that can be at work at once, as a share of those it has room for.

    Registers are given out in units of 256 per warp, shared memory in units of 128 bytes with 1 KB per
    block for the system ("CUDA C++ Programming Guide", compute capabilities 8.x and 9.0).
    """
    warps = -(-launch.threads // gpu.warp)
    per_warp = max(-(-registers * gpu.warp // 256) * 256, 1)
    limits = [
        gpu.blocks_sm,
        gpu.threads_sm // (warps * gpu.warp),
        gpu.registers_sm // (per_warp * warps),
        gpu.shared_sm // (-(-launch.shared_bytes // 128) * 128 + 1024),
    ]
    return max(min(limits), 0) * warps * gpu.warp / gpu.threads_sm
