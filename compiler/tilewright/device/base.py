"""What a device is to us: a place that takes a program with files and gives files back.

In: an executable for Linux with the shared libraries it needs. Out: an `Installed` program that runs as
often as wanted, each time on other files.
Invariant: nothing of ours stays on a device; a device that cannot be used raises `TargetError` or
`ToolchainError` with the reason, and a program that fails is an answer, not an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tilewright.errors import TargetError

TIMEOUT_SECONDS = 600.0
#: Exit codes of programs that a signal ended: 128 + its number, as shells write them.
SIGNAL_BASE = 128
_ILLEGAL_INSTRUCTION = SIGNAL_BASE + 4


@dataclass(frozen=True, slots=True)
class Finished:
    """A run that came to an end: exit `code`, what it printed, the files that were asked for and made."""

    code: int
    stdout: str
    stderr: str
    files: Mapping[str, bytes]

    def reason(self) -> str:
        """Why a run with an exit code other than 0 failed, for people."""
        said = next((s for s in reversed(self.stderr.strip().splitlines()) if s.strip()), "")
        if self.code == _ILLEGAL_INSTRUCTION:
            return "it met an instruction that the CPU lacks: name the target that fits the device"
        return f"it stopped with code {self.code}" + (f" ({said})" if said else "")


class Installed(Protocol):
    """A program that lies on a device."""

    def run(
        self,
        arguments: Sequence[str],
        files: Mapping[str, bytes],
        fetch: Sequence[str],
        timeout: float = TIMEOUT_SECONDS,
    ) -> Finished:
        """Put `files` beside the program, run it there, return those of `fetch` that exist afterwards.

        Raises `TargetError` if the device does not answer or the program outlasts `timeout` seconds.
        """
        ...

    def close(self) -> None:
        """Remove the program from the device."""
        ...


class Device(Protocol):
    """Somewhere that runs Linux programs; `name` is what one types, `emulated` says whose time counts."""

    @property
    def name(self) -> str: ...

    @property
    def emulated(self) -> bool: ...

    def describe(self) -> str:
        """One line about the device, for people."""
        ...

    def install(self, program: Path, libraries: Sequence[Path] = ()) -> Installed:
        """Copy a program and its own libraries to the device."""
        ...


def overtime(name: str, seconds: float) -> TargetError:
    """The error for a program that does not come to an end."""
    return TargetError(f"the program on {name} did not finish within {seconds:g} s")
