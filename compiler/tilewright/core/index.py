"""Symbolic integer algebra for indices, extents and bounds.

An `Ix` is a linear form `const + sum(coef * atom)`; an atom is a variable name, a floor division or
remainder by a positive constant, or a minimum / maximum of two forms. Forms are canonical on
construction (sorted, no zero coefficients), so structural equality is a usable equality.
`simplify(ranges)` uses inclusive variable ranges to remove divisions, remainders and minima.
Invariant: every rewrite preserves the value for all variable values inside `ranges`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Union

Ranges = Mapping[str, tuple[int, int]]
IntLike = Union["Ix", int, str]


@dataclass(frozen=True, slots=True)
class FloorDiv:
    """Floor division of `num` by the positive constant `den`."""

    num: Ix
    den: int


@dataclass(frozen=True, slots=True)
class Mod:
    """Non-negative remainder of `num` by the positive constant `den`."""

    num: Ix
    den: int


@dataclass(frozen=True, slots=True)
class Extremum:
    """Minimum or maximum of two forms."""

    op: Literal["min", "max"]
    a: Ix
    b: Ix


Atom = Union[str, FloorDiv, Mod, Extremum]


@dataclass(frozen=True, slots=True)
class Ix:
    """A canonical linear form; build it with `ix`, the operators and the functions below."""

    const: int
    terms: tuple[tuple[Atom, int], ...] = ()

    def __add__(self, other: IntLike) -> Ix:
        o = ix(other)
        if not o.terms:
            return Ix(self.const + o.const, self.terms)
        return _make(self.const + o.const, [*self.terms, *o.terms])

    __radd__ = __add__

    def __neg__(self) -> Ix:
        return self * -1

    def __sub__(self, other: IntLike) -> Ix:
        return self + ix(other) * -1

    def __rsub__(self, other: IntLike) -> Ix:
        return ix(other) + self * -1

    def __mul__(self, k: int) -> Ix:
        if k == 0:
            return Ix(0)
        return Ix(self.const * k, tuple((a, c * k) for a, c in self.terms))

    __rmul__ = __mul__

    def __floordiv__(self, den: int) -> Ix:
        return _floordiv(self, den, {})

    def __mod__(self, den: int) -> Ix:
        return _mod(self, den, {})

    @property
    def is_const(self) -> bool:
        return not self.terms

    def __str__(self) -> str:
        return to_text(self)


def ix(value: IntLike) -> Ix:
    """Lift an int, a variable name or an `Ix` to an `Ix`."""
    if isinstance(value, Ix):
        return value
    if isinstance(value, str):
        return Ix(0, ((value, 1),))
    return Ix(int(value))


@lru_cache(maxsize=65536)
def _key(atom: Atom) -> str:
    return f"0{atom}" if isinstance(atom, str) else f"1{_atom_text(atom)}"


def _make(const: int, terms: list[tuple[Atom, int]]) -> Ix:
    acc: dict[Atom, int] = {}
    for atom, coef in terms:
        acc[atom] = acc.get(atom, 0) + coef
    kept = [(a, c) for a, c in acc.items() if c]
    kept.sort(key=lambda t: _key(t[0]))
    return Ix(const, tuple(kept))


def imin(a: IntLike, b: IntLike) -> Ix:
    """Minimum of two forms."""
    return _extremum("min", ix(a), ix(b), {})


def imax(a: IntLike, b: IntLike) -> Ix:
    """Maximum of two forms."""
    return _extremum("max", ix(a), ix(b), {})


def _extremum(op: Literal["min", "max"], a: Ix, b: Ix, ranges: Ranges) -> Ix:
    lo, hi = bounds(a - b, ranges)
    if hi is not None and hi <= 0:
        return a if op == "min" else b
    if lo is not None and lo >= 0:
        return b if op == "min" else a
    return Ix(0, ((Extremum(op, a, b), 1),))


def _floordiv(num: Ix, den: int, ranges: Ranges) -> Ix:
    if den == 1:
        return num
    whole = [(a, c // den) for a, c in num.terms if c % den == 0]
    rest = _make(num.const % den, [(a, c) for a, c in num.terms if c % den])
    out = _make(num.const // den, whole)
    lo, hi = bounds(rest, ranges)
    if lo is not None and hi is not None and lo // den == hi // den:
        return out + lo // den
    if len(rest.terms) == 1 and rest.const == 0 and rest.terms[0][1] == 1:
        atom = rest.terms[0][0]
        if isinstance(atom, FloorDiv):  # (x // a) // b == x // (a * b)
            return out + _floordiv(atom.num, atom.den * den, ranges)
    return out + Ix(0, ((FloorDiv(rest, den), 1),))


def _mod(num: Ix, den: int, ranges: Ranges) -> Ix:
    if den == 1:
        return Ix(0)
    rest = _make(num.const % den, [(a, c) for a, c in num.terms if c % den])
    lo, hi = bounds(rest, ranges)
    if lo is not None and hi is not None and lo // den == hi // den:
        return rest - (lo // den) * den
    if len(rest.terms) == 1 and rest.const == 0 and rest.terms[0][1] == 1:
        atom = rest.terms[0][0]
        if isinstance(atom, Mod) and atom.den % den == 0:  # (x % (k * d)) % d == x % d
            return _mod(atom.num, den, ranges)
    return Ix(0, ((Mod(rest, den), 1),))


def bounds(form: Ix, ranges: Ranges) -> tuple[int | None, int | None]:
    """Inclusive bounds of `form`; `None` where a variable without a range makes it unbounded."""
    lo: int | None = form.const
    hi: int | None = form.const
    for atom, coef in form.terms:
        a, b = _atom_bounds(atom, ranges)
        if coef < 0:
            a, b = b, a
        lo = None if lo is None or a is None else lo + coef * a
        hi = None if hi is None or b is None else hi + coef * b
    return lo, hi


def _atom_bounds(atom: Atom, ranges: Ranges) -> tuple[int | None, int | None]:
    match atom:
        case str():
            return ranges.get(atom, (None, None))
        case FloorDiv(num, den):
            lo, hi = bounds(num, ranges)
            return (None if lo is None else lo // den, None if hi is None else hi // den)
        case Mod(num, den):
            lo, hi = bounds(num, ranges)
            if lo is not None and hi is not None and lo // den == hi // den:
                return lo % den, hi % den
            return 0, den - 1
        case Extremum(op, a, b):
            (al, ah), (bl, bh) = bounds(a, ranges), bounds(b, ranges)
            if op == "min":
                his = [h for h in (ah, bh) if h is not None]
                return (None if al is None or bl is None else min(al, bl), min(his, default=None))
            los = [v for v in (al, bl) if v is not None]
            return (max(los, default=None), None if ah is None or bh is None else max(ah, bh))


def simplify(form: Ix, ranges: Ranges) -> Ix:
    """Rewrite bottom-up with the knowledge of `ranges` (inclusive bounds per variable)."""
    if not form.terms:
        return form
    out = Ix(form.const)
    for atom, coef in form.terms:
        out = out + _simplify_atom(atom, ranges) * coef
    return _recombine(out)


def _simplify_atom(atom: Atom, ranges: Ranges) -> Ix:
    match atom:
        case str():
            lo, hi = ranges.get(atom, (0, 1))
            return Ix(lo) if lo == hi and atom in ranges else Ix(0, ((atom, 1),))
        case FloorDiv(num, den):
            return _floordiv(simplify(num, ranges), den, ranges)
        case Mod(num, den):
            return _mod(simplify(num, ranges), den, ranges)
        case Extremum(op, a, b):
            return _extremum(op, simplify(a, ranges), simplify(b, ranges), ranges)


def _recombine(form: Ix) -> Ix:
    """c*d*(x // d) + c*(x % d) == c*x, also through nested divisions; runs to a fixed point."""
    while True:
        for atom, coef in form.terms:
            if not isinstance(atom, Mod):
                continue
            x, d = atom.num, atom.den
            whole: Atom = FloorDiv(x, d)
            if x.const == 0 and len(x.terms) == 1 and x.terms[0][1] == 1:
                inner = x.terms[0][0]
                if isinstance(inner, FloorDiv):
                    whole = FloorDiv(inner.num, inner.den * d)
            if dict(form.terms).get(whole) == coef * d:
                form = form - Ix(0, ((atom, coef), (whole, coef * d))) + x * coef
                break
        else:
            return form


def substitute(form: Ix, mapping: Mapping[str, Ix]) -> Ix:
    """Replace variables by forms (simultaneously)."""
    if not form.terms:
        return form
    out = Ix(form.const)
    for atom, coef in form.terms:
        match atom:
            case str():
                new = mapping.get(atom)
                out = out + (Ix(0, ((atom, 1),)) if new is None else new) * coef
            case FloorDiv(num, den):
                out = out + (substitute(num, mapping) // den) * coef
            case Mod(num, den):
                out = out + (substitute(num, mapping) % den) * coef
            case Extremum(op, a, b):
                out = out + _extremum(op, substitute(a, mapping), substitute(b, mapping), {}) * coef
    return out


def evaluate(form: Ix, env: Mapping[str, int]) -> int:
    """Value of `form` with every variable bound in `env`."""
    total = form.const
    for atom, coef in form.terms:
        match atom:
            case str():
                total += coef * env[atom]
            case FloorDiv(num, den):
                total += coef * (evaluate(num, env) // den)
            case Mod(num, den):
                total += coef * (evaluate(num, env) % den)
            case Extremum(op, a, b):
                pick: Callable[[int, int], int] = min if op == "min" else max
                total += coef * pick(evaluate(a, env), evaluate(b, env))
    return total


def variables(form: Ix) -> set[str]:
    """Names of all variables in `form`."""
    out: set[str] = set()
    for atom, _ in form.terms:
        match atom:
            case str():
                out.add(atom)
            case FloorDiv(num, _) | Mod(num, _):
                out |= variables(num)
            case Extremum(_, a, b):
                out |= variables(a) | variables(b)
    return out


def coefficient(form: Ix, var: str) -> int | None:
    """Coefficient of `var` if `form` is linear in it, else `None`."""
    coef = 0
    for atom, c in form.terms:
        if atom == var:
            coef = c
        elif not isinstance(atom, str) and var in variables(Ix(0, ((atom, 1),))):
            return None
    return coef


def _atom_text(atom: Atom) -> str:
    match atom:
        case str():
            return atom
        case FloorDiv(num, den):
            return f"({to_text(num)}) // {den}" if num.terms else f"{num.const} // {den}"
        case Mod(num, den):
            return f"({to_text(num)}) % {den}"
        case Extremum(op, a, b):
            return f"{op}({to_text(a)}, {to_text(b)})"


def to_text(form: Ix) -> str:
    """Readable text, e.g. `i*14 + ii + 3`; parses back with `loop.text`."""
    parts: list[str] = []
    for atom, coef in form.terms:
        text = _atom_text(atom)
        if isinstance(atom, FloorDiv | Mod) and coef != 1:
            text = f"({text})"
        body = text if abs(coef) == 1 else f"{text}*{abs(coef)}"
        sign = "-" if coef < 0 else "+"
        parts.append(f"{sign} {body}" if parts else (f"-{body}" if coef < 0 else body))
    if form.const or not parts:
        sign = "-" if form.const < 0 else "+"
        parts.append(f"{sign} {abs(form.const)}" if parts else str(form.const))
    return " ".join(parts)
