"""Static libraries (`ar` archives of System V) without an `ar`.

In: members as (file name, bytes). Out: archive bytes with a symbol index, which linkers require.
Invariant: no times, owners or paths inside: the same members give the same bytes. Standard library only.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from tilewright.artifact.elf import Elf
from tilewright.errors import ArtifactError

_MAGIC = b"!<arch>\n"
_HEADER = 60


def pack(members: Sequence[tuple[str, bytes]]) -> bytes:
    """The archive of `members`, which are ELF objects; `ArtifactError` if one is not or if they are
    larger than the format's 4 GiB together."""
    symbols: list[tuple[str, int]] = []
    for i, (name, data) in enumerate(members):
        symbols += [(s.name, i) for s in Elf(data, name).symbols() if s.section and not s.is_local]
    strings = b"".join(s.encode() + b"\0" for s, _ in symbols)
    table, names = _long_names([name for name, _ in members])
    at = len(_MAGIC) + _HEADER + _even(4 + 4 * len(symbols) + len(strings))
    at += _HEADER + _even(len(table)) if table else 0
    offsets: list[int] = []
    for _, data in members:
        offsets.append(at)
        at += _HEADER + _even(len(data))
    if at >= 1 << 32:
        raise ArtifactError("the static library would exceed 4 GiB: link the object file instead")
    index = struct.pack(f">I{len(symbols)}I", len(symbols), *(offsets[i] for _, i in symbols))
    parts = [_MAGIC, *_member("/", index + strings)]
    if table:
        parts += _member("//", table)
    for name, (_, data) in zip(names, members, strict=True):
        parts += _member(name, data)
    return b"".join(parts)


def unpack(data: bytes, what: str) -> list[tuple[str, bytes]]:
    """The members of an archive, without the index; `ArtifactError` if it is damaged."""
    if data[:8] != _MAGIC:
        raise ArtifactError(f"{what} is not a static library")
    table, at = b"", len(_MAGIC)
    out: list[tuple[str, bytes]] = []
    while at < len(data):
        header = data[at : at + _HEADER]
        try:
            name, size = header[:16].decode("ascii").rstrip(), int(header[48:58])
        except ValueError:
            raise ArtifactError(f"{what} is damaged: no member header at byte {at}") from None
        body = data[at + _HEADER : at + _HEADER + size]
        if header[58:] != b"`\n" or size < 0 or len(body) != size:
            raise ArtifactError(f"{what} is damaged: it is cut off in the member at byte {at}")
        at += _HEADER + _even(size)
        if name == "//":
            table = body
        elif name != "/":
            out.append((_name(name, table), body))
    return out


def _name(field: str, table: bytes) -> str:
    if field[:1] == "/" and field[1:].isdigit():
        return table[int(field[1:]) :].partition(b"/\n")[0].decode("utf-8", "replace")
    return field.removesuffix("/")


def _even(n: int) -> int:
    return n + (n & 1)


def _long_names(names: Sequence[str]) -> tuple[bytes, list[str]]:
    """Names over 15 bytes live in a table of their own; the header then holds their offset in it."""
    table, fields = b"", []
    for name in names:
        if len(name.encode()) <= 15:
            fields.append(f"{name}/")
        else:
            fields.append(f"/{len(table)}")
            table += name.encode() + b"/\n"
    return table, fields


def _member(name: str, data: bytes) -> list[bytes]:
    header = f"{name:<16}{0:<12}{0:<6}{0:<6}{'644':<8}{len(data):<10}`\n".encode()
    return [header, data, b"\n" if len(data) & 1 else b""]
