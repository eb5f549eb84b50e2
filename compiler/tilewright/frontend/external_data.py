"""The only opener of tensor data that a model keeps in other files.

In: the model's folder and a location from the file. Out: bytes, or a `ModelError`.
Invariant: nothing outside the model's own folder is ever read, whatever links say.
"""

from __future__ import annotations

from pathlib import Path

from tilewright.errors import ModelError


def read_external(folder: Path | None, location: str, offset: int, length: int, what: str) -> bytes:
    """`length` bytes (to the end if 0) at `offset` of the file `location` beside the model."""
    if folder is None:
        raise ModelError(
            f"{what} lies in the file `{location}`, but the model was not read from a folder"
        )
    root = folder.resolve()
    path = (root / location).resolve()
    if not path.is_relative_to(root) or Path(location).is_absolute():
        raise ModelError(
            f"{what} points to `{location}`, outside the model's folder: refused, move the data beside the model"
        )
    if not path.is_file():
        raise ModelError(f"{what} lies in `{location}`, which is missing: put it beside the model")
    size = path.stat().st_size
    length = length or size - offset
    if offset < 0 or length < 0 or offset + length > size:
        raise ModelError(
            f"{what} wants bytes {offset}..{offset + length} of `{location}`, which has {size}: the file is truncated"
        )
    with path.open("rb") as f:
        f.seek(offset)
        return f.read(length)
