"""Index algebra: every rewrite keeps the value, bounds hold, text parses back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tilewright.core.index import (
    Ix,
    bounds,
    coefficient,
    evaluate,
    imax,
    imin,
    ix,
    simplify,
    substitute,
    to_text,
    variables,
)
from tilewright.loop.parse import _Tokens

RANGES = {"i": (0, 6), "j": (0, 13), "k": (2, 2)}


@st.composite
def forms(draw: st.DrawFn, depth: int = 3) -> Ix:
    if depth == 0:
        return draw(st.sampled_from([ix("i"), ix("j"), ix("k"), Ix(0), Ix(1), Ix(5), Ix(-3)]))
    kind = draw(st.sampled_from(["leaf", "add", "sub", "mul", "div", "mod", "min", "max"]))
    a = draw(forms(depth - 1))
    match kind:
        case "leaf":
            return a
        case "mul":
            return a * draw(st.integers(-4, 4))
        case "div":
            return a // draw(st.integers(1, 7))
        case "mod":
            return a % draw(st.integers(1, 7))
    b = draw(forms(depth - 1))
    return {"add": a + b, "sub": a - b, "min": imin(a, b), "max": imax(a, b)}[kind]


envs = st.fixed_dictionaries({n: st.integers(lo, hi) for n, (lo, hi) in RANGES.items()})


@given(forms(), envs)
def test_simplify_keeps_the_value(form: Ix, env: dict[str, int]) -> None:
    assert evaluate(simplify(form, RANGES), env) == evaluate(form, env)


@given(forms())
def test_simplify_is_idempotent(form: Ix) -> None:
    once = simplify(form, RANGES)
    assert simplify(once, RANGES) == once


@given(forms(), envs)
def test_bounds_hold(form: Ix, env: dict[str, int]) -> None:
    lo, hi = bounds(form, RANGES)
    assert lo is not None and hi is not None
    assert lo <= evaluate(form, env) <= hi


@given(forms(), forms(2), envs)
def test_substitution_commutes_with_evaluation(form: Ix, new: Ix, env: dict[str, int]) -> None:
    replaced = substitute(form, {"i": new})
    assert evaluate(replaced, env) == evaluate(form, {**env, "i": evaluate(new, env)})


@given(forms(), envs)
def test_coefficient_is_the_slope(form: Ix, env: dict[str, int]) -> None:
    slope = coefficient(form, "j")
    if slope is not None:
        up = evaluate(form, {**env, "j": env["j"] + 1})
        assert up - evaluate(form, env) == slope


@given(forms())
def test_text_parses_back(form: Ix) -> None:
    tokens = _Tokens(to_text(form))
    back = tokens.index()
    tokens.end()
    assert simplify(back, RANGES) == simplify(form, RANGES)


def test_division_and_remainder_recombine() -> None:
    x = ix("x")
    ranges = {"x": (0, 10_000)}
    assert simplify((x // 12) * 12 + x % 12, ranges) == x
    assert simplify((x // 35) * 35 + ((x // 5) % 7) * 5 + x % 5, ranges) == x
    assert simplify((ix("o") * 32 + ix("i")) // 32, {"o": (0, 9), "i": (0, 31)}) == ix("o")
    assert simplify((ix("o") * 32 + ix("i")) % 32, {"o": (0, 9), "i": (0, 31)}) == ix("i")


def test_minimum_vanishes_where_ranges_decide() -> None:
    form = imin(14, 56 - ix("o") * 14)
    assert simplify(form, {"o": (0, 3)}) == Ix(14)
    assert variables(simplify(imin(14, 50 - ix("o") * 14), {"o": (0, 3)})) == {"o"}
