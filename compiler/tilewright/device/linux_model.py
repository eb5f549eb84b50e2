"""A model on another Linux machine, used like one in this process.

In: a `Program` for a target that this machine cannot run, or an artifact; a device. Out: a model to call.
Invariant: every result comes from the device; this process only copies bytes.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Sequence
from pathlib import Path

from tilewright.artifact import manifest as manifests
from tilewright.artifact.verify import verify_artifact
from tilewright.device.base import Device
from tilewright.device.choose import device_for
from tilewright.device.entry import entry_of
from tilewright.device.link import Unit, unit_of
from tilewright.device.linux import LinuxProgram, LinuxRun, counting, require
from tilewright.device.local import LocalDevice
from tilewright.errors import ArtifactError, TilewrightError
from tilewright.program import Program
from tilewright.runtime.model import Array, Model, Save
from tilewright.schedule.target import Target


class RemoteModel(Model):
    """What models on a device have in common: linked and installed once, run as often as called."""

    def __init__(
        self, unit: Unit, triple: str, device: Device, save: Save | None, threads: int = 1
    ) -> None:
        self.device, self.threads = device, threads
        self._unit, self._triple = unit, triple
        self._linked = LinuxProgram([unit], triple, device, threads)
        self._finalizer = weakref.finalize(self, _close_quietly, self._linked)
        super().__init__(unit.spec, entry_of(unit.spec, self._outputs), save=save)

    def measure(self, inputs: Sequence[Array], rounds: int) -> LinuxRun:
        """Run once for the outputs and `rounds` turns more for the time, all on the device."""
        run = self._linked.run([inputs], rounds)[0]
        return require(self.name, self.device, run)

    def instructions(self, inputs: Sequence[Array]) -> int | None:
        """Instructions of one run on one thread under emulation; None where they cannot be counted."""
        counter = counting(self.device)
        if counter is None:
            return None
        with LinuxProgram([self._unit], self._triple, counter) as linked:
            run = linked.run([inputs], outputs=False, instructions=True)[0]
        return require(self.name, self.device, run).instructions

    def close(self) -> None:
        """Remove the program from the device (which happens by itself when the model goes)."""
        self._finalizer()

    def _outputs(self, inputs: list[Array]) -> Sequence[Array]:
        return self.measure(inputs, 0).outputs


class LinuxModel(RemoteModel):
    """A compiled program on a device (default: the emulator of its target).

    Raises `TargetError` if the device cannot be used, `ToolchainError` without a C compiler for it.
    """

    def __init__(
        self,
        program: Program,
        address: str | None = None,
        save: Save | None = None,
        threads: int = 1,
    ) -> None:
        self.program = program
        target = program.target
        device = device_for(target, address)
        super().__init__(unit_of(program), target.triple, device, save, threads)


class LinuxArtifact(RemoteModel):
    """The shared library of an artifact on a device; its object where an emulator lacks a C library.

    Raises `ArtifactError` if the artifact is damaged or has no library, and what `LinuxModel` raises.
    """

    def __init__(
        self, path: Path, target: Target, address: str | None = None, threads: int = 1
    ) -> None:
        folder = path if path.is_dir() else path.parent
        found = manifests.read(folder)
        problems = verify_artifact(folder)
        if problems:
            raise ArtifactError(f"{folder} is damaged ({problems[0]}): compile the model again")
        device = device_for(target, address)
        shared = not (isinstance(device, LocalDevice) and device.emulated and not device.system)
        name = f"{found.spec.name}.{'so' if shared else 'o'}"
        if name not in found.files:
            raise ArtifactError(
                f"{folder} has no {name}: compile the model again where a C compiler is installed"
            )
        unit = Unit(found.spec, (folder / name).read_bytes(), shared)
        super().__init__(unit, found.triple, device, None, threads)


def _close_quietly(linked: LinuxProgram) -> None:
    """A device that is gone by now is no reason to complain."""
    with contextlib.suppress(TilewrightError):
        linked.close()
