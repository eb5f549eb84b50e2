"""Scratch that is not shared belongs to one thread: prove that nobody else touches it.

In: a kernel whose loops are bound to blocks and threads. Out: nothing, or an `IRError` that names the scratch.
Invariant: what passes never reads another thread's copy. Scratch outside threads either belongs to the first one,
which executes what no loop of threads does, or each element belongs to the thread whose loop variables index it,
by the same dims and extents in every nest. What all threads compute for themselves reads no such scratch.
"""

from __future__ import annotations

from tilewright.core.index import Ix, bounds, ix
from tilewright.errors import IRError
from tilewright.loop.barriers import has_threads, runs
from tilewright.loop.ir import Alloc, Block, Expr, For, If, Kernel, Let
from tilewright.loop.rewrite import Ranges, accesses, loads, walk

#: Dims of a buffer that a nest's loops index, outermost first, each with the loop's extent but for the first one:
#: with it, an element determines the number of its thread. Empty: the first thread.
_Owner = tuple[tuple[int, int], ...]


def check_owners(kernel: Kernel) -> None:
    """Raise `IRError` where a thread could touch scratch of another one."""
    if has_threads(kernel.body):
        scratch = {
            s.buffer.name
            for s in walk(kernel.body)
            if isinstance(s, Alloc) and s.buffer.space != "shared"
        }
        _Check(kernel.name, scratch).block(kernel.body, {})


class _Check:
    def __init__(self, kernel: str, scratch: set[str]) -> None:
        self.kernel, self.scratch = kernel, scratch
        self.owners: dict[str, _Owner] = {}

    def block(self, block: Block, ranges: Ranges) -> None:
        """Statements outside threads."""
        for run, together in runs(block):
            if not together:
                self.first_thread(run)
                continue
            for s in run:
                match s:
                    case For(kind="thread"):
                        self.nest(s, ranges)
                    case For(var, extent, body):
                        self.block(body, {**ranges, var: (0, _most(extent, ranges) - 1)})
                    case If(cond, then, orelse):
                        self.everyone(cond)
                        self.block(then, ranges)
                        self.block(orelse, ranges)
                    case Let(name, value, bound):
                        self.everyone(value)
                        ranges = {**ranges, name: bound} if bound is not None else ranges
                    case Alloc():
                        pass
                    case _:
                        self.first_thread((s,))

    def first_thread(self, run: Block) -> None:
        for name, _, _ in accesses(run):
            self.touch(name, ())

    def everyone(self, value: Expr) -> None:
        """A value that all threads compute."""
        for x in loads(value):
            if x.buffer in self.scratch:
                raise IRError(
                    f"{self.kernel}: all threads read the scratch `{x.buffer}`, of which each has its own"
                )

    def nest(self, s: For, ranges: Ranges) -> None:
        loops: list[tuple[str, int]] = []
        body: Block = (s,)
        while len(body) == 1 and isinstance(body[0], For) and body[0].kind == "thread":
            f = body[0]
            most = _most(f.extent, ranges)
            ranges = {**ranges, f.var: (0, most - 1)}
            loops.append((f.var, most))
            body = f.body
        inside = {x.buffer.name for x in walk(body) if isinstance(x, Alloc)}
        wide = [(var, most) for var, most in loops if most > 1]
        for name, index, _ in accesses(body):
            if name in inside or name not in self.scratch:
                continue
            dims = [next((d for d, i in enumerate(index) if i == ix(var)), -1) for var, _ in wide]
            if -1 in dims:
                lost = wide[dims.index(-1)][0]
                raise IRError(
                    f"{self.kernel}: threads of `{lost}` share an element of the scratch `{name}`"
                )
            sizes = [0, *(most for _, most in wide[1:])]
            self.touch(name, tuple(zip(dims, sizes, strict=False)))

    def touch(self, name: str, owner: _Owner) -> None:
        if name in self.scratch and self.owners.setdefault(name, owner) != owner:
            raise IRError(
                f"{self.kernel}: elements of the scratch `{name}` are of one thread here and of another there"
            )


def _most(extent: Ix, ranges: Ranges) -> int:
    _, most = bounds(extent, ranges)
    if most is None:
        raise IRError(f"a loop of {extent} iterations has no bound")
    return max(most, 1)
