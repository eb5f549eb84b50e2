"""What the CPU of this machine can do, in the names that target files use.

In: /proc/cpuinfo. Out: sets of feature names.
Invariant: names are LLVM's (as in `required` of a target file); the kernel's spelling stays in here.
Standard library only.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable
from functools import cache
from pathlib import Path

#: LLVM's name -> the kernel's, where they differ.
_KERNEL_NAMES = {
    "sse3": "pni", "sse4.1": "sse4_1", "sse4.2": "sse4_2", "pclmul": "pclmulqdq", "lzcnt": "abm",
    "bmi": "bmi1", "rdrnd": "rdrand", "sha": "sha_ni", "sahf": "lahf_lm", "prfchw": "3dnowprefetch",
    "avxvnni": "avx_vnni", "avx512vnni": "avx512_vnni", "avx512vbmi2": "avx512_vbmi2",
    "avx512bitalg": "avx512_bitalg", "avx512vpopcntdq": "avx512_vpopcntdq",
    "avx512bf16": "avx512_bf16", "avx512fp16": "avx512_fp16", "amx-tile": "amx_tile",
    "amx-int8": "amx_int8", "amx-bf16": "amx_bf16",
    "neon": "asimd", "dotprod": "asimddp", "fullfp16": "asimdhp", "fp-armv8": "fp", "lse": "atomics",
    "rdm": "asimdrdm", "fp16fml": "asimdfhm",
}  # fmt: skip
#: Other names of one architecture.
_ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}


def architecture(name: str | None = None) -> str:
    """One name per architecture: of this machine, or of `name` (an `uname -m` or a triple's start)."""
    name = (platform.machine() if name is None else name).lower()
    return _ARCHITECTURES.get(name, name)


@cache
def kernel_flags(cpuinfo: str = "/proc/cpuinfo") -> frozenset[str] | None:
    """The flags that the kernel reports for every CPU; None where it does not say."""
    try:
        text = Path(cpuinfo).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    lines = [
        frozenset(line.partition(":")[2].split())
        for line in text.splitlines()
        if line.startswith(("flags", "Features"))
    ]
    # A thread may run on any core: on a mixed machine only what all of them can do counts.
    return frozenset.intersection(*lines) if lines else None


def missing_features(required: Iterable[str], cpuinfo: str = "/proc/cpuinfo") -> list[str]:
    """Those of `required` that this machine lacks; empty where the system does not tell."""
    flags = kernel_flags(cpuinfo)
    if flags is None:
        return []
    return [f for f in required if f not in flags and _KERNEL_NAMES.get(f, f) not in flags]
