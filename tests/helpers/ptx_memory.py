"""Memory of the machine for PTX.

In: accesses of many threads at once. Out: bytes; a `PtxError` for what is misaligned, outside, or meets another
thread's access without a barrier between them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Lanes = npt.NDArray[Any]


class PtxError(Exception):
    """The code does what PTX leaves undefined, or what this machine does not know."""


class Memory:
    """Bytes, and who touched each last: thread and number of barriers, block for memory of all blocks."""

    def __init__(self, name: str, data: npt.NDArray[np.uint8], readonly: bool) -> None:
        self.name, self.data, self.readonly = name, data, readonly
        n = 0 if readonly else data.size
        self.writer, self.reader = np.full(n, -1, np.int64), np.full(n, -1, np.int64)
        self.wrote, self.read = np.full(n, -1, np.int64), np.full(n, -1, np.int64)
        self.owner = np.full(n, -1, np.int64)

    def at(self, offsets: Lanes, size: int) -> Lanes:
        if (offsets % size).any():
            raise PtxError(f"{self.name}: an access of {size} bytes is not aligned")
        if offsets.min() < 0 or offsets.max() + size > self.data.size:
            raise PtxError(
                f"{self.name}: byte {int(offsets.max())} is outside its {self.data.size}"
            )
        return offsets[:, None] + np.arange(size)

    def load(self, offsets: Lanes, size: int, who: Lanes, now: int, block: int) -> Lanes:
        at = self.at(offsets, size)
        if not self.readonly:
            mine = who[:, None]
            self._apart(at, mine, now, block, "read")
            again = (self.read[at] == now) & (self.reader[at] != mine)
            self.reader[at] = np.where(again, -2, mine)
            self.reader[at] = np.where(self.reader[at] != mine, -2, self.reader[at])
            self.read[at] = now
        return self.data[at]

    def store(self, offsets: Lanes, values: Lanes, who: Lanes, now: int, block: int) -> None:
        if self.readonly:
            raise PtxError(f"{self.name} is an input and is stored to")
        at = self.at(offsets, values.shape[1])
        mine = who[:, None]
        self._apart(at, mine, now, block, "written")
        if ((self.read[at] == now) & (self.reader[at] != mine)).any():
            raise PtxError(f"{self.name} is written while another thread reads it")
        self.data[at] = values
        self.writer[at], self.wrote[at], self.owner[at] = mine, now, block
        if (self.writer[at] != mine).any():
            raise PtxError(f"several threads write the same byte of {self.name}")

    def _apart(self, at: Lanes, mine: Lanes, now: int, block: int, how: str) -> None:
        if ((self.wrote[at] == now) & (self.writer[at] != mine)).any():
            raise PtxError(f"{self.name} is {how} while another thread writes it")
        if ((self.owner[at] >= 0) & (self.owner[at] != block)).any():
            raise PtxError(f"{self.name} is {how} where another block writes")
