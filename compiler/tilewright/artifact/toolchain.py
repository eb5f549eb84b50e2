"""Find and run a C compiler.

In: the environment and a target triple. Out: a `Compiler` that makes objects and shared libraries.
Invariant: what it makes depends on the inputs and on the compiler's version, not on path, time or locale.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tilewright.errors import ToolchainError
from tilewright.runtime.cpu import architecture

#: Oldest glibc that libraries linked by zig run on (Debian 10, Ubuntu 20.04, RHEL 8).
ZIG_GLIBC = "2.28"
#: A first use of zig builds its C library stubs, which takes up to a minute.
TIMEOUT_SECONDS = 600


@dataclass(frozen=True, slots=True)
class Compiler:
    """A C compiler command that produces code for one architecture."""

    command: tuple[str, ...]
    trailing: tuple[str, ...] = ()
    """Arguments that must come last (libraries)."""

    @property
    def name(self) -> str:
        """The command as one would type it."""
        return shlex.join(self.command)

    @property
    def is_zig(self) -> bool:
        """Whether this is clang with the linker and the C libraries of zig."""
        return "ziglang" in self.command or Path(self.command[0]).name.startswith("zig")

    def run(self, arguments: Sequence[str], cwd: Path) -> str:
        """Run the compiler in `cwd` and return what it prints; `ToolchainError` has its first error."""
        environment = {**os.environ, "SOURCE_DATE_EPOCH": "0", "LC_ALL": "C"}
        try:
            done = subprocess.run(
                [*self.command, *arguments, *self.trailing], cwd=cwd, env=environment, capture_output=True,
                stdin=subprocess.DEVNULL, check=False, timeout=TIMEOUT_SECONDS,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as err:
            raise ToolchainError(f"`{self.name}` failed: {err}") from None
        if done.returncode:
            text = done.stderr.decode("utf-8", "replace").splitlines()
            lines = [s for s in text if "undefined" in s]
            lines += [s for s in text if "error" in s.lower()] or text or ["no message"]
            raise ToolchainError(f"`{self.name}` failed: {lines[0].strip()}")
        return done.stdout.decode("utf-8", "replace")

    def version(self) -> str:
        """First line of what `--version` prints, after `zig ` where clang is zig's."""
        line = (self.run(["--version"], Path.cwd()).splitlines() or ["unknown"])[0]
        return f"zig {line}" if self.is_zig else line


def find_compiler(triple: str | None = None) -> Compiler | None:
    """The compiler for `triple` (default: for this machine), or None.

    $CC if set, then cc, gcc and clang on the PATH (the cross gcc if the triple is not this machine's),
    then the `ziglang` package. Raises `ToolchainError` if $CC cannot be used.
    """
    given = os.environ.get("CC", "").strip()
    if given:
        return _explicit(given, triple)
    return next(_found(triple), None)


def system_root(triple: str) -> Path | None:
    """The directory below which the C library for another machine lies (`lib/libc.so.6`), if a cross
    compiler brought one: what an emulator needs to run programs that are not linked statically."""
    compiler = next((Compiler((n,)) for n in _candidates(triple) if shutil.which(n)), None)
    if compiler is None:
        return None
    library = Path(compiler.run(["-print-file-name=libc.so.6"], Path.cwd()).strip())
    return library.resolve().parent.parent if library.is_absolute() else None


def missing(triple: str, name: str) -> str:
    """What to tell a user who got no shared library of the model `name`."""
    if not is_linux(triple):
        return f"{triple} has no shared libraries: link {name}.o or {name}.a into the firmware"
    looked = ", ".join(_candidates(triple))
    return (
        f"no C compiler found (looked for $CC, {looked} and ziglang): {name}.o, {name}.a (without the "
        f"thread pool) and the header were written; install gcc or `pip install 'tilewright[cross]'` "
        f"to get {name}.so"
    )


def is_linux(triple: str) -> bool:
    """Whether programs for `triple` run on Linux."""
    return "linux" in triple.split("-")


def _found(triple: str | None) -> Iterator[Compiler]:
    for name in _candidates(triple):
        if shutil.which(name):
            yield Compiler((name,))
    if importlib.util.find_spec("ziglang") is not None:
        command = (sys.executable, "-m", "ziglang", "cc")
        yield Compiler(command if triple is None else (*command, "-target", _zig_target(triple)))


def _candidates(triple: str | None) -> tuple[str, ...]:
    if triple is None or (_arch(triple) == architecture() and sys.platform == "linux"):
        return ("cc", "gcc", "clang")
    return (f"{_arch(triple)}-linux-{_environment(triple)}-gcc",)


def _explicit(given: str, triple: str | None) -> Compiler:
    """The compiler that the user asked for."""
    try:
        compiler = Compiler(tuple(shlex.split(given)))
    except ValueError as err:
        raise ToolchainError(f"CC={given!r} is not a command: {err}") from None
    if not shutil.which(compiler.command[0]):
        raise ToolchainError(f"CC={given!r} is not on the PATH: correct it or unset it")
    if triple is not None:
        makes = compiler.run(["-dumpmachine"], Path.cwd()).strip()
        if _arch(makes) != _arch(triple):
            raise ToolchainError(
                f"CC={given!r} compiles for {makes}, the model is for {triple}: unset CC"
            )
    return compiler


def _arch(triple: str) -> str:
    return architecture(triple.partition("-")[0])


def _environment(triple: str) -> str:
    last = triple.rpartition("-")[2]
    return last if last.startswith(("gnu", "musl")) else "gnu"


def _zig_target(triple: str) -> str:
    environment = _environment(triple)
    glibc = f".{ZIG_GLIBC}" if environment.startswith("gnu") else ""
    return f"{_arch(triple)}-linux-{environment}{glibc}"


# ---------------------------------------------------------------- bare metal

_BARE_FLAGS = (
    "-std=c11", "-O2", "-g0", "-ffreestanding", "-fno-builtin", "-mthumb", "-mfloat-abi=hard",
    "-nostartfiles", "-Wl,--gc-sections",
)  # fmt: skip
_BARE_GCC = "arm-none-eabi-gcc"


def find_bare_compiler(cpu: str) -> Compiler:
    """A compiler and linker for programs without an operating system on a Cortex-M `cpu`.

    arm-none-eabi-gcc if it is on the PATH, else the `ziglang` package; `ToolchainError` without either.
    """
    if shutil.which(_BARE_GCC):
        flags = ("-nostdlib", "-fno-tree-loop-distribute-patterns", f"-mcpu={cpu}", *_BARE_FLAGS)
        return Compiler((_BARE_GCC, *flags), ("-lgcc",))
    if importlib.util.find_spec("ziglang") is not None:
        zig = (sys.executable, "-m", "ziglang", "cc", "-target", "thumb-freestanding-eabihf")
        return Compiler((*zig, f"-mcpu={cpu.replace('-', '_')}", *_BARE_FLAGS))
    raise ToolchainError(
        f"no linker for bare-metal Arm found (looked for {_BARE_GCC} and ziglang): apt-get install "
        "gcc-arm-none-eabi or `pip install 'tilewright[cross]'`"
    )
