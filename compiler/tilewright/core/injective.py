"""Whether different iterations of a loop touch different elements.

In: two indices, the loop's variable, ranges of those bound inside. Out: yes or no, whatever outer variables are.
Invariant: a yes is a proof. What `fuse` and `split` make of loops is understood: digits `n // a % b` of one linear
form n, which together say what n is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from math import gcd, lcm

from tilewright.core.index import (
    Atom,
    Extremum,
    FloorDiv,
    Ix,
    Mod,
    Ranges,
    bounds,
    coefficient,
    ix,
    substitute,
    variables,
)

Index = tuple[Ix, ...]
Span = tuple[int, int]

#: So many values of the linear form are looked at; longer periods are not proved.
MAX_PERIOD = 1 << 14

#: Ends the name of an inner variable in the other iteration.
_OTHER = "'"
#: More than any index.
_FAR = 1 << 62


@lru_cache(maxsize=65536)
def apart(a: Index, b: Index, bound: tuple[tuple[str, Span | None], ...]) -> bool:
    """Whether an iteration of a loop never meets at `b` what another one has at `a`.

    `bound` holds the loop's variable, then those bound inside the loop, with their ranges (None where unknown). Inner
    variables may differ between the two iterations; all others are the same.
    """
    var = bound[0][0]
    ranges = {at: span for v, span in bound if span for at in (v, v + _OTHER)}
    renamed = {v: ix(v + _OTHER) for v, _ in bound}
    forms = []  # of which equal indices say that they are equal
    fixed: list[Atom] = []  # the same, without the loop's variable
    for x, y in zip(a, b, strict=True):
        moving, rest = _parts(x, var)
        same, other = _parts(y, var)
        if moving != same:
            continue
        between = rest - substitute(other, renamed)
        low, high = _bounds(between, ranges)
        if not moving.terms:
            if low > 0 or high < 0:
                return True
            if x == y and len(x.terms) == 1:
                fixed.append(x.terms[0][0])
        if _alone(moving - substitute(moving, renamed), between, ranges):
            forms.append(moving)
    if any(coefficient(form, var) for form in forms):
        return True
    for base in _bases(forms, var):
        rest = _parts(base, var)[1]
        width = _bounds(rest - substitute(rest, renamed), ranges)[1]
        factor = coefficient(base, var) or 0
        low, high = _bounds(rest, ranges)
        grain = factor if low >= 0 and high < factor else 0
        if width < abs(factor) and _told_apart(forms, fixed, base, var, grain):
            return True
    return False


def _alone(moving: Ix, rest: Ix, ranges: Ranges) -> bool:
    """Whether two differences that add up to zero must both be zero.

    What is added to the digits of a number is finer than their steps, or coarser than all of them together.
    """
    step = gcd(*(c for _, c in moving.terms))
    span = _bounds(moving, ranges)[1]
    for coarse in {_FAR, *(abs(c) for _, c in rest.terms)}:
        terms = tuple((a, c) for a, c in rest.terms if c % coarse)
        low, high = _bounds(Ix(rest.const, terms), ranges)
        fine = max(-low, high)
        if fine < step and (coarse == _FAR or span + fine < coarse):
            return True
    return False


def _bounds(form: Ix, ranges: Ranges) -> Span:
    low, high = bounds(form, ranges)
    return (-_FAR if low is None else low), (_FAR if high is None else high)


def _parts(form: Ix, var: str) -> tuple[Ix, Ix]:
    """The terms that change with `var`, and the rest."""
    moving = Ix(0, tuple(_moving(form, var)))
    return moving, form - moving


def _told_apart(forms: list[Ix], fixed: list[Atom], base: Ix, var: str, grain: int) -> bool:
    """Whether those forms that are made of digits of `base` say together what it is, or what `base // grain` is, which
    is `var` (`grain` 0: unknown). `fixed`: digits that loops inside decide alone, as `var` moves `base` by whole
    periods of them."""
    if not coefficient(base, var):
        return False
    of_base = [f for f in forms if _is_made_of(f, base, var)]
    alone = [next(_moving(f, var))[0] for f in forms if len(list(_moving(f, var))) == 1]
    digits: list[tuple[int, int | None]] = []
    for atom in (*alone, *fixed):
        with suppress(_NoDigitError):
            digits.append(_digit(atom, base, var, grain))
    return any(_tiled(digits, known) for known in {1, grain or 1}) or _enumerated(
        of_base, base, var
    )


def _is_made_of(form: Ix, base: Ix, var: str) -> bool:
    try:
        _value(form, base, var, 0)
        list(_periods(form, var))
    except _NoDigitError:
        return False
    return True


def clamped(form: Ix, var: str) -> bool:
    """Whether `var` is held between bounds in `form`."""
    return any(
        isinstance(a, Extremum) and var in variables(Ix(0, ((a, 1),))) for a, _ in form.terms
    )


class _NoDigitError(Exception):
    """Something else than digits of the linear form."""


def _tiled(digits: list[tuple[int, int | None]], known: int) -> bool:
    """Whether digits that stand alone in their dims say together what a number is that is known modulo `known`, or
    what it is in whole units of that."""
    while True:
        for low, high in digits:
            if known % low == 0 and (high is None or (high > known and high % known == 0)):
                break
        else:
            return False
        if high is None:
            return True
        known = high


def _digit(atom: Atom, base: Ix, var: str, grain: int) -> tuple[int, int | None]:
    """a and b of `base // a % (b / a)`, or None for b where there is no remainder."""
    if not isinstance(atom, FloorDiv | Mod):
        raise _NoDigitError
    low, high = _whole(atom, base, var, grain)
    if isinstance(atom, FloorDiv):
        return low * atom.den, high
    return low, low * atom.den if high is None else min(high, low * atom.den)


def _whole(atom: FloorDiv | Mod, base: Ix, var: str, grain: int) -> tuple[int, int | None]:
    """The digit that `atom` divides; one that differs from it by whole periods of a remainder will do."""
    period = atom.den if isinstance(atom, Mod) else 0
    if _same(atom.num, base, period):
        return 1, None
    quotient = _quotient(atom.num)
    if quotient is not None and _same(quotient[0], base, period * quotient[1]):
        return quotient[1], None
    if grain and _same(atom.num * grain, ix(var) * grain, period * grain):
        return grain, None
    if len(atom.num.terms) != 1 or atom.num.const or atom.num.terms[0][1] != 1:
        raise _NoDigitError
    low, high = _digit(atom.num.terms[0][0], base, var, grain)
    if high is not None and high % (low * atom.den):
        raise _NoDigitError
    return low, high


def _same(form: Ix, base: Ix, period: int) -> bool:
    rest = base - form
    numbers = (rest.const, *(c for _, c in rest.terms))
    return not any(n % period if period else n for n in numbers)


def _quotient(form: Ix) -> tuple[Ix, int] | None:
    """n and d of n // d, also where whole multiples of d have been taken out of n."""
    divisions = [(a, c) for a, c in form.terms if not isinstance(a, str)]
    if len(divisions) != 1 or divisions[0][1] != 1 or not isinstance(divisions[0][0], FloorDiv):
        return None
    division = divisions[0][0]
    rest = form - Ix(0, ((division, 1),))
    return division.num + rest * division.den, division.den


