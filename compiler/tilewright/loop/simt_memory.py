"""Memory of the interpreter of threads: who touched what last.

In: accesses of many threads at once. Out: an `IRError` for each race and each read of what nobody wrote.
Invariant: threads are numbered over all blocks, `MAX_THREADS` to a block.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tilewright.errors import IRError
from tilewright.loop.ir import Buffer

Lanes = npt.NDArray[Any]

#: Threads of a block, at most.
MAX_THREADS = 1 << 16


@dataclass(slots=True)
class Memory:
    """A buffer, one copy per block (`shared`) or thread (private), and who touched what last.

    `writer`, `reader`: the thread (-2: several) that touched an element last, when `wrote`, `read` barriers
    had been passed; `owner`: the block that wrote an element of global memory. Empty where races cannot
    happen.
    """

    buffer: Buffer
    data: Lanes
    copies: int
    per: str
    tracked: bool
    written: Lanes | None = None
    marks: dict[str, Lanes] = field(default_factory=dict[str, Lanes])

    @classmethod
    def of(cls, buffer: Buffer, data: Lanes, tracked: bool) -> Memory:
        """A parameter."""
        flat = np.array(data).reshape(-1)
        made = cls(buffer, flat, 1, "all", tracked)
        made.track(("wrote", "writer", "read", "reader", "owner"))
        return made

    @classmethod
    def scratch(cls, buffer: Buffer, copies: int, per: str) -> Memory:
        size = copies * int(np.prod(buffer.shape))
        made = cls(buffer, np.zeros(size, buffer.dtype.numpy), copies, per, per == "block")
        made.written = np.zeros(size, np.bool_)
        made.track(("wrote", "writer", "read", "reader"))
        return made

    @property
    def private(self) -> bool:
        """Whether every thread has its own, though all of them are in one array here."""
        return self.per == "block" and self.buffer.space != "shared"

    def track(self, names: tuple[str, ...]) -> None:
        if self.tracked:
            self.marks = {n: np.full(self.data.shape, -1, np.int64) for n in names}

    def read(self, at: Lanes, who: Lanes, now: int) -> None:
        """Note that threads `who` read the elements `at` after `now` barriers; `IRError` if that is a race."""
        if self.written is not None and not self.written[at].all():
            raise IRError(f"{self.buffer.name} is read before it is written")
        if not self.tracked:
            return
        self._check(at, who, now, "read")
        k = self.marks
        again = k["read"][at] == now
        k["reader"][at] = np.where(again & (k["reader"][at] != who), -2, who)
        several = k["reader"][at] != who  # lanes that read the same element just now
        k["reader"][at[several]] = -2
        k["read"][at] = now

    def write(self, at: Lanes, who: Lanes, now: int) -> None:
        """The same for stores."""
        if self.tracked:
            name, k = self.buffer.name, self.marks
            if len(np.unique(at)) != len(at):
                raise IRError(f"several threads write the same element of {name}: a race")
            self._check(at, who, now, "written")
            since = (k["read"][at] == now) | (self.private & (k["read"][at] >= 0))
            if (since & (k["reader"][at] != who)).any():
                raise IRError(f"{name} is written while another thread reads it: a race")
            k["wrote"][at], k["writer"][at] = now, who
            if "owner" in k:
                k["owner"][at] = who // MAX_THREADS
        if self.written is not None:
            self.written[at] = True

    def _check(self, at: Lanes, who: Lanes, now: int, how: str) -> None:
        """Complain if another thread wrote since the last barrier, or another block, what is touched now."""
        name, k = self.buffer.name, self.marks
        others = k["writer"][at] != who
        if self.private and (others & (k["wrote"][at] >= 0)).any():
            raise IRError(f"{name} is {how} by a thread that has not written it itself")
        if (others & (k["wrote"][at] == now)).any():
            raise IRError(f"{name} is {how} while another thread writes it: a race")
        if "owner" in k and ((k["owner"][at] >= 0) & (k["owner"][at] != who // MAX_THREADS)).any():
            raise IRError(f"{name} is {how} where another block writes: a race")
