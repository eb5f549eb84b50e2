"""Compiled code on a Linux device: many units in one program, run, checked and timed.

In: `Unit`s for one target and their inputs. Out: a `LinuxRun` of each.
Invariant: a unit that crashes, or that the CPU cannot run, is found and named; the others run without it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tilewright.device import count
from tilewright.device.base import TIMEOUT_SECONDS, Device, Finished
from tilewright.device.choose import device_for
from tilewright.device.link import Unit, link, unit_of
from tilewright.device.local import LocalDevice
from tilewright.errors import TargetError
from tilewright.graph.ir import Array
from tilewright.program import Program
from tilewright.runtime.model import Spec


@dataclass(frozen=True, slots=True)
class LinuxRun:
    """What became of one unit.

    `error` says why it failed, then nothing else holds. `checksum` is FNV-1a over all outputs, `least`
    and `median` are seconds of a run over the rounds (0 without), `instructions` those of one run, None
    where they were not counted.
    """

    outputs: list[Array] = field(default_factory=list[Array])
    checksum: int = 0
    least: float = 0.0
    median: float = 0.0
    instructions: int | None = None
    error: str = ""


class LinuxProgram:
    """Units linked into one program that lies on a device; `run` it as often as wanted, then `close`. Each runs on
    `threads` threads.

    Raises `ToolchainError` without a compiler for `triple`, `TargetError` if the device refuses.
    """

    def __init__(
        self, units: Sequence[Unit], triple: str, device: Device, threads: int = 1
    ) -> None:
        self.units = tuple(units)
        self.device, self.threads = device, threads
        with tempfile.TemporaryDirectory(prefix="tilewright-link-") as folder:
            program, libraries = link(units, triple, Path(folder), threads > 1)
            self._installed = device.install(program, libraries)

    def __enter__(self) -> LinuxProgram:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the program from the device."""
        self._installed.close()

    def run(
        self,
        inputs: Sequence[Sequence[Array]],
        rounds: int = 0,
        *,
        outputs: bool = True,
        instructions: bool = False,
        timeout: float = TIMEOUT_SECONDS,
    ) -> list[LinuxRun]:
        """Run every unit once on `inputs[unit.data]`, and `rounds` turns more for its time.

        `instructions` has meaning only for a program installed by `counting`. Raises `TargetError` if
        the device fails; what a unit does wrong is in its `LinuxRun`.
        """
        files = {f"in_{d}": _raw(arrays) for d, arrays in enumerate(inputs)}
        names = [f"out_{k}" for k in range(len(self.units))] if outputs else []
        wanted = [*names, count.COUNTS] if instructions else names
        failed: dict[int, str] = {}
        while True:
            arguments = [rounds, int(outputs), int(instructions), self.threads, *failed]
            done = self._installed.run([*map(str, arguments)], files, wanted, timeout)
            if not done.code:
                return self._results(done, failed, instructions)
            culprit = _begun(done)
            if culprit is None or culprit in failed or culprit >= len(self.units):
                raise TargetError(f"the program on {self.device.name} failed: {done.reason()}")
            failed[culprit] = done.reason()

    def _results(self, done: Finished, failed: Mapping[int, str], counted: bool) -> list[LinuxRun]:
        said = {tuple(line.split()[:2]): line.split()[2:] for line in done.stdout.splitlines()}
        noted = iter(count.differences(done.files.get(count.COUNTS, b"")) if counted else ())
        out: list[LinuxRun] = []
        for k, unit in enumerate(self.units):
            if k in failed:
                out.append(LinuxRun(error=failed[k]))
            elif ("unsupported", str(k)) in said:
                need = ", ".join(unit.spec.features)
                out.append(LinuxRun(error=f"the CPU of {self.device.name} lacks some of {need}"))
            else:
                data = done.files.get(f"out_{k}", b"")
                out.append(_one(unit.spec, k, said, data, next(noted, None)))
        return out


def run_on_linux(
    program: Program, inputs: Sequence[Array], device: str | None = None, rounds: int = 0
) -> LinuxRun:
    """Run one program once, and `rounds` turns more for its time; see `run_many`."""
    return run_many([program], [inputs], device, rounds)[0]


def run_many(
    programs: Sequence[Program],
    inputs: Sequence[Sequence[Array]],
    device: str | None = None,
    rounds: int = 0,
    timeout: float = TIMEOUT_SECONDS,
) -> list[LinuxRun]:
    """Run programs for one target (of different names), linked into one executable.

    Raises `ToolchainError` without a compiler for the target, `TargetError` if the device cannot be
    used or one of the programs fails on it.
    """
    target = programs[0].target
    units = [unit_of(p, k) for k, p in enumerate(programs)]
    with LinuxProgram(units, target.triple, device_for(target, device)) as linked:
        runs = linked.run(inputs, rounds, timeout=timeout)
    for program, run in zip(programs, runs, strict=True):
        require(program.name, linked.device, run)
    return runs


def require(name: str, device: Device, run: LinuxRun) -> LinuxRun:
    """The run, or `TargetError` with the reason why there is none."""
    if run.error:
        raise TargetError(f"{name} failed on {device.name}: {run.error}")
    return run


def counting(device: Device) -> Device | None:
    """The same device with instructions counted; None where they cannot be."""
    if not isinstance(device, LocalDevice) or not device.emulated:
        return None
    options = count.counting_options(device.command)
    return None if options is None else LocalDevice([*device.command, *options], device.system)


def _raw(arrays: Sequence[Array]) -> bytes:
    return b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)


def _begun(done: Finished) -> int | None:
    """The last unit that began to run."""
    begun = [s.split() for s in done.stdout.splitlines() if s.startswith("begin ")]
    return int(begun[-1][1]) if begun and len(begun[-1]) == 2 and begun[-1][1].isdecimal() else None


def _one(
    spec: Spec,
    k: int,
    said: Mapping[tuple[str, ...], Sequence[str]],
    data: bytes,
    instructions: int | None,
) -> LinuxRun:
    """One unit's run from what the driver printed and wrote."""
    try:
        status, checksum = said["ran", str(k)]
        least, median = said.get(("time", str(k)), ("0", "0"))
        code, total = int(status), int(checksum, 16)
        seconds = int(least) * 1e-9, int(median) * 1e-9
    except (KeyError, ValueError):
        return LinuxRun(error="its report is cut off")
    if code:
        return LinuxRun(error=str(spec.failed(code)))
    outputs: list[Array] = []
    at = 0
    for t in spec.outputs if data else ():
        if at + t.nbytes > len(data):
            return LinuxRun(error="its outputs are cut off")
        flat = np.frombuffer(data, np.dtype(t.dtype), t.elements, at)
        outputs.append(flat.reshape(t.shape).copy())
        at += t.nbytes
    return LinuxRun(outputs, total, *seconds, instructions)
