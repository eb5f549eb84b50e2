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
    """Addresses and sizes in bytes; `clock` in Hz drives the timer that counts instructions.

    `vectors` is where the processor finds its stack pointer and entry after reset.
    """

    name: str
    vectors: int
    flash: int
    flash_bytes: int
    ram: int
    ram_bytes: int
    clock: int

    @property
    def instructions_per_tick(self) -> float:
        """Under `-icount shift=0` one instruction takes one nanosecond of the emulated clock."""
        return 1e9 / self.clock


_MIB = 1 << 20
_MACHINES = {
    m.name: m
    for m in (
        # SSRAM1, SSRAM2 and 3
        Machine("mps2-an386", 0, 0x400, 4 * _MIB - 0x400, 0x20000000, 4 * _MIB, 25_000_000),
        Machine("mps2-an500", 0, 0x400, 4 * _MIB - 0x400, 0x20000000, 4 * _MIB, 25_000_000),
        # tightly coupled memory, SRAM and ISRAM at their secure addresses
        Machine("mps3-an547", 0x10000000, 0x11000000, 2 * _MIB, 0x31000000, 4 * _MIB, 32_000_000),
    )
}


def machine(name: str) -> Machine:
    """The machine called `name`; `TargetError` names those we know."""
    if name not in _MACHINES:
        raise TargetError(
            f"no memory map for the QEMU machine `{name}`: use one of {', '.join(_MACHINES)}"
        )
    return _MACHINES[name]
