"""The only opener of tensor data that a model keeps in other files.

In: the model's folder, a location from the file, and how many bytes the tensor needs. Out: those bytes,
or a `ModelError`.
Invariant: nothing outside the model's own folder is ever read, whatever links say (hard links are refused:
nobody can tell where else they are), and nothing is read that the tensor does not need.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from tilewright.errors import ModelError

_opened: ContextVar[set[Path] | None] = ContextVar("opened", default=None)


@contextmanager
def files_read() -> Iterator[set[Path]]:
    """Collects the files that tensor data is read from while the context lasts."""
    found: set[Path] = set()
    token = _opened.set(found)
    try:
        yield found
    finally:
        _opened.reset(token)


def read_external(
    folder: Path | None, location: str, offset: int, length: int | None, want: int, what: str
) -> bytes:
    """`want` bytes at `offset` of the file `location` beside the model.

    `length` is what the model declares (None: to the end of the file); it must be `want`.
    """
    root, path = _inside(folder, location, what)
    seen = _opened.get()
    if seen is not None:
        seen.add(path)
    try:
        handle = _open(root, path)
    except OSError as err:
        raise ModelError(
            f"{what} lies in `{location}`, which cannot be opened ({err.strerror}): put it beside "
            "the model"
        ) from None
    status = os.fstat(handle)
    refused = ""
    if not stat.S_ISREG(status.st_mode):
        refused = "which is not a regular file: refused"
    elif status.st_nlink > 1:  # one of them may lie where the model must not look
        refused = "a file with several names (hard links): refused, make a copy of it"
    if refused:
        os.close(handle)
        raise ModelError(f"{what} lies in `{location}`, {refused}")
    with os.fdopen(handle, "rb") as f:
        size = status.st_size
        count = size - offset if length is None else length
        if offset < 0 or count < 0 or offset + count > size:
            raise ModelError(
                f"{what} wants bytes {offset} to {offset + count} of `{location}`, which has {size}: "
                "the file is truncated, download it again"
            )
        if count != want:
            raise ModelError(
                f"{what} has {count} bytes of data in `{location}`, its shape needs {want}: "
                "the file is damaged"
            )
        f.seek(offset)
        return f.read(want)


def _open(root: Path, path: Path) -> int:
    """Open a resolved path below `root` one folder after the other: a link that appears in the place of
    one of them in the meantime is not followed."""
    nofollow = getattr(os, "O_NOFOLLOW", 0)
    final = os.O_RDONLY | os.O_NONBLOCK | nofollow
    if os.open not in os.supports_dir_fd:
        return os.open(path, final)
    *folders, name = path.relative_to(root).parts or (".",)
    at = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for folder in folders:
            inner = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | nofollow, dir_fd=at)
            os.close(at)
            at = inner
        return os.open(name, final, dir_fd=at)
    finally:
        os.close(at)


def _inside(folder: Path | None, location: str, what: str) -> tuple[Path, Path]:
    """The model's real folder, and the file's real path, which lies in it."""
    if folder is None:
        raise ModelError(
            f"{what} lies in the file `{location}`, but the model was not read from a folder: "
            "load it from its path"
        )
    try:
        root = folder.resolve()
        path = (root / location).resolve()
    except (OSError, ValueError, RuntimeError) as err:  # a NUL character, a loop of links
        raise ModelError(f"{what} lies in {location!r}, which is not a path ({err})") from None
    if not location or Path(location).is_absolute() or not path.is_relative_to(root):
        raise ModelError(
            f"{what} points to `{location}`, outside the model's folder: refused, move the data "
            "beside the model"
        )
    return root, path
