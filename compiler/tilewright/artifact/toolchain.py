"""Find and run a C compiler, and pack static libraries without one.

In: the environment. Out: object files, shared libraries, archives.
Invariant: the same inputs give the same bytes, wherever and whenever.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import struct
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tilewright.errors import ToolchainError

MISSING = (
    "no C compiler found (looked for $CC, cc, gcc, clang and ziglang): the object, the static library "
    "and the header were written; install gcc or `pip install 'tilewright[cross]'` for the shared library"
)


@dataclass(frozen=True, slots=True)
class Compiler:
    """A C compiler command."""

    command: tuple[str, ...]

    @property
    def name(self) -> str:
        return " ".join(self.command)

    def run(self, arguments: Sequence[str], cwd: Path) -> None:
        """Run the compiler; raises `ToolchainError` with its first error line."""
        env = {**os.environ, "SOURCE_DATE_EPOCH": "0", "LC_ALL": "C"}
        done = subprocess.run(
            [*self.command, *arguments], cwd=cwd, capture_output=True, text=True, env=env, check=False
        )
        if done.returncode:
            lines = [s for s in done.stderr.splitlines() if "error" in s.lower()] or done.stderr.splitlines()
            raise ToolchainError(f"{self.name} failed: {lines[0] if lines else 'no message'}")


def find_compiler() -> Compiler | None:
    """$CC, then cc, gcc, clang on the PATH, then the `ziglang` package; None if there is none."""
    given = os.environ.get("CC")
    if given:
        command = shlex.split(given)
        if shutil.which(command[0]):
            return Compiler(tuple(command))
    for name in ("cc", "gcc", "clang"):
        if shutil.which(name):
            return Compiler((name,))
    if importlib.util.find_spec("ziglang") is not None:
        return Compiler((sys.executable, "-m", "ziglang", "cc"))
    return None


# ---------------------------------------------------------------- static libraries


def write_archive(path: Path, members: Sequence[tuple[str, bytes]]) -> None:
    """A System V `ar` archive with a symbol index; no times, owners or paths inside."""
    table, names = _long_names([n for n, _ in members])
    symbols = [(s, i) for i, (_, data) in enumerate(members) for s in defined_symbols(data)]
    strings = b"".join(s.encode() + b"\0" for s, _ in symbols)
    index_size = 4 + 4 * len(symbols) + len(strings)
    at = 8 + 60 + _even(index_size) + (60 + _even(len(table)) if table else 0)
    offsets: list[int] = []
    for _, data in members:
        offsets.append(at)
        at += 60 + _even(len(data))
    index = struct.pack(">I", len(symbols))
    index += b"".join(struct.pack(">I", offsets[i]) for _, i in symbols) + strings
    with path.open("wb") as f:
        f.write(b"!<arch>\n")
        f.write(_member("/", index))
        if table:
            f.write(_member("//", table))
        for name, (_, data) in zip(names, members, strict=True):
            f.write(_member(name, data))


def _even(n: int) -> int:
    return n + (n & 1)


def _long_names(names: Sequence[str]) -> tuple[bytes, list[str]]:
    """Names over 15 characters live in a table of their own."""
    table, out = b"", []
    for n in names:
        if len(n) <= 15:
            out.append(f"{n}/")
        else:
            out.append(f"/{len(table)}")
            table += n.encode() + b"/\n"
    return table, out


def _member(name: str, data: bytes) -> bytes:
    head = f"{name:<16}{0:<12}{0:<6}{0:<6}{'644':<8}{len(data):<10}`\n".encode()
    return head + data + (b"\n" if len(data) & 1 else b"")


def defined_symbols(elf: bytes) -> list[str]:
    """Global symbols that an ELF64 little-endian object defines."""
    return [name for name, bind, section in elf_symbols(elf) if bind and section != 0]


def elf_symbols(elf: bytes) -> list[tuple[str, int, int]]:
    """(name, binding, section index) of every symbol; section 0 is undefined."""
    if elf[:6] != b"\x7fELF\x02\x01":
        return []
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    entry, count = struct.unpack_from("<HH", elf, 0x3A)
    headers = [struct.unpack_from("<IIQQQQIIQQ", elf, table + i * entry) for i in range(count)]
    out: list[tuple[str, int, int]] = []
    for h in headers:
        if h[1] != 2:  # SHT_SYMTAB
            continue
        strings = headers[h[6]][4]
        for at in range(h[4], h[4] + h[5], 24):
            name_at, info, _, section = struct.unpack_from("<IBBH", elf, at)
            start = strings + name_at
            name = elf[start : elf.index(b"\0", start)].decode()
            if name:
                out.append((name, info >> 4, section))
    return out
