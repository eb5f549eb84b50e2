"""Read ELF files: sections, segments, symbols, dynamic entries.

In: the bytes of an object or a library, from anywhere. Out: `Elf`.
Invariant: a file that is cut off or lies about its offsets raises `ArtifactError`, nothing else.
Standard library only.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tilewright.errors import ArtifactError

SHT_SYMTAB, SHT_STRTAB, SHT_DYNAMIC, SHT_NOBITS, SHT_DYNSYM = 2, 3, 6, 8, 11
SHF_WRITE, SHF_ALLOC, SHF_EXECINSTR = 1, 2, 4
PT_LOAD, PT_GNU_STACK, PT_GNU_RELRO = 1, 0x6474E551, 0x6474E552
PF_X, PF_W = 1, 2
DT_NEEDED, DT_SONAME, DT_RPATH, DT_TEXTREL, DT_RUNPATH, DT_FLAGS = 1, 14, 15, 22, 29, 30
#: Entries of the dynamic section that name code which runs when the library is loaded or closed.
DT_STARTUP = {12: "init", 13: "fini", 25: "init_array", 26: "fini_array", 32: "preinit_array"}
DF_TEXTREL = 4
STT_IFUNC = 10
ET_REL, ET_DYN = 1, 3
#: e_machine by the start of a triple.
MACHINES = {
    "x86_64": 62, "aarch64": 183, "arm": 40, "armv7": 40, "armv7a": 40, "thumbv7em": 40,
    "thumbv8.1m.main": 40, "i386": 3, "i686": 3, "riscv32": 243, "riscv64": 243,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Section:
    """A section; `link` is the number of the section it refers to."""

    name: str
    kind: int
    flags: int
    offset: int
    size: int
    link: int


@dataclass(frozen=True, slots=True)
class Segment:
    """A program header."""

    kind: int
    flags: int


@dataclass(frozen=True, slots=True)
class Symbol:
    """A symbol; `section` 0 means undefined, `size` is that of a function or object in bytes."""

    name: str
    binding: int
    visibility: int
    section: int
    size: int = 0
    kind: int = 0

    @property
    def is_local(self) -> bool:
        return self.binding == 0

    @property
    def is_weak(self) -> bool:
        return self.binding == 2

    @property
    def is_exported(self) -> bool:
        """Defined, and visible outside a library made of the object."""
        return self.section != 0 and not self.is_local and self.visibility in (0, 3)


class Elf:
    """A parsed file; `what` names it in errors."""

    def __init__(self, data: bytes, what: str) -> None:
        self.data = data
        self.what = what
        if (
            data[:4] != b"\x7fELF"
            or len(data) < 20
            or data[4] not in (1, 2)
            or data[5] not in (1, 2)
        ):
            raise ArtifactError(f"{what} is not an ELF file")
        self.wide = data[4] == 2
        self._order = "<" if data[5] == 1 else ">"
        try:
            self.kind, self.machine = self._unpack("HH", 16)
            self.sections = self._read_sections()
            self.segments = self._read_segments()
        except (struct.error, ValueError, IndexError, OverflowError) as err:
            raise ArtifactError(f"{what} is damaged: {err}") from None

    def symbols(self, kind: int = SHT_SYMTAB) -> list[Symbol]:
        """Named symbols of the symbol tables of `kind` (SHT_SYMTAB or SHT_DYNSYM)."""
        try:
            return [
                s for table in self.sections if table.kind == kind for s in self._symbols(table)
            ]
        except (struct.error, ValueError, IndexError, OverflowError) as err:
            raise ArtifactError(f"{self.what} is damaged: {err}") from None

    def dynamic(self) -> list[tuple[int, int]]:
        """(tag, value) of every dynamic entry."""
        form = "qQ" if self.wide else "iI"
        step = struct.calcsize(self._order + form)
        entries: list[tuple[int, int]] = []
        for s in self.sections:
            if s.kind == SHT_DYNAMIC:
                entries += struct.iter_unpack(self._order + form, self._bytes(s, step))
        return [e for e in entries if e[0] != 0]

    def dynamic_string(self, offset: int) -> str:
        """A string of the dynamic string table."""
        for s in self.sections:
            if s.kind == SHT_DYNAMIC and s.link < len(self.sections):
                return self._string(self.sections[s.link], offset)
        raise ArtifactError(f"{self.what} has no dynamic section")

    # ---- reading

    def _unpack(self, form: str, offset: int) -> tuple[Any, ...]:
        return struct.unpack_from(self._order + form, self.data, offset)

    def _bytes(self, s: Section, multiple: int) -> bytes:
        if s.offset + s.size > len(self.data):
            raise ArtifactError(f"{self.what} is damaged: section {s.name} lies outside the file")
        return self.data[s.offset : s.offset + s.size - s.size % multiple]

    def _read_sections(self) -> list[Section]:
        (table,) = self._unpack("Q" if self.wide else "I", 0x28 if self.wide else 0x20)
        entry, count, names = self._unpack("HHH", 0x3A if self.wide else 0x2E)
        if not table or not count:
            return []
        form = "IIQQQQI" if self.wide else "IIIIIII"
        raw = [self._unpack(form, table + i * entry) for i in range(count)]
        strings = Section("", 0, 0, raw[names][4], raw[names][5], 0)
        return [Section(self._string(strings, h[0]), h[1], h[2], h[4], h[5], h[6]) for h in raw]

    def _read_segments(self) -> list[Segment]:
        (table,) = self._unpack("Q" if self.wide else "I", 0x20 if self.wide else 0x1C)
        entry, count = self._unpack("HH", 0x36 if self.wide else 0x2A)
        flags_at = 4 if self.wide else 24
        return [
            Segment(self._unpack("I", at)[0], self._unpack("I", at + flags_at)[0])
            for at in range(table, table + entry * count, entry or 1)
        ]

    def _symbols(self, table: Section) -> Iterator[Symbol]:
        form = self._order + ("IBBHQQ" if self.wide else "IIIBBH")
        strings = self.sections[table.link]
        for row in struct.iter_unpack(form, self._bytes(table, struct.calcsize(form))):
            info, other, section = row[1:4] if self.wide else row[3:6]
            size = row[5] if self.wide else row[2]
            name = self._string(strings, row[0])
            if name:
                yield Symbol(name, info >> 4, other & 3, section, size, info & 15)

    def _string(self, table: Section, offset: int) -> str:
        start, end = table.offset + offset, table.offset + table.size
        if end > len(self.data) or start > end:
            raise ArtifactError(f"{self.what} is damaged: a name lies outside the file")
        if start == end:
            return ""
        return self.data[start : self.data.index(b"\0", start, end)].decode("utf-8", "replace")
