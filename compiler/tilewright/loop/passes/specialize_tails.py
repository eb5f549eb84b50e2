"""Give the last iteration of a loop its own code where a split left a remainder.

    for io in 4: for ii in min(14, 50 - io*14): S
      ->
    for io in 3: for ii in 14: S                      for parallel loops: if io < 3: ... else: ...
    for ii in 8: S[io = 3]

In: a scheduled kernel. Out: one whose inner extents are constants wherever that is possible.
Invariant: the same iterations run in the same order.
"""

from __future__ import annotations

from dataclasses import replace

from tilewright.core.dtypes import I64
from tilewright.core.index import Ix, evaluate, ix, simplify, variables
from tilewright.loop.ir import Binary, Block, Const, For, FromIndex, If, Kernel, Stmt
from tilewright.loop.rewrite import Ranges, simplify_block, substitute_block, walk


def specialize_tails(kernel: Kernel) -> Kernel:
    """Peel or branch on last iterations; see the module docstring.

    On a GPU threads beyond an extent are idle instead: one code for all blocks.
    """
    if any(isinstance(s, For) and s.kind in ("block", "thread") for s in walk(kernel.body)):
        return replace(kernel, body=simplify_block(kernel.body, {}))
    return replace(kernel, body=_block(simplify_block(kernel.body, {}), {}))


def _block(block: Block, ranges: Ranges) -> Block:
    out: list[Stmt] = []
    for s in block:
        if isinstance(s, If):
            out.append(If(s.cond, _block(s.then, ranges), _block(s.orelse, ranges)))
        elif isinstance(s, For):
            out.extend(_loop(s, ranges))
        else:
            out.append(s)
    return tuple(out)


def _loop(s: For, ranges: Ranges) -> list[Stmt]:
    if s.kind in ("unroll", "vector") or not s.extent.is_const:
        inner = {**ranges, s.var: (0, 1 << 30)}
        if s.extent.is_const:
            inner[s.var] = (0, s.extent.const - 1)
        return [replace(s, body=_block(s.body, inner))]
    n = s.extent.const
    if n > 1 and _has_tail(s.body, s.var, n):
        full_ranges = {**ranges, s.var: (0, n - 2)}
        full = _block(simplify_block(s.body, full_ranges), full_ranges)
        last = simplify_block(substitute_block(s.body, {s.var: Ix(n - 1)}), ranges)
        last = _block(last, ranges)
        if s.kind == "serial":
            head = (For(s.var, Ix(n - 1), full, s.kind),)
            if n == 2:
                head = (For(s.var, Ix(1), full, s.kind),)
            return [*head, *last] if not _allocates(last) else [*head, For(s.var, Ix(1), last)]
        more = Binary("lt", FromIndex(ix(s.var), I64), Const(n - 1, I64))
        return [replace(s, body=(If(more, full, last),))]
    return [replace(s, body=_block(s.body, {**ranges, s.var: (0, n - 1)}))]


def _allocates(block: Block) -> bool:
    """Scratch of a peeled iteration must stay in a block of its own (names are bound once)."""
    from tilewright.loop.ir import Alloc, Let

    return any(isinstance(s, Alloc | Let) for s in block)


def _has_tail(body: Block, var: str, n: int) -> bool:
    """Whether some extent inside becomes simpler when the last iteration is set apart."""
    for s in walk(body):
        if isinstance(s, For) and var in variables(s.extent) and not s.extent.is_const:
            full = simplify(s.extent, {var: (0, n - 2)})
            if var not in variables(full):
                return True
            others = variables(s.extent) - {var}
            if not others and evaluate(s.extent, {var: 0}) != evaluate(s.extent, {var: n - 1}):
                return full.is_const
    return False
