"""Times and checksums of candidates on a device, for whoever compares schedules.

In: object code of candidates for the same computation, the inputs that they share, a target, an address.
Out: a `LinuxRun` each. On an emulator times mean little: instructions are counted where the emulator can.
Invariant: all candidates run in one program and take turns, so that a disturbance meets them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tilewright.device.base import TIMEOUT_SECONDS
from tilewright.device.choose import device_for
from tilewright.device.link import Unit
from tilewright.device.linux import LinuxProgram, LinuxRun, counting
from tilewright.graph.ir import Array
from tilewright.schedule.target import Target


def measure(
    candidates: Sequence[Unit],
    inputs: Sequence[Array],
    target: Target,
    address: str | None = None,
    rounds: int = 10,
    *,
    outputs: bool = False,
    timeout: float = TIMEOUT_SECONDS,
) -> list[LinuxRun]:
    """Run candidates (with names of their own) on the same inputs.

    On an emulator no rounds are timed; `instructions` is set where it can count. Raises `TargetError` or
    `ToolchainError` if the device cannot be used; a candidate that crashes has an `error`.
    """
    device = device_for(target, address)
    counter = counting(device)
    units = [replace(c, data=0) for c in candidates]
    with LinuxProgram(units, target.triple, counter or device) as program:
        return program.run(
            [inputs], 0 if device.emulated else rounds, outputs=outputs,
            instructions=counter is not None, timeout=timeout,
        )  # fmt: skip
