"""Which device runs the code for a target.

In: a target and, if the user names one, an address. Out: a `Device`.
Invariant: without an address, code runs on this machine where its CPU can, else in the emulator that the
target file names; never is one silently taken for the other where an address is given.
"""

from __future__ import annotations

from pathlib import Path

from tilewright.artifact.toolchain import system_root
from tilewright.codegen.llvm import runs_here
from tilewright.device.base import Device
from tilewright.device.local import LocalDevice
from tilewright.device.ssh import SshDevice
from tilewright.errors import TargetError
from tilewright.runtime.cpu import architecture
from tilewright.schedule.target import Target

#: Addresses that are no URL.
HERE, EMULATOR = "local", "emulator"


def device_for(target: Target, address: str | None = None) -> Device:
    """The device at `address`: `ssh://user@host:port/directory`, `local` or `emulator`.

    Without one, this machine or the target's emulator. Raises `TargetError` if the target has no
    operating system, or the device cannot run its code; `ToolchainError` if a command is missing.
    """
    if target.family != "simd" or "linux" not in target.triple.split("-"):
        raise TargetError(f"{target.name} has no operating system: no Linux device runs its code")
    if address is None:
        address = HERE if runs_here(target) else EMULATOR
    if address == HERE:
        if not runs_here(target):
            raise TargetError(
                f"code for {target.name} cannot run on this machine: leave out --device for an emulator, or "
                "use --target host"
            )
        return LocalDevice()
    if address == EMULATOR:
        return _emulator(target)
    device = SshDevice(address)
    wanted = architecture(target.triple.partition("-")[0])
    if device.machine != wanted:
        raise TargetError(
            f"{address} is {device.machine}, the code for {target.name} is {wanted}: name the target that fits "
            "the device"
        )
    return device


def _emulator(target: Target) -> LocalDevice:
    if not target.emulator:
        raise TargetError(
            f"code for {target.name} cannot run here and its target file names no emulator: name a machine "
            "with --device ssh://user@host"
        )
    root: Path | None = system_root(target.triple)
    return LocalDevice(target.emulator, root)
