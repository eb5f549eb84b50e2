"""Sizes that a model leaves open: names for dims that are known when it runs.

In: ranges that a user gives (`tokens=1..512`, `height=32..640:32`). Out: `Size`s, points to look at, forms
fitted to what was seen there.
Invariant: a size is `step` times its variable, so that what is whole in the model (a half of a multiple of 32)
is a whole number of variables here.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from tilewright.core.index import Ix, evaluate, ix

#: The value of every size's variable.
Point = Mapping[str, int]

_RANGE = re.compile(r"(\d+)\.\.(\d+)(?::(\d+))?\Z")
#: Divisors that are tried where a dim is not linear in a size (strided convolutions, pooling).
_DIVISORS = (2, 3, 4, 5, 6, 8, 10, 12, 16, 32)


@dataclass(frozen=True, slots=True)
class Size:
    """A dim that may be any multiple of `step` from `low` to `high`; `var` is `size / step` in indices."""

    name: str
    low: int
    high: int
    step: int = 1
    var: str = ""

    def __str__(self) -> str:
        step = f":{self.step}" if self.step > 1 else ""
        return f"{self.name}={self.low}..{self.high}{step}"

    @property
    def range(self) -> tuple[int, int]:
        """Inclusive range of the variable."""
        return self.low // self.step, self.high // self.step

    def holds(self, value: int) -> bool:
        """Whether the size may have this value."""
        return self.low <= value <= self.high and value % self.step == 0


def parse_size(name: str, text: str) -> Size | None:
    """`LOW..HIGH` or `LOW..HIGH:STEP`; None if it is not a range. Raises `ValueError` for a bad one."""
    found = _RANGE.match(text.strip())
    if found is None:
        return None
    low, high, step = int(found[1]), int(found[2]), int(found[3] or 1)
    if step < 1 or low < 1 or high <= low:
        raise ValueError(f"{name}={text}: a range goes from at least 1 to something larger")
    if low % step or high % step:
        raise ValueError(f"{name}={text}: both ends must be multiples of {step}")
    return Size(name, low, high, step)


def values_at(sizes: Sequence[Size], point: Point) -> dict[str, int]:
    """The sizes themselves, by name."""
    return {s.name: s.step * point[s.var] for s in sizes}


def points_to_fit(sizes: Sequence[Size]) -> list[Point]:
    """Points in the upper half of all ranges, the bound first; each size also moves alone."""
    top = {s.var: s.range[1] for s in sizes}
    found: list[Point] = [top]
    for s in sizes:
        lo, hi = s.range
        least = max(lo, (lo + hi) // 2)
        found += [{**top, s.var: v} for v in range(hi - 1, max(least, hi - 5) - 1, -1)]
        found.append({**top, s.var: least})
    rng = random.Random(len(sizes))
    for _ in range(3 if len(sizes) > 1 else 1):
        found.append(
            {s.var: rng.randint(max(s.range[0], sum(s.range) // 2), s.range[1]) for s in sizes}
        )
    return _distinct(found)


def points_to_check(sizes: Sequence[Size], seed: int = 7) -> list[Point]:
    """Points all over the ranges, the ends first."""
    rng = random.Random(seed)
    low = {s.var: s.range[0] for s in sizes}
    found: list[Point] = [low]
    for s in sizes:
        lo, hi = s.range
        found += [{**low, s.var: min(lo + 1, hi)}, {**low, s.var: hi}]
    found.append({s.var: min(s.range[0] + 1, s.range[1]) for s in sizes})
    found += [{s.var: rng.randint(*s.range) for s in sizes} for _ in range(3)]
    return _distinct(found)


def _distinct(points: Sequence[Point]) -> list[Point]:
    return list({tuple(sorted(p.items())): p for p in points}.values())


# ---------------------------------------------------------------- fitting


def fit(points: Sequence[Point], values: Sequence[int]) -> Ix | None:
    """The form of the variables that has these values at these points: a constant, linear in the variables,
    or linear in a quotient of one of them."""
    if len(set(values)) == 1:
        return Ix(values[0])
    names = sorted(points[0])
    for count in (1, 2, 3):
        for chosen in combinations(names, count):
            found = _fit_linear(points, values, [ix(n) for n in chosen])
            if found is not None:
                return found
    for name in names:
        for den in _DIVISORS:
            for shift in range(den):
                found = _fit_linear(points, values, [(ix(name) + shift) // den])
                if found is not None:
                    return found
    return None


def fit_product(points: Sequence[Point], values: Sequence[int]) -> tuple[Ix, Ix] | None:
    """Two forms, each of one variable, whose product has these values."""
    names = sorted(points[0])
    top = points[0]
    for a, b in combinations(names, 2):
        along = [i for i, p in enumerate(points) if all(p[n] == top[n] for n in names if n != a)]
        first = _factor([points[i] for i in along], [values[i] for i in along])
        if first is None:
            continue
        rest: list[int] = []
        for p, v in zip(points, values, strict=True):
            f = evaluate(first, p)
            if f == 0 or v % f:
                break
            rest.append(v // f)
        else:
            second = fit(points, rest)
            if second is not None and b in str(second):
                return first, second
    return None


def _factor(points: Sequence[Point], values: Sequence[int]) -> Ix | None:
    """A form of one variable without a common factor in its terms."""
    found = fit(points, values)
    if found is None or found.is_const:
        return None
    unit = found.terms[0][1]
    if unit == 0 or found.const % unit or any(c % unit for _, c in found.terms):
        return found
    return Ix(found.const // unit, tuple((a, c // unit) for a, c in found.terms))


def _fit_linear(points: Sequence[Point], values: Sequence[int], terms: Sequence[Ix]) -> Ix | None:
    """const + sum(coefficient * term), by what changes when one term does."""
    rows = [[evaluate(t, p) for t in terms] for p in points]
    coefs: list[int] = []
    for k in range(len(terms)):
        step = next(
            (
                (v - values[0], r[k] - rows[0][k])
                for r, v in zip(rows, values, strict=True)
                if r[k] != rows[0][k]
                and all(r[j] == rows[0][j] for j in range(len(terms)) if j != k)
            ),
            None,
        )
        if step is None or step[0] % step[1]:
            return None
        coefs.append(step[0] // step[1])
    if not all(coefs):
        return None
    form = Ix(values[0] - sum(c * x for c, x in zip(coefs, rows[0], strict=True)))
    for c, t in zip(coefs, terms, strict=True):
        form = form + t * c
    return (
        form if all(evaluate(form, p) == v for p, v in zip(points, values, strict=True)) else None
    )
