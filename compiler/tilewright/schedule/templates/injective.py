"""Elementwise work and data movement.

In: an unscheduled kernel, one perfect nest per output piece. Out: a trace that fuses what is contiguous
and vectorises the innermost loop, or the space of such traces, of which the default is one point.
"""

from __future__ import annotations

from tilewright.core.index import FloorDiv, Ix, Mod, simplify
from tilewright.loop.ir import For, Kernel, Let, Store
from tilewright.loop.rewrite import accesses, expressions, loads, loops, walk
from tilewright.schedule.space import Choice, Space, Value
from tilewright.schedule.target import Target
from tilewright.schedule.templates.draft import (
    Draft,
    buffers,
    parallelize_outer,
    stride,
    vectorize_pass,
    volume,
)
from tilewright.schedule.trace import Trace


def injective(kernel: Kernel, target: Target) -> Trace:
    """Elementwise work and data movement: fuse what is contiguous, vectors along the innermost loop."""
    return _injective(kernel, target, -1, 1, 1)


def injective_space(kernel: Kernel, target: Target) -> Space | None:
    """Which loop runs along the lanes, how long vectors are and how many are spelled out in a row.

    None where indices depend on data, which a tuner could not make up.
    """
    if target.family != "simd" or any(
        isinstance(s, Let) and s.range is not None for s in walk(kernel.body)
    ):
        return None
    tops = [s for s in kernel.body if isinstance(s, For)]
    depth = len(_perfect_nest(tops[0])) if len(tops) == 1 else 1
    params: dict[str, tuple[Value, ...]] = {
        "lane": tuple(range(-1, -min(depth, 4) - 1, -1)),
        "parts": (1, 2, 4),
        "vectors": (1, 2, 4),
    }

    def build(choice: Choice) -> Trace:
        lane, parts, vectors = (int(choice[k]) for k in ("lane", "parts", "vectors"))
        return _injective(kernel, target, lane, parts, vectors)

    return Space("injective", params, {"lane": -1, "parts": 1, "vectors": 1}, build)


def _injective(kernel: Kernel, target: Target, lane: int, parts: int, vectors: int) -> Trace:
    """`lane`: position of the loop along the vectors (-1: the innermost, after fusing); vectors have
    the full width divided by `parts`; `vectors` of them are spelled out."""
    d = Draft(kernel)
    work = volume(kernel) * sum(isinstance(s, Store) for s in walk(kernel.body))
    width = max(1, _narrowest_width(kernel, target) // parts)
    for top in [s for s in kernel.body if isinstance(s, For)]:
        names = _perfect_nest(top)
        if names and lane != -1:
            names.append(names.pop(lane))
            d.do("reorder", names)
        while len(names) >= 2 and lane == -1:
            outer, inner = names[-2], names[-1]
            saved = (d.kernel, list(d.steps))
            if d.try_("fuse", outer, inner, f"{outer}_{inner}") and _linear(d.kernel):
                names[-2:] = [f"{outer}_{inner}"]
                continue
            d.kernel, d.steps = saved
            break
        if names and vectors > 1 and d.extent(names[-1]) >= width * vectors:
            last = names[-1]
            d.do("split", last, width * vectors, f"{last}b", f"{last}t")
            vectorize_pass(d, f"{last}t", width)
            if d.has(f"{last}to"):
                d.do("unroll", f"{last}to")
        elif names:
            vectorize_pass(d, names[-1], width)
            if lane == -1 and width > 1:
                _finish_lines(d, names)
    parallelize_outer(d, work)
    return d.trace


def _finish_lines(d: Draft, names: list[str]) -> None:
    """Where vectors gather elements (a transpose), the loop along which those follow each other in memory goes next
    to them: every line that a vector touches is used up before it leaves the first cache."""
    *outer, last = names
    lanes = last
    if d.has(f"{last}l"):
        lanes, outer = f"{last}l", [*outer, f"{last}o"]
    known = buffers(d.kernel)
    reads = [(known[b], index) for b, index, store in accesses(d.kernel.body) if not store]
    for var in outer[:-1]:
        if any(
            stride(b, i, var) == 1 and stride(b, i, lanes) not in (0, 1, None) for b, i in reads
        ):
            d.try_("reorder", [*[v for v in outer if v != var], var, lanes])
            return


def _perfect_nest(f: For) -> list[str]:
    names = [f.var]
    while len(f.body) == 1 and isinstance(f.body[0], For):
        f = f.body[0]
        names.append(f.var)
    return [] if any(isinstance(s, For) for s in f.body) else names


def _linear(kernel: Kernel) -> bool:
    """Whether no memory offset needs a division."""
    known = buffers(kernel)
    for buffer, index, _ in accesses(kernel.body):
        offset = Ix(0)
        for i, s in zip(index, known[buffer].strides, strict=True):
            offset = offset + i * s
        ranges = {
            v: (0, f.extent.const - 1) for v, f in loops(kernel.body).items() if f.extent.is_const
        }
        if any(isinstance(a, FloorDiv | Mod) for a, _ in simplify(offset, ranges).terms):
            return False
    return True


def _narrowest_width(kernel: Kernel, target: Target) -> int:
    sizes = [e.dtype.bytes for e in expressions(kernel.body)]
    sizes += [x.dtype.bytes for e in expressions(kernel.body) for x in loads(e)]
    return target.lanes(max(sizes, default=4))
