"""What makes a schedule primitive legal: questions about dependences between loop iterations.

In: blocks of loop IR. Out: reasons (strings) why something is not legal, or None.
Invariant: conservative; when in doubt the answer is a reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations_with_replacement
from math import gcd

from tilewright.core.index import Ix, bounds, variables
from tilewright.core.injective import apart, clamped
from tilewright.errors import ScheduleError
from tilewright.loop import mma
from tilewright.loop.ir import Alloc, Block, For, Kernel, Let, Mma
from tilewright.loop.rewrite import Ranges, accesses, loop_ranges, walk


def require_loop(kernel: Kernel, var: str) -> list[For]:
    """All loops called `var`; raises `ScheduleError` if there is none."""
    found = [s for s in walk(kernel.body) if isinstance(s, For) and s.var == var]
    if not found:
        names = ", ".join(dict.fromkeys(s.var for s in walk(kernel.body) if isinstance(s, For)))
        raise ScheduleError(f"there is no loop `{var}` (loops: {names or 'none'})")
    return found


def require_serial(kernel: Kernel, var: str) -> None:
    """Raises `ScheduleError` unless every loop called `var` exists and is still serial."""
    for f in require_loop(kernel, var):
        if f.kind != "serial":
            raise ScheduleError(f"`{var}` is a {f.kind} loop already: do this before that")


def require_fresh(kernel: Kernel, *names: str) -> None:
    """Raises `ScheduleError` if a new loop name is already in use."""
    used = {s.var for s in walk(kernel.body) if isinstance(s, For)}
    for name in names:
        if name in used:
            raise ScheduleError(f"the name `{name}` is already used by a loop")


def local_buffers(block: Block) -> set[str]:
    """Buffers allocated inside a block: private to each of its executions."""
    return {s.buffer.name for s in walk(block) if isinstance(s, Alloc)}


def index_variables(index: tuple[Ix, ...]) -> set[str]:
    """All variables of an index."""
    out: set[str] = set()
    for i in index:
        out |= variables(i)
    return out


def carried(loop: For) -> str | None:
    """Why iterations of a loop depend on each other, or None.

    Iterations are independent if whatever one of them stores to a buffer (other than the body's own scratch) lies
    at indices that no other one stores to, and is read, if at all, at one of those very indices.
    """
    body, var = loop.body, loop.var
    private = local_buffers(body)
    touched = [a for a in accesses(body) if a[0] not in private]
    read = {buffer for buffer, _, is_store in touched if not is_store}
    stored: dict[str, list[tuple[Ix, ...]]] = {}
    for buffer, index, is_store in touched:
        if is_store and index not in stored.setdefault(buffer, []):
            stored[buffer].append(index)
    ranges = loop_ranges((loop,))
    bound = tuple((v, ranges.get(v)) for v in (var, *sorted(_bound(body) - {var})))
    for buffer, indices in stored.items():
        for a, b in combinations_with_replacement(indices, 2):
            if var not in index_variables(a):
                return f"every iteration of `{var}` writes the same element of `{buffer}`"
            # tiles that `overlap` moved back write the same values twice, which nobody reads in between
            again = a == b and buffer not in read and any(clamped(i, var) for i in a)
            if not again and not apart(a, b, bound) and not _apart(a, b, ranges):
                places = " and ".join(dict.fromkeys(f"[{', '.join(map(str, i))}]" for i in (a, b)))
                return f"iterations of `{var}` may write the same element of `{buffer}`: {places}"
    for buffer, index, is_store in touched:
        if not is_store and buffer in stored and index not in stored[buffer]:
            return (
                f"`{buffer}` is read at {list(map(str, index))} and written elsewhere in the loop"
            )
    return None


def _bound(block: Block) -> set[str]:
    """Variables that a block binds itself."""
    names = {s.var for s in walk(block) if isinstance(s, For)}
    names |= {s.name for s in walk(block) if isinstance(s, Let)}
    return names | {n for s in walk(block) if isinstance(s, Mma) for n in mma.ranges(s)}


def meeting(kernel: Kernel, var: str) -> str | None:
    """Why the nest with the loop `var` cannot run in several blocks next to the kernel's other nests, or None.

    Blocks do not wait for each other, and each runs what is not bound to blocks. So other nests may neither touch
    what this one writes nor write what it touches, nor read what they write themselves.
    """
    ranges = loop_ranges(kernel.body)
    private = local_buffers(kernel.body)
    nests = [s for s in kernel.body if isinstance(s, For)]
    own = [s for s in nests if any(isinstance(x, For) and x.var == var for x in walk((s,)))]
    mine = set(accesses(tuple(own)))
    for other in nests:
        if other in own:
            continue
        theirs = set(accesses((other,)))
        for buffer, at, stores in theirs:
            if buffer in private:
                continue
            if stores and any(b == buffer and not st for b, _, st in theirs):
                return f"the loop `{other.var}` next to it adds to `{buffer}`, which each block would do"
            for b, index, st in mine:
                if b == buffer and (stores or st) and not _apart(index, at, ranges):
                    return f"`{buffer}` is written in another nest too, and blocks do not wait for each other"
    return None


def _apart(a: tuple[Ix, ...], b: tuple[Ix, ...], ranges: Ranges) -> bool:
    """Whether two indices are proved to be different whatever their variables are: one coordinate has other
    remainders or another range."""
    for x, y in zip(a, b, strict=True):
        common = gcd(*(coef for _, coef in (*x.terms, *y.terms)))
        if (x.const - y.const) % common if common else x.const != y.const:
            return True
        (low, high), (least, most) = bounds(x, ranges), bounds(y, ranges)
        if (high is not None and least is not None and high < least) or (
            most is not None and low is not None and most < low
        ):
            return True
    return False


def reordering(nest: Sequence[For], after: Sequence[str]) -> str | None:
    """Why permuting perfectly nested loops, given from the outside in, to the order `after` changes a result, or
    None.

    Two iterations that touch the same element of a stored buffer must keep their order: the loops that may tell
    such iterations apart must keep their relative order.
    """
    body, before = nest[-1].body, [f.var for f in nest]
    private, touched = local_buffers(body), list(accesses(body))
    ranges, bound = loop_ranges(tuple(nest[:1])), _bound(body)
    stores = dict.fromkeys((b, i) for b, i, is_store in touched if is_store and b not in private)
    for buffer, index in stores:
        reads = [at for other, at, is_store in touched if other == buffer and not is_store]
        for at in reads:
            if at != index:
                return f"`{buffer}` is read at {list(map(str, at))} and written at {list(map(str, index))}"
        for other in [i for b, i in stores if b == buffer]:
            # iterations of tiles that `overlap` moved back meet where they write the same values
            again = () if reads or other != index else index
            loops = [v for v in before if not any(clamped(i, v) for i in again)]
            fixed = _undecided(index, other, loops, bound, ranges)
            order = [v for v in after if v in fixed]
            if fixed != order:
                return f"the order of updates of `{buffer}` would change ({fixed} -> {order})"
    return None


def _undecided(
    a: tuple[Ix, ...], b: tuple[Ix, ...], loops: Sequence[str], bound: set[str], ranges: Ranges
) -> list[str]:
    """The loops whose iterations may differ where one is at `a` and another at `b` of the same element."""
    left = list(loops)
    for _ in loops:
        for v in left:
            free = sorted((bound | set(left)) - {v})
            if apart(a, b, tuple((name, ranges.get(name)) for name in (v, *free))):
                left.remove(v)  # equal in both from here on
                break
    return left
