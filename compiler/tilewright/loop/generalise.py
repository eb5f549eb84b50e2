"""One kernel for all sizes, from kernels of the same model at some of them.

In: unscheduled kernels that were lowered at several points of the sizes (`core.sizes`), the one at the bound
first. Out: a kernel whose extents and indices are forms of the sizes' variables; what it is at any point.
So operators stay as they are: they see numbers, and what differs between points becomes a form (the least
general generalisation of the kernels: Plotkin, "A Note on Inductive Generalization", 1970).
Invariant: at every point that was looked at, the result is the kernel that was lowered there. Memory keeps the
strides of the bound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tilewright.core.dtypes import BOOL, I64, DType
from tilewright.core.index import Atom, Extremum, FloorDiv, Ix, Mod, ix, simplify, substitute
from tilewright.core.sizes import Point, Size, fit, fit_product
from tilewright.errors import IRError
from tilewright.loop.interp import run
from tilewright.loop.ir import (
    Alloc,
    Binary,
    Block,
    Buffer,
    Const,
    Expr,
    For,
    FromIndex,
    If,
    Kernel,
    Let,
    Load,
    Param,
    Ref,
    Stmt,
    Store,
    dense,
)
from tilewright.loop.rewrite import map_block, map_children, simplify_block, substitute_block

#: Statements that comparing results may run, in each kernel.
MAX_ITERATIONS = 1 << 18
#: The parameter that holds the sizes, an i64 each.
SIZES = "sizes"


class Different(IRError):
    """Kernels that no form of the sizes makes one."""


def generalise(kernels: Sequence[Kernel], points: Sequence[Point]) -> Kernel:
    """The kernel that is `kernels[i]` at `points[i]`; raises `Different` if there is none."""
    return _Merger(points).kernel(kernels)


def with_sizes(kernel: Kernel, sizes: Sequence[Size]) -> Kernel:
    """The kernel with a last parameter that holds the sizes, read at its beginning."""
    used = [s for s in sizes if s.var in str(kernel.body)]
    if not used:
        return kernel
    given = dense(SIZES, I64, (len(sizes),))
    reads: list[Let] = []
    for s in used:
        value: Expr = Load(SIZES, (Ix(list(sizes).index(s)),), I64)
        if s.step > 1:
            value = Binary("div", value, Const(s.step, I64))
        reads.append(Let(s.var, value, s.range))
    params = (*kernel.params, Param(given, "in"))
    return replace(kernel, params=params, body=(*reads, *kernel.body))


def at_point(kernel: Kernel, point: Point) -> Kernel:
    """What a general kernel (without its parameter of sizes) is at a point."""
    body = substitute_block(kernel.body, {v: Ix(n) for v, n in point.items()})
    body = map_block(body, expr=_folded)
    return replace(kernel, body=simplify_block(body, {}))


def same(a: Kernel, b: Kernel) -> bool:
    """Whether two kernels do the same; the extents of what they get may differ."""

    def bare(k: Kernel) -> tuple[object, ...]:
        shapes = tuple((p.buffer.name, p.buffer.dtype, p.buffer.space, p.role) for p in k.params)
        return shapes, _Canonical().block(map_block(simplify_block(k.body, {}), expr=_folded))

    return bare(a) == bare(b)


def agree(
    general: tuple[Kernel, Sequence[str]],
    lowered: tuple[Kernel, Sequence[str]],
    constants: Mapping[str, npt.NDArray[Any]],
    seed: int = 0,
) -> bool:
    """Whether the interpreter computes the same with two kernels at one point, on random numbers.

    For kernels that are written differently, because dims of 1 simplify more; each comes with the names of what
    its parameters hold. False for kernels so large that this would take long.
    """
    (a, a_names), (b, b_names) = general, lowered
    if _iterations(b.body) > MAX_ITERATIONS:
        return False
    rng = np.random.default_rng(seed)
    mine: dict[str, npt.NDArray[Any]] = {}
    theirs: dict[str, npt.NDArray[Any]] = {}
    results: list[tuple[str, str]] = []
    for p, name in zip(a.params, a_names, strict=False):
        kind, q = p.buffer.dtype.numpy, _named(b, b_names, name)
        if name in constants:
            data = constants[name]
        elif p.role == "out":
            data = np.zeros(p.buffer.shape)
        else:
            data = rng.standard_normal(p.buffer.shape) * (3 if p.buffer.dtype.is_float else 40)
        data = np.abs(data) if p.buffer.dtype.kind == "uint" else data
        mine[p.buffer.name] = np.array(data, kind)
        if q is None:  # a literal there
            continue
        corner = tuple(slice(0, n) for n in q.buffer.shape)
        theirs[q.buffer.name] = mine[p.buffer.name][corner].copy()
        if p.role == "out":
            results.append((p.buffer.name, q.buffer.name))
    run(a, mine)
    run(b, theirs)
    return bool(results) and all(
        np.array_equal(
            mine[x][tuple(slice(0, n) for n in theirs[y].shape)], theirs[y],
            equal_nan=theirs[y].dtype.kind == "f",
        )
        for x, y in results
    )  # fmt: skip


def _named(kernel: Kernel, names: Sequence[str], name: str) -> Param | None:
    """The parameter that holds a value."""
    found = [p for p, n in zip(kernel.params, names, strict=False) if n == name]
    return found[0] if found else None


def _iterations(block: Block) -> int:
    """Statements that run, with loops of unknown extent taken as one iteration."""
    total = 0
    for s in block:
        match s:
            case For(_, extent, body, _):
                total += (extent.const if extent.is_const else 1) * _iterations(body)
            case If(_, then, orelse):
                total += _iterations(then) + _iterations(orelse)
            case _:
                total += 1
    return total


class _Canonical:
    """Blocks without loops of one iteration, names numbered in the order in which they are bound."""

    def __init__(self) -> None:
        self.indices: dict[str, Ix] = {}
        self.names: dict[str, str] = {}

    def block(self, block: Block) -> Block:
        out: list[Stmt] = []
        for s in block:
            match s:
                case For(var, extent, body, kind):
                    if extent == Ix(1):
                        self.indices[var] = Ix(0)
                        out.extend(self.block(body))
                        continue
                    size, new = self.form(extent), self.fresh(var)
                    self.indices[var] = ix(new)
                    out.append(For(new, size, self.block(body), kind))
                case Alloc(buffer):
                    out.append(
                        Alloc(replace(buffer, name=self.fresh(buffer.name), shape=(), strides=()))
                    )
                case Let(name, value, bound):
                    value, new = self.expr(value), self.fresh(name)
                    self.indices[name] = ix(new)
                    out.append(Let(new, value, bound))
                case If(cond, then, orelse):
                    out.append(If(self.expr(cond), self.block(then), self.block(orelse)))
                case Store(buffer, index, value):
                    at = tuple(self.form(i) for i in index)
                    out.append(Store(self.names.get(buffer, buffer), at, self.expr(value)))
                case _:
                    out.append(s)
        return tuple(out)

    def fresh(self, name: str) -> str:
        self.names[name] = f"%{len(self.names)}"
        return self.names[name]

    def form(self, form: Ix) -> Ix:
        return simplify(substitute(form, self.indices), {})

    def expr(self, e: Expr) -> Expr:
        match e:
            case Load(buffer, index, dtype):
                return Load(
                    self.names.get(buffer, buffer), tuple(self.form(i) for i in index), dtype
                )
            case FromIndex(index, dtype):
                return _folded(FromIndex(self.form(index), dtype))
            case Ref(name, dtype):
                return Ref(self.names.get(name, name), dtype)
            case _:
                return map_children(e, self.expr)


def _folded(e: Expr) -> Expr:
    """Forms that became numbers, as the literals that lowering writes."""
    match e:
        case FromIndex(form, dtype) if form.is_const:
            return _literal(form.const, dtype)
        case _:
            new = map_children(e, _folded)
    match new:
        case Binary("div", Const(1.0), Const(b, dtype)) if dtype.is_float:
            return Const(1.0 / b, dtype)
        case Binary("mul", Const(a, dtype), Const(b)) if new is not e:
            return Const(a * b, dtype)
        case _:
            return new


def _literal(n: int, dtype: DType) -> Const:
    return Const(float(n) if dtype.is_float else n, dtype)


class _Merger:
    """Walks all kernels at once."""

    def __init__(self, points: Sequence[Point]) -> None:
        self.points = points

    def kernel(self, kernels: Sequence[Kernel]) -> Kernel:
        first = kernels[0]
        lists = [k.params for k in kernels]
        if any(len(x) != len(lists[0]) for x in lists):
            raise Different("another number of parameters")
        for row in zip(*lists, strict=True):
            if len({(p.buffer.name, p.buffer.dtype, p.buffer.space, p.role) for p in row}) > 1:
                raise Different(f"parameter {row[0].buffer.name} is another")
        return replace(first, body=self.block([k.body for k in kernels]))

    def block(self, blocks: Sequence[Block]) -> Block:
        if any(len(b) != len(blocks[0]) for b in blocks):
            raise Different("another number of statements")
        return tuple(self.node(row) for row in zip(*blocks, strict=True))

    def node(self, row: Sequence[Any]) -> Any:
        """Merge values of one field, or nodes of one kind."""
        first = row[0]
        if all(x is first for x in row):
            return first
        if any(type(x) is not type(first) for x in row):
            raise Different(
                f"{_kind(first)} becomes {_kind(next(x for x in row if type(x) is not type(first)))}"
            )
        match first:
            case Ix():
                return self.form(row)
            case Const():
                return self.literal(row)
            case Let():
                return self.let(row)
            case Buffer():
                return self.buffer(row)
            case tuple():
                if any(len(x) != len(first) for x in row):
                    raise Different("lists of another length")
                return tuple(self.node(r) for r in zip(*row, strict=True))
            case For():
                if len({(f.var, f.kind) for f in row}) > 1:
                    raise Different(f"loop {first.var} is another")
                return For(
                    first.var,
                    self.form([f.extent for f in row]),
                    self.block([f.body for f in row]),
                    first.kind,
                )
            case _ if is_dataclass(first) and not isinstance(first, DType):
                names = [f.name for f in fields(first)]
                new = {n: self.node([getattr(x, n) for x in row]) for n in names}
                return replace(first, **new)  # type: ignore[type-var]
            case _:
                if any(x != first for x in row):
                    raise Different(f"{first} becomes {next(x for x in row if x != first)}")
                return first

    # ---- numbers

    def form(self, row: Sequence[Ix]) -> Ix:
        """A form whose terms are those of all, and whose constant depends on the sizes."""
        if all(x == row[0] for x in row):
            return row[0]
        out = self.number([x.const for x in row])
        sorted_terms = [sorted(x.terms, key=lambda t: _skeleton(t[0])) for x in row]
        if any(len(t) != len(sorted_terms[0]) for t in sorted_terms):
            raise Different(
                f"index {row[0]} becomes {next(x for x in row if len(x.terms) != len(row[0].terms))}"
            )
        for terms in zip(*sorted_terms, strict=True):
            coefs = {c for _, c in terms}
            if len(coefs) > 1:
                raise Different(f"an index has a factor that depends on a size ({row[0]})")
            out = out + Ix(0, ((self.atom([a for a, _ in terms]), terms[0][1]),))
        return out

    def atom(self, row: Sequence[Atom]) -> Atom:
        first = row[0]
        if all(x == first for x in row):
            return first
        match first:
            case FloorDiv() | Mod() if all(type(x) is type(first) for x in row):
                if len({x.den for x in row}) > 1:  # type: ignore[union-attr]
                    raise Different("an index is divided by a size")
                return type(first)(self.form([x.num for x in row]), first.den)  # type: ignore[union-attr]
            case Extremum() if all(isinstance(x, Extremum) and x.op == first.op for x in row):
                sides = [(x.a, x.b) for x in row if isinstance(x, Extremum)]
                return Extremum(
                    first.op, self.form([a for a, _ in sides]), self.form([b for _, b in sides])
                )
            case _:
                raise Different(f"index {_skeleton(first)} becomes another")

    def number(self, values: Sequence[int]) -> Ix:
        found = fit(self.points, values)
        if found is None:
            raise Different(f"a number that depends on the sizes in no known way ({values[0]})")
        return found

    def literal(self, row: Sequence[Const]) -> Expr:
        first = row[0]
        if all(x == first for x in row):
            return first
        if any(x.dtype is not first.dtype for x in row) or first.dtype is BOOL:
            raise Different(f"literal {first.value} becomes another")
        values = [x.value for x in row]
        whole = self.whole(values, first.dtype)
        if whole is not None:
            return whole
        if first.dtype.is_float and all(
            v != 0 for v in values
        ):  # means divide by the number of elements
            inverse = [1.0 / v for v in values]
            near = [round(v) for v in inverse]
            if all(n and 1.0 / n == v for n, v in zip(near, values, strict=True)):
                under = self.whole(near, first.dtype)
                if under is not None:
                    return Binary("div", Const(1.0, first.dtype), under)
        raise Different(f"a literal that depends on the sizes in no known way ({first.value})")

    def whole(self, values: Sequence[float], dtype: DType) -> Expr | None:
        """Whole numbers as a form, or as a product of two."""
        if any(not math.isfinite(v) or v != int(v) for v in values):
            return None
        numbers = [int(v) for v in values]
        found = fit(self.points, numbers)
        if found is not None:
            return FromIndex(found, dtype)
        product = fit_product(self.points, numbers)
        if product is None:
            return None
        return Binary("mul", FromIndex(product[0], dtype), FromIndex(product[1], dtype))

    # ---- names that are bound

    def let(self, row: Sequence[Let]) -> Let:
        first = row[0]
        if any(x.name != first.name or (x.range is None) != (first.range is None) for x in row):
            raise Different(f"`{first.name}` is another")
        bound = first.range
        if bound is not None:
            bound = (
                min(x.range[0] for x in row if x.range), max(x.range[1] for x in row if x.range)
            )  # fmt: skip
        return Let(first.name, self.node([x.value for x in row]), bound)

    def buffer(self, row: Sequence[Buffer]) -> Buffer:
        """Scratch as large as anywhere."""
        first = row[0]
        if len({(b.name, b.dtype, b.space, len(b.shape)) for b in row}) > 1:
            raise Different(f"scratch {first.name} is another")
        shape = tuple(max(n) for n in zip(*(b.shape for b in row), strict=True))
        return dense(first.name, first.dtype, shape, first.space)


def _skeleton(atom: Atom) -> str:
    """An atom without its numbers: terms of one skeleton belong together."""
    match atom:
        case str():
            return f"0{atom}"
        case FloorDiv(num, den):
            return f"1//{den}({_inside(num)})"
        case Mod(num, den):
            return f"2%{den}({_inside(num)})"
        case Extremum(op, a, b):
            return f"3{op}({_inside(a)},{_inside(b)})"


def _inside(form: Ix) -> str:
    return "+".join(sorted(_skeleton(a) for a, _ in form.terms))


def _kind(x: object) -> str:
    return type(x).__name__.lower()
