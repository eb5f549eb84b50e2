"""The boards that QEMU can stand in for: where their memory lies and how fast their clock ticks.

In: the name of a QEMU machine. Out: a `Machine`.
Invariant: memory maps are those of QEMU's documentation of the Arm MPS2 and MPS3 boards, not those of
the part a target file describes: a program for 64 KB of RAM is emulated in a board that has more.
"""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.errors import TargetError


@dataclass(frozen=True, slots=True)
class Machine:
    """Addresses and sizes in bytes; `clock` in Hz drives the timer that counts instructions."""

    name: str
    flash: int
    flash_bytes: int
    ram: int
    ram_bytes: int
    clock: int

    @property
    def instructions_per_tick(self) -> float:
        """Under `-icount shift=0` one instruction takes one nanosecond of the emulated clock."""
        return 1e9 / self.clock


_MACHINES = {
    m.name: m
    for m in (
        Machine("mps2-an386", 0x00000000, 4 << 20, 0x20000000, 4 << 20, 25_000_000),
        Machine("mps2-an500", 0x00000000, 4 << 20, 0x20000000, 4 << 20, 25_000_000),
        Machine("mps3-an547", 0x10000000, 512 << 10, 0x30000000, 512 << 10, 32_000_000),
    )
}


def machine(name: str) -> Machine:
    """The machine called `name`; `TargetError` names those we know."""
    if name not in _MACHINES:
        raise TargetError(
            f"no memory map for the QEMU machine `{name}`: use one of {', '.join(_MACHINES)}"
        )
    return _MACHINES[name]
