"""Check a kernel's invariants; prove that no access leaves its buffer.

In: a `Kernel`. Out: nothing, or an `IRError` that names the statement.
The bounds proof is interval analysis after eliminating loop variables innermost first: a form that
grows with a variable is largest at its last iteration, whose value may depend on outer variables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tilewright.core.dtypes import BOOL, I64
from tilewright.core.index import (
    Extremum,
    FloorDiv,
    Ix,
    Mod,
    bounds,
    coefficient,
    simplify,
    substitute,
    variables,
)
from tilewright.errors import IRError
from tilewright.loop import mma
from tilewright.loop.ir import (
    Alloc,
    Binary,
    Bitcast,
    Block,
    Buffer,
    Const,
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
    Ref,
    Select,
    Store,
    Unary,
)
from tilewright.loop.rewrite import children
from tilewright.loop.sharing import wrong_sharing

_FLOAT_ONLY = frozenset({"sqrt", "rsqrt", "exp", "log", "tanh", "erf", "sigmoid", "sin", "cos"})


@dataclass(slots=True)
class _Scope:
    """Names visible at a point: loops (outermost first) with extents, lets, buffers."""

    loops: dict[str, Ix] = field(default_factory=dict[str, Ix])
    ranges: dict[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    lets: dict[str, object] = field(default_factory=dict[str, object])
    buffers: dict[str, Buffer] = field(default_factory=dict[str, Buffer])
    vector: bool = False
    inside: bool = False  # of a loop that is not one of blocks
    threads: tuple[str, ...] = ()  # loops of threads, outermost first
    diverged: bool = (
        False  # in a branch or a loop that threads of a warp may leave at different times
    )

    most: dict[FloorDiv, int] = field(default_factory=dict[FloorDiv, int])
    """Upper bounds of quotients that a condition implies."""

    def child(self) -> _Scope:
        return _Scope(
            dict(self.loops), dict(self.ranges), dict(self.lets), dict(self.buffers),
            self.vector, self.inside, self.threads, self.diverged, dict(self.most),
        )  # fmt: skip


def verify(kernel: Kernel) -> None:
    """Raise `IRError` if the kernel is malformed or an access cannot be proved in bounds."""
    unproved = _Verifier(kernel).run()
    if unproved:
        raise IRError(f"{kernel.name}: {unproved[0]}")


def prove_bounds(kernel: Kernel) -> list[str]:
    """The accesses that cannot be proved to stay inside their buffers (none: all proved)."""
    return _Verifier(kernel).run()


class _Verifier:
    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.unproved: list[str] = []
        self.readonly = {p.buffer.name for p in kernel.params if p.role != "out"}

    def run(self) -> list[str]:
        scope = _Scope(buffers={p.buffer.name: p.buffer for p in self.kernel.params})
        if len(scope.buffers) != len(self.kernel.params):
            raise self.error("two parameters have the same name")
        self.block(self.kernel.body, scope)
        if reason := wrong_sharing(self.kernel):
            raise self.error(reason)
        return self.unproved

    def error(self, text: str) -> IRError:
        return IRError(f"{self.kernel.name}: {text}")

    def block(self, block: Block, scope: _Scope) -> None:
        scope = scope.child()
        for s in block:
            match s:
                case For():
                    self.loop(s, scope)
                case Store(buffer, index, value):
                    self.access(buffer, index, scope)
                    self.expr(value, scope)
                    if buffer in self.readonly:
                        raise self.error(f"`{buffer}` is an input and is stored to")
                    if value.dtype is not scope.buffers[buffer].dtype:
                        raise self.error(f"a {value.dtype} is stored to {buffer}")
                case Let(name, value, bound):
                    self.expr(value, scope)
                    if name in scope.lets or name in scope.loops:
                        raise self.error(f"`{name}` is bound twice")
                    scope.lets[name] = value.dtype
                    if bound is not None:
                        if value.dtype is not I64:
                            raise self.error(f"index variable `{name}` is {value.dtype}, not i64")
                        scope.ranges[name] = bound
                case If(cond, then, orelse):
                    self.expr(cond, scope)
                    if cond.dtype is not BOOL:
                        raise self.error("a condition is not bool")
                    self.block(then, self.narrowed(cond, scope, True))
                    self.block(orelse, self.narrowed(cond, scope, False))
                case Mma():
                    self.mma(s, scope)
                case Alloc(buffer):
                    if buffer.name in scope.buffers:
                        raise self.error(f"buffer `{buffer.name}` is bound twice")
                    if buffer.space == "shared" and scope.threads:
                        raise self.error(f"`{buffer.name}` is shared, but allocated by a thread")
                    scope.buffers[buffer.name] = buffer
                case _:
                    raise self.error(f"unknown statement {s}")

    def narrowed(self, cond: Expr, scope: _Scope, holds: bool) -> _Scope:
        """Use a condition of the form variable < constant for the ranges inside a branch."""
        inner = scope.child()
        inner.diverged |= bool(scope.threads)
        match cond:
            case Binary("lt", FromIndex(Ix(0, ((str(var), 1),)), _), c) if hasattr(c, "value"):
                lo, hi = scope.ranges[var]
                limit = int(c.value)
                inner.ranges[var] = (lo, min(hi, limit - 1)) if holds else (max(lo, limit), hi)
                inner.loops[var] = Ix(inner.ranges[var][1] + 1)
            case Binary("lt", FromIndex(Ix(0, ((str(var), 1),)), _), FromIndex(form, _)) if holds:
                _, top = bounds(form, scope.ranges)
                if top is not None and var in scope.ranges:
                    lo, hi = scope.ranges[var]
                    inner.ranges[var] = (lo, max(lo, min(hi, top - 1)))
                    inner.loops[var] = form
            case Binary("gt", FromIndex(Ix(0, ((Mod(num, den), 1),)), _), Const(0)) if holds:
                _, top = bounds(num, scope.ranges)
                if top is not None:  # something is left, so the whole pieces end before it
                    inner.most[FloorDiv(num, den)] = (top - 1) // den
        return inner

    def loop(self, s: For, scope: _Scope) -> None:
        if s.var in scope.loops or s.var in scope.lets:
            raise self.error(f"loop `{s.var}` shadows another name")
        unknown = variables(s.extent) - set(scope.ranges)
        if unknown:
            raise self.error(f"the extent of `{s.var}` uses the unbound `{min(unknown)}`")
        if s.kind == "vector" and any(isinstance(b, For | If | Alloc) for b in s.body):
            raise self.error(f"vector loop `{s.var}` is not innermost")
        inner = scope.child()
        _, hi = bounds(s.extent, scope.ranges)
        if hi is None:
            raise self.error(f"the extent of `{s.var}` has no bound")
        self.axis(s, scope, inner)
        inner.loops[s.var] = s.extent
        inner.ranges[s.var] = (0, max(hi - 1, 0))
        inner.vector |= s.kind == "vector"
        self.block(s.body, inner)

    def axis(self, s: For, scope: _Scope, inner: _Scope) -> None:
        """Blocks enclose everything else, threads are nested in each other without anything between."""
        if s.kind == "block" and (scope.inside or scope.threads or not s.extent.is_const):
            raise self.error(f"blocks `{s.var}` are inside another loop, or of varying number")
        inner.inside |= s.kind != "block"
        if s.kind == "thread":
            if scope.threads and list(scope.loops)[-1] != scope.threads[-1]:
                raise self.error(f"threads `{s.var}` start inside another loop of threads")
            inner.threads = (*scope.threads, s.var)
            inner.diverged |= not s.extent.is_const
        else:
            inner.diverged |= bool(variables(s.extent) & set(scope.threads))

    def mma(self, s: Mma, scope: _Scope) -> None:
        """All lanes of a warp take part: they are the innermost loop of threads."""
        lane = scope.threads[-1] if scope.threads else ""
        whole = s.lane == Ix(0, ((lane, 1),)) and scope.loops[lane] == Ix(mma.LANES)
        if not whole or scope.diverged or scope.vector:
            raise self.error(f"a `mma` by {s.lane}: it wants the innermost 32 threads, all of them")
        own = mma.ranges(s)
        taken = own.keys() & (scope.loops.keys() | scope.lets.keys())
        if taken or len(own) != 3:
            raise self.error(f"a `mma` binds {', '.join(own)}: three new names are wanted")
        sums = mma.sum_type(s.a.dtype, s.b.dtype)
        if sums is None or s.extent not in mma.depths(s.a.dtype):
            raise self.error(f"no `mma` of {s.a.dtype} and {s.b.dtype} adds up {s.extent} products")
        if s.row in _names(s.b) or s.col in _names(s.a):
            raise self.error("operands of a `mma` are indexed by row and k, by k and column")
        held = scope.buffers.get(s.buffer)
        if held is None or held.shape[-1:] != (mma.HELD,) or held.dtype is not sums:
            raise self.error(f"`{s.buffer}` does not hold {mma.HELD} sums of {sums} per thread")
        self.access(s.buffer, (*s.index, Ix(mma.HELD - 1)), scope)
        inner = scope.child()
        inner.ranges.update(own)
        inner.loops.update({v: Ix(hi + 1) for v, (_, hi) in own.items()})
        self.expr(s.a, inner)
        self.expr(s.b, inner)

    def expr(self, root: Expr, scope: _Scope) -> None:
        seen: set[int] = set()
        stack = [root]
        while stack:
            e = stack.pop()
            if id(e) in seen:
                continue
            seen.add(id(e))
            match e:
                case FromIndex(index, _):
                    self.known(index, scope)
                case Unary(op, a) if op in _FLOAT_ONLY and not a.dtype.is_float:
                    raise self.error(f"`{op}` of {a.dtype}")
                case Bitcast(a, dtype) if a.dtype.bits != dtype.bits:
                    raise self.error(f"a bitcast of {a.dtype} to {dtype}")
                case Load(buffer, index, dtype):
                    self.access(buffer, index, scope)
                    if scope.buffers[buffer].dtype is not dtype:
                        raise self.error(f"{buffer} is loaded as {dtype}")
                case Binary(op, a, b):
                    if a.dtype is not b.dtype:
                        raise self.error(f"`{op}` of {a.dtype} and {b.dtype}")
                case Fma(a, b, c):
                    if not a.dtype is b.dtype is c.dtype:
                        raise self.error(f"fma of {a.dtype}, {b.dtype} and {c.dtype}")
                case Dot(var, n, a, b, c):
                    if not a.dtype is b.dtype is c.dtype:
                        raise self.error(f"dot of {a.dtype}, {b.dtype} and {c.dtype}")
                    if n < 1 or var in scope.loops or var in scope.lets:
                        raise self.error(f"dot over `{var}` in {n}: the name is taken or n < 1")
                    inner = scope.child()
                    inner.loops[var] = Ix(n)
                    inner.ranges[var] = (0, n - 1)
                    self.expr(a, inner)
                    self.expr(b, inner)
                    stack.append(c)
                    continue
                case Select(cond, a, b):
                    if cond.dtype is not BOOL or a.dtype is not b.dtype:
                        raise self.error(f"select on {cond.dtype} of {a.dtype} and {b.dtype}")
                case Ref(name, dtype):
                    if scope.lets.get(name) is not dtype:
                        raise self.error(f"`{name}` is not a visible {dtype}")
                case _:
                    pass
            stack.extend(children(e))

    def known(self, form: Ix, scope: _Scope) -> None:
        unknown = variables(form) - set(scope.ranges)
        if unknown:
            raise self.error(f"an index uses the unbound `{min(unknown)}`")

    def access(self, name: str, index: tuple[Ix, ...], scope: _Scope) -> None:
        buffer = scope.buffers.get(name)
        if buffer is None:
            raise self.error(f"buffer `{name}` is not visible here")
        if len(index) != len(buffer.shape):
            raise self.error(f"{name} has rank {len(buffer.shape)}, indexed with {len(index)}")
        for i, n in zip(index, buffer.shape, strict=True):
            self.known(i, scope)
            low = _extreme(i, scope, largest=False)
            high = _extreme(i, scope, largest=True)
            if low is None or high is None or low < 0 or high >= n:
                shown = ", ".join(map(str, index))
                self.unproved.append(
                    f"cannot prove {name}[{shown}] inside {list(buffer.shape)} ({i} is in [{low}, {high}])"
                )
                return


def _names(e: Load) -> set[str]:
    """Variables in the index of a load."""
    return {v for i in e.index for v in variables(i)}


def _extreme(form: Ix, scope: _Scope, largest: bool) -> int | None:
    """An upper (lower) bound of a form: what is known of quotients, else without it."""
    best = _eliminated(form, scope, largest)
    for atom, coef in form.terms:
        if isinstance(atom, FloorDiv) and atom in scope.most and (coef > 0) == largest:
            known = form - Ix(0, ((atom, coef),)) + coef * scope.most[atom]
            found = _extreme(known, scope, largest)
            if found is not None:
                best = found if best is None else (min if largest else max)(best, found)
    return best


def _eliminated(form: Ix, scope: _Scope, largest: bool) -> int | None:
    """An upper (lower) bound of a form: plain intervals, then elimination of loop variables."""
    lo, hi = bounds(form, scope.ranges)
    best = hi if largest else lo
    quotients = _by_quotients(form, scope, largest)
    if quotients is not None:
        best = quotients if best is None else (min if largest else max)(best, quotients)
    for var, extent in reversed(scope.loops.items()):
        coef = coefficient(form, var)
        if not coef:
            continue
        if (coef > 0) != largest:
            form = substitute(form, {var: Ix(0)})
            continue
        forms = [substitute(form, {var: e - 1}) for e in _sides(extent)]
        found = [_tighter(simplify(f, scope.ranges), scope.ranges, largest) for f in forms]
        known = [f for f in found if f is not None]
        if known:
            value = min(known) if largest else max(known)
            best = value if best is None else (min if largest else max)(best, value)
        form = forms[0]
        if len(forms) > 1:  # keep the side that depends on the outer loops
            form = max(forms, key=lambda f: len(f.terms) if variables(f) else 0)
    return best


def _by_quotients(form: Ix, scope: _Scope, largest: bool) -> int | None:
    """A bound of a form with quotients: each grows with its numerator, so that bounds of those bound it.

    The first quotient takes in the terms that are multiples of its coefficient, which may belong
    together: 10 * i + j // 5 is (50 * i + j) // 5.
    """
    quotients = [(atom, coef) for atom, coef in form.terms if isinstance(atom, FloorDiv)]
    if not quotients:
        return None
    first, unit = quotients[0]
    total = form.const
    rest = Ix(0)
    numerator = first.num
    for atom, coef in form.terms:
        if isinstance(atom, FloorDiv):
            continue
        term = Ix(0, ((atom, 1),))
        if coef % unit == 0:
            numerator = numerator + term * (coef // unit * first.den)
        else:
            rest = rest + term * coef
    merged = [(numerator, first.den, unit), *((q.num, q.den, c) for q, c in quotients[1:])]
    for num, den, coef in merged:
        bound = _extreme(num, scope, largest == (coef > 0))
        if bound is None:
            return None
        total += coef * (bound // den)
    others = _extreme(rest, scope, largest)
    return None if others is None else total + others


def _tighter(form: Ix, ranges: Mapping[str, tuple[int, int]], largest: bool) -> int | None:
    lo, hi = bounds(form, ranges)
    return hi if largest else lo


def _sides(form: Ix) -> list[Ix]:
    """All ways to replace the minima of a form by one of their sides: each is an upper bound."""
    for atom, coef in form.terms:
        if isinstance(atom, Extremum) and atom.op == "min" and coef > 0:
            rest = form - Ix(0, ((atom, coef),))
            return [*_sides(rest + atom.a * coef), *_sides(rest + atom.b * coef)]
    return [form]
