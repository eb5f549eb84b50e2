"""The only opener of tensor data that a model keeps in other files.

In: the model's folder, a location from the file, and how many bytes the tensor needs. Out: those bytes,
or a `ModelError`.
Invariant: nothing outside the model's own folder is ever read, whatever links say, and nothing is read
that the tensor does not need.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from tilewright.errors import ModelError


def read_external(
    folder: Path | None, location: str, offset: int, length: int | None, want: int, what: str
) -> bytes:
    """`want` bytes at `offset` of the file `location` beside the model.

    `length` is what the model declares (None: to the end of the file); it must be `want`.
    """
    path = _inside(folder, location, what)
    try:
        # The path is resolved: a link that appears in its place in the meantime is not followed.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | os.O_NONBLOCK)
    except OSError as err:
        raise ModelError(
            f"{what} lies in `{location}`, which cannot be opened ({err.strerror}): put it beside "
            "the model"
        ) from None
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        os.close(handle)
        raise ModelError(f"{what} lies in `{location}`, which is not a regular file: refused")
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


def _inside(folder: Path | None, location: str, what: str) -> Path:
    """The file's real path, which lies in the model's folder."""
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
    return path
