"""Programs in processes of this machine: as they are, or through an emulator's command.

In: executables. Out: what they print and write.
Invariant: a program runs in a directory of its own, which goes when the program is closed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tilewright.device.base import SIGNAL_BASE, TIMEOUT_SECONDS, Finished, overtime
from tilewright.errors import TargetError, ToolchainError


class LocalDevice:
    """This machine; with a `command` (an emulator and its options), the one that it stands for.

    `system` is the directory with the C library of the emulated machine, for programs that are not
    linked statically. Raises `ToolchainError` if the emulator is not installed.
    """

    def __init__(self, command: Sequence[str] = (), system: Path | None = None) -> None:
        if command and not shutil.which(command[0]):
            raise ToolchainError(
                f"`{command[0]}` is not installed: apt-get install qemu-user, or name a machine that has "
                "the CPU with --device ssh://user@host"
            )
        self.command = tuple(command)
        self.system = system

    @property
    def name(self) -> str:
        return " ".join(self.command) or "this machine"

    @property
    def emulated(self) -> bool:
        return bool(self.command)

    def describe(self) -> str:
        """The emulator's command, or `this machine`."""
        return f"`{self.name}` (emulated)" if self.command else self.name

    def install(self, program: Path, libraries: Sequence[Path] = ()) -> LocalProgram:
        """Copy a program and its libraries into a directory of their own."""
        return LocalProgram(self, program, libraries)


class LocalProgram:
    """See `base.Installed`."""

    def __init__(self, device: LocalDevice, program: Path, libraries: Sequence[Path]) -> None:
        self._device = device
        self._folder = tempfile.TemporaryDirectory(prefix="tilewright-device-")
        self.path = Path(self._folder.name)
        self._program = self.path / program.name
        for file in (program, *libraries):
            shutil.copy(file, self.path / file.name)
        self._program.chmod(0o755)

    def run(
        self,
        arguments: Sequence[str],
        files: Mapping[str, bytes],
        fetch: Sequence[str],
        timeout: float = TIMEOUT_SECONDS,
    ) -> Finished:
        for name in fetch:
            (self.path / name).unlink(missing_ok=True)
        for name, data in files.items():
            (self.path / name).write_bytes(data)
        environment = dict(os.environ)
        if self._device.system is not None:
            environment["QEMU_LD_PREFIX"] = str(self._device.system)
        try:
            done = subprocess.run(
                [*self._device.command, str(self._program), *arguments], cwd=self.path, env=environment,
                capture_output=True, stdin=subprocess.DEVNULL, check=False, timeout=timeout,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise overtime(self._device.name, timeout) from None
        except OSError as err:
            raise TargetError(f"{self._device.name} cannot run the program: {err}") from None
        made = {n: (self.path / n).read_bytes() for n in fetch if (self.path / n).is_file()}
        code = done.returncode if done.returncode >= 0 else SIGNAL_BASE - done.returncode
        out, err_ = (s.decode("utf-8", "replace") for s in (done.stdout, done.stderr))
        return Finished(code, out, err_, made)

    def close(self) -> None:
        self._folder.cleanup()
