"""Count instructions under QEMU's emulation of a Linux program, by a plugin of ours.

In: the command of an emulator. Out: its options that load the plugin, the counts it noted.
Invariant: a count is exact and the same in every run; where QEMU takes no plugins (or there is no C
compiler for this machine), the answer is None and callers estimate instead.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path

from tilewright.artifact.toolchain import find_compiler
from tilewright.errors import ToolchainError

#: File in the program's directory that the plugin writes.
COUNTS = "counts"
#: QEMU 7 and 8 take version 1 of the interface, later ones the next.
_VERSIONS = range(1, 7)


def counting_options(emulator: Sequence[str]) -> list[str] | None:
    """Options of `emulator` that make it note counts in `COUNTS`; None where it cannot."""
    plugin = _plugin(emulator[0])
    return None if plugin is None else ["-plugin", f"file={plugin},out={COUNTS}"]


def differences(noted: bytes) -> list[int]:
    """Instructions between the first mark and the second, the third and the fourth, and so on."""
    marks = [int(s) for s in noted.split()]
    return [b - a for a, b in zip(marks[::2], marks[1::2], strict=False)]


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="tilewright-count-")


@cache
def _plugin(emulator: str) -> Path | None:
    """The plugin for `emulator`, compiled once per process for the version that it takes."""
    if "qemu" not in Path(emulator).name:
        return None
    compiler = find_compiler()
    if compiler is None:
        return None
    folder = Path(_folder().name)
    source = resources.files("tilewright.device") / "linux" / "count.c"
    (folder / "count.c").write_bytes(source.read_bytes())
    for version in _VERSIONS:
        made = f"count_{version}.so"
        flags = ["-std=c11", "-O2", "-fPIC", "-shared", f"-DPLUGIN_VERSION={version}"]
        try:
            compiler.run([*flags, "count.c", "-o", made], folder)
        except ToolchainError:
            return None
        if _loads(emulator, folder / made):
            return folder / made
    return None


def _loads(emulator: str, plugin: Path) -> bool:
    """Whether the emulator takes the plugin: it complains about that before it looks at the program."""
    command = [emulator, "-plugin", f"file={plugin},out=/dev/null", "/dev/null"]
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return b"plugin" not in done.stderr
