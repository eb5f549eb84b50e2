"""Which symbols the object of a model defines and which it may need.

In: a `Spec`, an object file. Out: names.
Invariant: what a model may need is there wherever it is linked: with an operating system the C library's
memory functions; on bare metal only the arithmetic of the compiler's runtime library (libgcc or
compiler-rt), which every toolchain links without being asked. Standard library only.
"""

from __future__ import annotations

from tilewright.artifact.elf import Elf
from tilewright.runtime.model import Spec

#: What a compiler may call on its own in freestanding code.
MEMORY = frozenset({"memcpy", "memmove", "memset", "memcmp"})
#: "Run-time ABI for the Arm Architecture", sections 4.1 and 4.2, without the memory functions.
ARM_ARITHMETIC = frozenset(
    {f"__aeabi_{t}{op}" for t in ("f", "d") for op in ("add", "sub", "rsub", "mul", "div")}
    | {
        f"__aeabi_{t}cmp{op}" for t in ("f", "d") for op in ("eq", "lt", "le", "ge", "gt", "un")
    }
    | {f"__aeabi_{a}2{u}{b}" for a in ("f", "d") for u in ("", "u") for b in ("iz", "lz")}
    | {f"__aeabi_{u}{a}2{b}" for u in ("", "u") for a in ("i", "l") for b in ("f", "d")}
    | {f"__aeabi_{name}" for name in (
        "f2d", "d2f", "h2f", "f2h", "d2h", "lmul", "llsl", "llsr", "lasr", "lcmp", "ulcmp", "ldivmod",
        "uldivmod", "idiv", "uidiv", "idivmod", "uidivmod",
    )}
)  # fmt: skip


def entry_points(spec: Spec) -> tuple[str, ...]:
    """Functions that the object defines for callers."""
    return (f"{spec.name}_run", *((f"{spec.name}_run_parallel",) if spec.threads else ()))


def may_call(spec: Spec) -> frozenset[str]:
    """Symbols that the object may leave to the linker."""
    return MEMORY if spec.threads else ARM_ARITHMETIC


def foreign_symbols(elf: Elf, spec: Spec) -> set[str]:
    """Symbols that the object needs and nobody has."""
    needed = {s.name for s in elf.symbols() if s.section == 0 and not s.is_local and not s.is_weak}
    return needed - may_call(spec) - {"_GLOBAL_OFFSET_TABLE_"}
