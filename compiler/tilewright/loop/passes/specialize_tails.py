"""Give the last iteration of a loop its own code where a split left a remainder.

    for io in 4: for ii in min(14, 50 - io*14): S
      ->
    for io in 3: for ii in 14: S                      for parallel loops: if io < 3: ... else: ...
    for ii in 8: S[io = 3]

    for io in ceil(n / 14): for ii in min(14, n - io*14): S          where n is a size known at run time
      ->
    for io in n // 14: for ii in 14: S
    if n % 14 > 0: for ii in n % 14: S[io = n // 14]

In: a scheduled kernel. Out: one whose inner extents are constants wherever that is possible.
Invariant: the same iterations run in the same order.
"""

from __future__ import annotations

from dataclasses import replace

from tilewright.core.dtypes import I64
from tilewright.core.index import (
    Extremum,
    FloorDiv,
    Ix,
    Mod,
    bounds,
    evaluate,
    imax,
    imin,
    ix,
    simplify,
    variables,
)
from tilewright.loop.ir import Binary, Block, Const, For, FromIndex, If, Kernel, Let, Stmt
from tilewright.loop.rewrite import Ranges, map_block, simplify_block, substitute_block, walk


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
            if isinstance(s, Let) and s.range is not None:
                ranges = {**ranges, s.name: s.range}
            out.append(s)
    return tuple(out)


def _loop(s: For, ranges: Ranges) -> list[Stmt]:
    cut = None if s.extent.is_const else _open_cut(s)
    if cut is not None and s.kind in ("serial", "parallel"):
        return _open(s, *cut, ranges)
    if s.kind in ("unroll", "vector") or not s.extent.is_const:
        _, hi = bounds(s.extent, ranges)
        inner = {**ranges, s.var: (0, (1 << 30 if hi is None else max(hi, 1)) - 1)}
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


# ---------------------------------------------------------------- extents known at run time


def _open_cut(s: For) -> tuple[int, Ix] | None:
    """(f, n) if the loop counts the pieces of length f that n iterations were split into."""
    for inner in walk(s.body):
        if not isinstance(inner, For):
            continue
        for atom in _minima(inner.extent):
            for f, rest in ((atom.a, atom.b), (atom.b, atom.a)):
                n = rest + ix(s.var) * f.const
                if not f.is_const or f.const < 1 or s.var in variables(n):
                    continue
                if (n + (f.const - 1)) // f.const == s.extent:
                    return f.const, n
    return None


def _open(s: For, f: int, n: Ix, ranges: Ranges) -> list[Stmt]:
    """Whole pieces, then what is left."""
    whole, left = n // f, n % f
    atom = Extremum("min", Ix(f), n - ix(s.var) * f)

    def with_size(body: Block, size: Ix) -> Block:
        return map_block(body, index=lambda i: _replaced(i, atom, size))

    _, hi = bounds(whole, ranges)
    inner = {**ranges, s.var: (0, max((hi or 1) - 1, 0))}
    full = _block(simplify_block(with_size(s.body, Ix(f)), inner), inner)
    last = substitute_block(with_size(s.body, left), {s.var: whole})
    last = _block(simplify_block(last, ranges), ranges)
    rest = If(Binary("gt", FromIndex(left, I64), Const(0, I64)), last)
    if s.kind == "parallel":
        more = Binary("lt", FromIndex(ix(s.var), I64), FromIndex(whole, I64))
        return [replace(s, body=(If(more, full, (rest,)),))]
    return [For(s.var, whole, full, s.kind), rest]


def _minima(form: Ix) -> list[Extremum]:
    """All minima in a form, inner ones too."""
    found: list[Extremum] = []
    for atom, _ in form.terms:
        match atom:
            case Extremum(op, a, b):
                found += [atom] if op == "min" else []
                found += [*_minima(a), *_minima(b)]
            case FloorDiv(num, _) | Mod(num, _):
                found += _minima(num)
            case _:
                pass
    return found


def _replaced(form: Ix, old: Extremum, new: Ix) -> Ix:
    """The form with an atom replaced, wherever it is."""
    if not form.terms:
        return form
    out = Ix(form.const)
    for atom, coef in form.terms:
        match atom:
            case Extremum(op, a, b):
                if op == old.op and {a, b} == {old.a, old.b}:
                    out = out + new * coef
                else:
                    x, y = _replaced(a, old, new), _replaced(b, old, new)
                    out = out + (imin(x, y) if op == "min" else imax(x, y)) * coef
            case FloorDiv(num, den):
                out = out + _replaced(num, old, new) // den * coef
            case Mod(num, den):
                out = out + _replaced(num, old, new) % den * coef
            case _:
                out = out + Ix(0, ((atom, coef),))
    return out


# ---------------------------------------------------------------- extents known now


def _allocates(block: Block) -> bool:
    """Scratch of a peeled iteration must stay in a block of its own (names are bound once)."""
    from tilewright.loop.ir import Alloc

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
