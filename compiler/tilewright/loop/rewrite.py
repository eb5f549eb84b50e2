"""Walking and rewriting loop IR.

In: blocks and functions over their parts. Out: new blocks; nothing is changed in place.
Invariant: a rewrite that changes nothing returns structurally equal IR.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from tilewright.core.index import Ix, bounds, simplify, substitute
from tilewright.errors import IRError
from tilewright.loop import mma
from tilewright.loop.ir import (
    Alloc,
    Binary,
    Bitcast,
    Block,
    Cast,
    Dot,
    Expr,
    Fma,
    For,
    FromIndex,
    If,
    Kernel,
    Let,
    Load,
    Mma,
    Select,
    Stmt,
    Store,
    Unary,
)

Ranges = dict[str, tuple[int, int]]
IndexMap = Callable[[Ix], Ix]
ExprMap = Callable[[Expr], Expr]


def map_children(e: Expr, f: ExprMap) -> Expr:
    """Apply `f` to the direct sub-expressions of `e`; the same object if nothing changed."""
    match e:
        case Unary(op, a):
            x = f(a)
            return e if x is a else Unary(op, x)
        case Binary(op, a, b):
            x, y = f(a), f(b)
            return e if x is a and y is b else Binary(op, x, y)
        case Fma(a, b, c):
            x, y, z = f(a), f(b), f(c)
            return e if x is a and y is b and z is c else Fma(x, y, z)
        case Dot(var, n, a, b, c):
            x, y, z = f(a), f(b), f(c)
            return e if x is a and y is b and z is c else Dot(var, n, x, y, z)
        case Select(a, b, c):
            x, y, z = f(a), f(b), f(c)
            return e if x is a and y is b and z is c else Select(x, y, z)
        case Cast(a, dtype):
            x = f(a)
            return e if x is a else Cast(x, dtype)
        case Bitcast(a, dtype):
            x = f(a)
            return e if x is a else Bitcast(x, dtype)
        case _:
            return e


def map_expr_indices(e: Expr, f: IndexMap) -> Expr:
    """Apply `f` to every index form inside `e`; shared nodes stay shared."""
    memo: dict[int, Expr] = {}

    def go(x: Expr) -> Expr:
        got = memo.get(id(x))
        if got is None:
            match x:
                case Load(buffer, index, dtype):
                    new = tuple(f(i) for i in index)
                    got = x if new == index else Load(buffer, new, dtype)
                case FromIndex(index, dtype):
                    got = FromIndex(f(index), dtype)
                case _:
                    got = map_children(x, go)
            memo[id(x)] = got
        return got

    return go(e)


def map_loads(e: Expr, f: Callable[[Load], Expr]) -> Expr:
    """Replace every load inside `e`; shared nodes stay shared."""
    memo: dict[int, Expr] = {}

    def go(x: Expr) -> Expr:
        got = memo.get(id(x))
        if got is None:
            got = memo[id(x)] = f(x) if isinstance(x, Load) else map_children(x, go)
        return got

    return go(e)


def map_block(
    block: Block,
    index: IndexMap | None = None,
    expr: ExprMap | None = None,
    stmt: Callable[[Stmt], Stmt | tuple[Stmt, ...]] | None = None,
) -> Block:
    """Rewrite bottom-up: index forms, then expressions, then each statement (may become several)."""
    fi = index or (lambda i: i)
    fe = expr or (lambda e: e)

    def value(e: Expr) -> Expr:
        return fe(map_expr_indices(e, fi) if index else e)

    out: list[Stmt] = []
    for s in block:
        new: Stmt
        match s:
            case For(var, extent, body, kind):
                new = For(var, fi(extent), map_block(body, index, expr, stmt), kind)
            case Store(buffer, at, v):
                new = Store(buffer, tuple(fi(i) for i in at), value(v))
            case Let(name, v, bound):
                new = Let(name, value(v), bound)
            case If(cond, then, orelse):
                new = If(
                    value(cond),
                    map_block(then, index, expr, stmt),
                    map_block(orelse, index, expr, stmt),
                )
            case Mma():
                new = replace(
                    s,
                    lane=fi(s.lane),
                    index=tuple(fi(i) for i in s.index),
                    a=_operand(value(s.a)),
                    b=_operand(value(s.b)),
                )
            case _:
                new = s
        if stmt is None:
            out.append(new)
            continue
        got = stmt(new)
        if isinstance(got, tuple):
            out.extend(got)
        else:
            out.append(got)
    return tuple(out)


def _operand(e: Expr) -> Load:
    """An operand of tensor cores after a rewrite: they read memory only."""
    if not isinstance(e, Load):
        raise IRError(f"an operand of a `mma` became {e}: only loads can be one")
    return e


def substitute_block(block: Block, mapping: Mapping[str, Ix]) -> Block:
    """Replace index variables throughout a block."""
    return map_block(block, index=lambda i: substitute(i, mapping))


def walk(block: Block) -> Iterator[Stmt]:
    """All statements, outer before inner."""
    for s in block:
        yield s
        match s:
            case For(_, _, body, _):
                yield from walk(body)
            case If(_, then, orelse):
                yield from walk(then)
                yield from walk(orelse)
            case _:
                pass


def expressions(block: Block) -> Iterator[Expr]:
    """All top-level expressions of a block (values, conditions, operands of tensor cores)."""
    for s in walk(block):
        match s:
            case Store(_, _, v) | Let(_, v, _):
                yield v
            case If(cond, _, _):
                yield cond
            case Mma():
                yield s.a
                yield s.b
            case _:
                pass


def loads(e: Expr) -> Iterator[Load]:
    """All loads in an expression, a shared node once."""
    return (x for x in parts(e) if isinstance(x, Load))


def parts(e: Expr) -> Iterator[Expr]:
    """An expression and all its sub-expressions, a shared node once."""
    seen: set[int] = set()
    stack = [e]
    while stack:
        x = stack.pop()
        if id(x) in seen:
            continue
        seen.add(id(x))
        yield x
        stack.extend(children(x))


def children(e: Expr) -> tuple[Expr, ...]:
    """Direct sub-expressions."""
    match e:
        case Unary(_, a) | Cast(a, _) | Bitcast(a, _):
            return (a,)
        case Binary(_, a, b):
            return (a, b)
        case Fma(a, b, c) | Select(a, b, c) | Dot(_, _, a, b, c):
            return (a, b, c)
        case _:
            return ()


def loops(block: Block) -> dict[str, For]:
    """The first loop of each name, outer before inner."""
    out: dict[str, For] = {}
    for s in walk(block):
        if isinstance(s, For):
            out.setdefault(s.var, s)
    return out


def accesses(block: Block) -> Iterator[tuple[str, tuple[Ix, ...], bool]]:
    """Every access as (buffer, index, is a store)."""
    for e in expressions(block):
        for load in loads(e):
            yield load.buffer, load.index, False
    for s in walk(block):
        if isinstance(s, Store):
            yield s.buffer, s.index, True
        elif isinstance(s, Mma):
            yield s.buffer, (*s.index, mma.ANY_HELD), False
            yield s.buffer, (*s.index, mma.ANY_HELD), True


def loop_ranges(block: Block) -> Ranges:
    """Values of all loop variables in a block, in any loop of that name; loops without a bound are left out."""
    ranges: Ranges = {}
    for s in walk(block):
        if isinstance(s, For):
            _, end = bounds(s.extent, ranges)
            if end is not None:
                _, most = ranges.get(s.var, (0, 0))
                ranges[s.var] = (0, max(end - 1, most))
        elif isinstance(s, Mma):
            ranges.update(mma.ranges(s))
    return ranges


def simplify_block(block: Block, ranges: Ranges) -> Block:
    """Simplify all index forms and extents under the ranges of the enclosing loops.

    Loops of constant extent 1 are replaced by their body, loops of extent 0 vanish.
    """
    out: list[Stmt] = []
    for s in block:
        out.extend(_simplified(s, ranges))
        if isinstance(s, Let) and s.range is not None:
            ranges = {**ranges, s.name: s.range}
    return tuple(out)


def _simplified(s: Stmt, ranges: Ranges) -> Block:
    def index(i: Ix) -> Ix:
        return simplify(i, ranges)

    match s:
        case For(var, extent, body, kind):
            size = index(extent)
            if size.is_const and size.const <= 0:
                return ()
            once = size.is_const and size.const == 1 and kind != "thread"  # one thread of many
            if once and not any(isinstance(b, Alloc | Let) for b in body):
                return simplify_block(substitute_block(body, {var: Ix(0)}), ranges)
            _, hi = bounds(size, ranges)
            inner = {**ranges, var: (0, (hi if hi is not None else 1 << 40) - 1)}
            return (For(var, size, simplify_block(body, inner), kind),)
        case If(cond, then, orelse):
            return (
                If(
                    map_expr_indices(cond, index),
                    simplify_block(then, ranges),
                    simplify_block(orelse, ranges),
                ),
            )
        case Mma():
            inner = {**ranges, **mma.ranges(s)}
            return map_block((s,), index=lambda i: simplify(i, inner))
        case _:
            return map_block((s,), index=index)


def simplify_kernel(kernel: Kernel) -> Kernel:
    """`simplify_block` for a whole kernel."""
    return replace(kernel, body=simplify_block(kernel.body, {}))
