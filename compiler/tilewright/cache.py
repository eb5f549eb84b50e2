"""Files of earlier compilations on disk, found by what went into them.

In: a key (a hash of everything that decides the result). Out: the files that were stored under it, or None.
Invariant: what comes out is to the byte what went in. An entry is one file that appears all at once
(written under another name, then renamed), and every read checks its SHA-256: any number of processes may
read and write, and an entry that is cut short or altered is dropped, never used. All entries together stay
below a limit, those used longest ago go first. Nothing here raises: a cache that cannot be read or
written is an empty one.

An entry is `MAGIC`, the hash of the rest, the length of a JSON header, the header, then blobs. Files that
hold the same long run of bytes (the weights, in the object and both libraries) share one blob of it.
Standard library only.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: The folder of the cache, or one of `OFF`.
FOLDER_VARIABLE = "TILEWRIGHT_CACHE"
#: Bytes that all entries may take: 500M, 4G or plain bytes.
LIMIT_VARIABLE = "TILEWRIGHT_CACHE_SIZE"
OFF = ("off", "0", "no", "none")
DEFAULT_LIMIT = 2 << 30
MAGIC = b"tilewright cache 1\n"
SUFFIX = ".entry"
#: Temporary files older than this many seconds belong to nobody who is still writing.
_ABANDONED = 3600.0
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}

Piece = memoryview | bytes


@dataclass(slots=True)
class Entry:
    """Files as pieces to be written one after the other, and `facts` that were stored with them."""

    files: dict[str, list[Piece]]
    facts: dict[str, Any] = field(default_factory=dict[str, Any])


def default_folder() -> Path | None:
    """Where entries lie, by the environment; None if the cache is turned off."""
    given = os.environ.get(FOLDER_VARIABLE, "").strip()
    if given.lower() in OFF:
        return None
    if given:
        return Path(given).expanduser()
    root = os.environ.get("XDG_CACHE_HOME", "").strip()
    with contextlib.suppress(RuntimeError):  # a user without a home
        return (Path(root) if root else Path.home() / ".cache") / "tilewright" / "compiled"
    return None


def default_limit() -> int:
    """Bytes that the cache may take, by the environment; what cannot be read counts as not given."""
    match = re.fullmatch(r"(\d+)([KMG]?)B?", os.environ.get(LIMIT_VARIABLE, "").strip().upper())
    return int(match[1]) * _UNITS[match[2]] if match else DEFAULT_LIMIT


class Cache:
    """The entries in one folder; None: nothing is found and nothing is kept."""

    def __init__(self, folder: Path | None, limit: int = DEFAULT_LIMIT) -> None:
        self.folder = folder
        self.limit = limit

    @staticmethod
    def configured() -> Cache:
        """The cache as the environment says."""
        return Cache(default_folder(), default_limit())

    def get(self, key: str) -> Entry | None:
        """What was stored under `key`. One that is damaged is deleted."""
        if self.folder is None:
            return None
        path = self.folder / f"{key}{SUFFIX}"
        try:
            with path.open("rb") as f:
                data = memoryview(mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ))
        except (OSError, ValueError):  # not there, or empty
            return None
        entry = _unpacked(data)
        with contextlib.suppress(OSError):
            if entry is None:
                path.unlink()
            else:
                os.utime(path)  # used now
        return entry

    def put(
        self, key: str, files: Mapping[str, bytes], facts: Mapping[str, Any], shared: bytes = b""
    ) -> bool:
        """Store `files` under `key`; whether that was done. Of `shared` (bytes found in several of them)
        one copy is kept. `facts` must be JSON."""
        if self.folder is None:
            return False
        head, blobs = _packed(files, facts, shared)
        size = sum(map(len, blobs)) + len(head)
        if size > self.limit // 2:  # it would push everything else out
            return False
        digest = hashlib.sha256(head)
        for blob in blobs:
            digest.update(blob)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self.folder, prefix="writing-")
            try:
                with os.fdopen(handle, "wb") as f:
                    f.writelines((MAGIC, digest.digest(), head, *blobs))
                Path(name).replace(self.folder / f"{key}{SUFFIX}")
            except OSError:
                Path(name).unlink(missing_ok=True)
                raise
            self.trim()
        except OSError:
            return False
        return True

    def drop(self, key: str) -> None:
        """Forget an entry."""
        if self.folder is not None:
            with contextlib.suppress(OSError):
                (self.folder / f"{key}{SUFFIX}").unlink()

    def trim(self) -> None:
        """Delete the entries that were used longest ago until the rest is within the limit, and what
        processes that died left behind."""
        if self.folder is None:
            return
        found: list[tuple[float, int, Path]] = []
        newest = 0.0
        for path in self.folder.iterdir():
            if path.suffix == SUFFIX or path.name.startswith("writing-"):
                with contextlib.suppress(OSError):  # another process deleted it
                    status = path.stat()
                    found.append((status.st_mtime, status.st_size, path))
                    newest = max(newest, status.st_mtime)
        left = sum(size for _, size, path in found if path.suffix == SUFFIX)
        for used, size, path in sorted(found, key=lambda f: f[0]):
            entry = path.suffix == SUFFIX
            if left <= self.limit if entry else used > newest - _ABANDONED:
                continue
            with contextlib.suppress(OSError):
                path.unlink()
            left -= size if entry else 0


# ---------------------------------------------------------------- the format of an entry


def _packed(
    files: Mapping[str, bytes], facts: Mapping[str, Any], shared: bytes
) -> tuple[bytes, list[Piece]]:
    """Length and header, then the blobs: `shared` first, then what the files hold besides."""
    blobs: list[Piece] = [shared]
    table: dict[str, list[list[int]]] = {}
    end = len(shared)
    for name, data in files.items():
        at = data.find(shared) if len(shared) >= 4096 else -1
        view = memoryview(data)
        own = [view] if at < 0 else [view[:at], view[at + len(shared) :]]
        spans = []
        for piece in own:
            spans.append([end, len(piece)])
            end += len(piece)
        blobs += own
        table[name] = spans if at < 0 else [spans[0], [0, len(shared)], spans[1]]
    text = json.dumps({"files": table, "facts": dict(facts)}).encode()
    return len(text).to_bytes(8, "little") + text, blobs


def _unpacked(data: memoryview) -> Entry | None:
    """The entry in `data`, None unless all of it is as it was written."""
    start = len(MAGIC) + 32
    if bytes(data[: len(MAGIC)]) != MAGIC or len(data) < start + 8:
        return None
    if hashlib.sha256(data[start:]).digest() != bytes(data[len(MAGIC) : start]):
        return None
    length = int.from_bytes(data[start : start + 8], "little")
    header = json.loads(bytes(data[start + 8 : start + 8 + length]))
    body = data[start + 8 + length :]
    files: dict[str, list[Piece]] = {
        name: [body[at : at + size] for at, size in spans]
        for name, spans in header["files"].items()
    }
    return Entry(files, header["facts"])


def key_of(parts: Sequence[tuple[str, object]]) -> str:
    """The key of named `parts`, whose texts are what counts."""
    text = json.dumps([[name, str(value)] for name, value in parts])
    return hashlib.sha256(text.encode()).hexdigest()[:40]