def _enumerated(forms: list[Ix], base: Ix, var: str) -> bool:
    """The same by looking at one period of `base`, for digits that are added up."""
    period = lcm(*(d for form in forms for d in _periods(form, var)))
    if period > MAX_PERIOD:
        return False
    rows = [tuple(_value(f, base, var, n) for f in forms) for n in range(period + 1)]
    # n + period is n moved by `step`: distinct for all n if distinct up to multiples of it
    step = tuple(b - a for a, b in zip(rows[0], rows[-1], strict=True))
    axis = next((i for i, s in enumerate(step) if s), None)
    if axis is None:
        return False
    seen = {
        tuple(v - row[axis] // step[axis] * s for v, s in zip(row, step, strict=True))
        for row in rows[:-1]
    }
    return len(seen) == period


def _moving(form: Ix, var: str) -> Iterator[tuple[Atom, int]]:
    """The terms that change with `var`."""
    return ((a, c) for a, c in form.terms if var in variables(Ix(0, ((a, 1),))))


def _bases(forms: list[Ix], var: str) -> list[Ix]:
    """Linear forms that may be what all digits are of."""
    found = dict.fromkeys(n for form in forms for n in _linear(form, var))
    return sorted(found, key=lambda n: -len(n.terms))


def _linear(form: Ix, var: str) -> Iterator[Ix]:
    for atom, _ in _moving(form, var):
        if isinstance(atom, FloorDiv | Mod):
            whole = _quotient(atom.num)
            for num in (atom.num, *(whole[:1] if whole else ())):
                if _plain(num):
                    yield num
            yield from _linear(atom.num, var)


def _periods(form: Ix, var: str) -> Iterator[int]:
    for atom, _ in _moving(form, var):
        if not isinstance(atom, FloorDiv | Mod):
            raise _NoDigitError
        whole = _quotient(atom.num)
        if whole is not None and _plain(whole[0]):
            yield atom.den * whole[1]
            continue
        inner = [1] if _plain(atom.num) else _periods(atom.num, var)
        yield from (atom.den * p for p in inner)


def _plain(form: Ix) -> bool:
    return all(isinstance(a, str) for a, _ in form.terms)


def _value(form: Ix, base: Ix, var: str, n: int) -> int:
    """What the terms with `var` add up to where `base` is n."""
    total = 0
    for atom, factor in _moving(form, var):
        if not isinstance(atom, FloorDiv | Mod):
            raise _NoDigitError
        period = atom.den if isinstance(atom, Mod) else 0
        quotient = _quotient(atom.num)
        if _same(atom.num, base, period):
            inner = n
        elif quotient is not None and _same(quotient[0], base, period * quotient[1]):
            inner = n // quotient[1]
        elif len(atom.num.terms) == len(list(_moving(atom.num, var))):
            inner = atom.num.const + _value(atom.num, base, var, n)
        else:
            raise _NoDigitError
        total += factor * (inner // atom.den if isinstance(atom, FloorDiv) else inner % atom.den)
    return total
