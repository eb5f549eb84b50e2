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
#: Reads that are remembered for a buffer.
MAX_LOADED = 64


@dataclass(slots=True)
class Memory:
    """A buffer, one copy per block or thread, and who touched what last.

    `writer`, `reader`: the thread (-2: several) that touched an element last, when `wrote`, `read` barriers
    had been passed. Empty where races cannot happen.
    """

    buffer: Buffer
    data: Lanes
    copies: int
    per: str
    tracked: bool
    written: Lanes | None = None
    marks: dict[str, Lanes] = field(default_factory=dict[str, Lanes])
    loaded: dict[int, tuple[Lanes, Lanes]] = field(default_factory=dict[int, tuple[Lanes, Lanes]])
    """Identity of positions that all lanes of a nest have read -> they, and what was there."""
    loaded_when: int = -1
    """Barriers before those reads; a store forgets them."""

    @classmethod
    def of(cls, buffer: Buffer, data: Lanes, tracked: bool) -> Memory:
        """A parameter."""
        flat = np.array(data).reshape(-1)
        made = cls(buffer, flat, 1, "all", tracked)
        made.track(("wrote", "writer", "read", "reader"))
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

    def again(self, at: Lanes, now: int) -> Lanes | None:
        """What a nest read at these very positions since the last barrier, if nothing was stored since."""
        found = self.loaded.get(id(at)) if self.loaded_when == now else None
        return None if found is None else found[1]

    def remember(self, at: Lanes, now: int) -> Lanes:
        """Read all lanes, for `again`."""
        if self.loaded_when != now or len(self.loaded) >= MAX_LOADED:
            self.loaded, self.loaded_when = {}, now
        values: Lanes = self.data[at]
        self.loaded[id(at)] = at, values
        return values

    def put(self, at: Lanes, values: Lanes) -> None:
        """Store."""
        self.data[at] = values
        self.loaded.clear()

    def read(self, at: Lanes, who: Lanes, now: int) -> None:
        """Note that threads `who` read the elements `at` after `now` barriers; `IRError` if that is a race."""
        if self.private and self._own(at, who):
            return
        if self.written is not None and not self.written[at].all():
            raise IRError(f"{self.buffer.name} is read before it is written")
        if not self.tracked:
            return
        self._check(at, who, now, "read")
        if self.private:
            return
        k = self.marks
        read, reader = k["read"], k["reader"]
        last = who
        if (before := read[at]).max(initial=-1) == now:
            last = np.where((before == now) & (reader[at] != who), -2, who)
        reader[at] = last
        several = reader[at] != who  # lanes that read the same element just now
        if several.any():
            reader[at[several]] = -2
        read[at] = now

    def write(self, at: Lanes, who: Lanes, now: int) -> None:
        """The same for stores."""
        if self.private and self._own(at, who):
            return
        if self.tracked:
            name, k = self.buffer.name, self.marks
            self._check(at, who, now, "written")
            read = k["read"][at]
            if read.max(initial=-1) == now and ((read == now) & (k["reader"][at] != who)).any():
                raise IRError(f"{name} is written while another thread reads it: a race")
            k["wrote"][at], k["writer"][at] = now, who
            if (k["writer"][at] != who).any():  # each lane is a thread of its own
                raise IRError(f"several threads write the same element of {name}: a race")
        if self.written is not None:
            self.written[at] = True

    def _own(self, at: Lanes, who: Lanes) -> bool:
        """Whether every lane touches what its own thread wrote: of private scratch, nothing else to check."""
        return bool((self.marks["writer"][at] == who).all())

    def _check(self, at: Lanes, who: Lanes, now: int, how: str) -> None:
        """Complain if another thread wrote since the last barrier, or another block, what is touched now."""
        name = self.buffer.name
        wrote = self.marks["wrote"][at]
        latest = wrote.max(initial=-1)
        if latest < 0 or (self.per == "block" and not self.private and latest < now):
            return  # nobody wrote, or nobody since the last barrier
        writer = self.marks["writer"][at]
        others = (writer != who) & (writer >= 0)
        if not others.any():
            return
        if self.private:
            raise IRError(f"{name} is {how} by a thread that has not written it itself")
        if (others & (wrote == now)).any():
            raise IRError(f"{name} is {how} while another thread writes it: a race")
        if self.per == "all" and (others & (writer // MAX_THREADS != who // MAX_THREADS)).any():
            raise IRError(f"{name} is {how} where another block writes: a race")
