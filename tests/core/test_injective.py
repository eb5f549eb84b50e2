"""Which indices tell the iterations of a loop apart: compared with trying them all."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.core.index import Ix, evaluate, imin, ix, variables
from tilewright.core.injective import apart

V, OUTER = ix("v"), ix("o")
FUSED = OUTER * 8 + V
ALONE = (("v", None),)
INNER = ix("w")
NESTED = (("v", (0, 7)), ("w", (0, 3)))


@pytest.mark.parametrize("index", [
    (V,), (OUTER, V * 2 + OUTER), (V // 3, V % 3), ((V // 3) * 3 + V % 3,), (V // 12, V // 4 % 3, V % 4),
    (V // 12, V % 12 // 4, V % 4), (FUSED // 5, FUSED % 5), (FUSED // 6, FUSED % 6 // 2, OUTER, FUSED % 2),
    (V % 3 - (V // 3) * 3,), ((OUTER * 224 + V) // 448, (OUTER * 7 + V // 32) % 14, V % 32),
    ((OUTER * 207 + V) // 828, OUTER % 4, V // 69, V // 23 % 3, V % 23),
    (V % 17, ((OUTER * 255 + V) // 102) * 2, ((OUTER * 15 + V // 17) % 6) * 2),
], ids=str)  # fmt: skip
def test_apart(index: tuple[Ix, ...]) -> None:
    assert apart(index, index, ALONE)


@pytest.mark.parametrize("index", [
    (OUTER,), (V // 2,), (V % 2,), (V // 4, V % 2), (V // 2, (V + 1) % 2), (V // 3 + V % 3,), (imin(V, 3),),
    ((V // 3) * 2 + V % 3,), (FUSED // 5, V % 5), ((OUTER * 224 + V) // 448, (OUTER * 6 + V // 32) % 14, V % 32),
], ids=str)  # fmt: skip
def test_not_proved(index: tuple[Ix, ...]) -> None:
    assert not apart(index, index, ALONE)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-6, 6), st.integers(1, 4), st.integers(1, 4), st.integers(0, 1)),
                min_size=1, max_size=3), st.booleans())  # fmt: skip
def test_a_yes_is_true(digits: list[tuple[int, int, int, int]], split: bool) -> None:
    base = FUSED if split else V
    forms: list[Ix] = [Ix(0), Ix(0)]
    for factor, a, b, place in digits:
        forms[place] = (
            forms[place] + (base // a % (b + 1)) * factor + (base // (a * 2)) * (factor - 1)
        )
    index = tuple(forms)
    if not apart(index, index, ALONE):
        return
    for o in range(3):
        met = [tuple(evaluate(f, {"v": v, "o": o}) for f in index) for v in range(40)]
        assert len(set(met)) == 40, list(itertools.islice(met, 8))


TILE = V * 4 + INNER


@pytest.mark.parametrize(("a", "b"), [
    ((TILE,), (TILE,)), ((TILE // 5, TILE % 5), (TILE // 5, TILE % 5)), ((V, INNER), (V, INNER + 1)),
    ((V * 2,), (V * 2 + 1,)), ((INNER * 8 + V,), (INNER * 8 + V,)), ((OUTER, ix(0)), (OUTER, ix(1))),
    ((OUTER + V,), (OUTER + V,)), ((INNER // 2 * 16 + V * 2 + INNER % 2,),) * 2, ((TILE // 5, TILE % 5 * 2), (TILE // 5, TILE % 5 * 2 + 1)),
], ids=str)  # fmt: skip
def test_apart_whatever_inner_loops_do(a: tuple[Ix, ...], b: tuple[Ix, ...]) -> None:
    assert apart(a, b, NESTED)
    assert apart(b, a, NESTED)


@pytest.mark.parametrize(("a", "b"), [
    ((V + INNER,), (V + INNER,)), ((V,), (V + 1,)), ((V * 3 + INNER,), (V * 3 + INNER,)), ((V,), (INNER,)),
    ((INNER * 7 + V,), (INNER * 7 + V,)), ((TILE,), (TILE + 1,)), ((OUTER,), (OUTER,)),
], ids=str)  # fmt: skip
def test_inner_loops_may_meet(a: tuple[Ix, ...], b: tuple[Ix, ...]) -> None:
    assert not apart(a, b, NESTED)
    assert not apart(b, a, NESTED)


#: A fused loop of 49152 cut into 192 blocks `v` of 256 threads `w`, of which the indices are digits.
GRID = (("v", (0, 191)), ("w", (0, 255)))
LINEAR = V * 256 + INNER


@pytest.mark.parametrize("index", [
    (LINEAR // 4096, (V * 2 + INNER // 128) % 32, INNER % 128),
    (LINEAR // 1280, (V * 4 + INNER // 64) % 20, INNER % 64),
    (LINEAR // 384, (V * 32 + INNER // 8) % 48, INNER % 8), (LINEAR // 19200, LINEAR // 240 % 80, LINEAR % 240),
    (LINEAR // 5120, V % 20, INNER), (LINEAR // 5120, V // 2 % 10, V % 2, INNER),
    (INNER // 4 % 32, (V * 2 + INNER // 128) % 32, INNER % 4, LINEAR // 4096),
], ids=str)  # fmt: skip
def test_blocks_of_threads_are_told_apart(index: tuple[Ix, ...]) -> None:
    """Also where threads decide some digits alone; without one that the blocks decide they may meet."""
    assert apart(index, index, GRID)
    for i, form in enumerate(index):
        rest = index[:i] + index[i + 1 :]
        assert not apart(rest, rest, GRID) or "v" not in variables(form)


PART = st.tuples(
    st.sampled_from(["v", "w", "o", "vw"]), st.integers(-4, 4), st.integers(1, 4), st.integers(1, 4)
)
FORM = st.tuples(st.integers(-2, 2), st.lists(PART, max_size=3))


@settings(deadline=None)
@given(st.lists(FORM, min_size=1, max_size=3), st.lists(st.integers(0, 2), min_size=3, max_size=3))
def test_a_yes_with_inner_loops_is_true(
    drawn: list[tuple[int, list[tuple[str, int, int, int]]]], shift: list[int]
) -> None:
    whole = {"v": V, "w": INNER, "o": OUTER, "vw": TILE + OUTER * 3}
    a = tuple(
        sum(
            (whole[n] // d % m * c if m < 4 else whole[n] // d * c for n, c, d, m in parts),
            ix(const),
        )
        for const, parts in drawn
    )
    b = tuple(form + by for form, by in zip(a, shift, strict=False))
    if not apart(a, b, NESTED):
        return
    for o in range(3):
        at = [
            [
                (v, tuple(evaluate(f, {"v": v, "w": w, "o": o}) for f in i))
                for v in range(8)
                for w in range(4)
            ]
            for i in (a, b)
        ]
        assert not any(p == q for v, p in at[0] for u, q in at[1] if u != v)


DIGIT = st.tuples(st.sampled_from("vwl"), st.sampled_from([1, 2, 4, 8, 16]), st.integers(2, 9))


@settings(deadline=None)
@given(st.lists(DIGIT, min_size=1, max_size=4), st.booleans())
def test_digits_of_blocks_and_threads_are_right(
    drawn: list[tuple[str, int, int]], above: bool
) -> None:
    whole = {"v": V, "w": INNER, "l": V * 8 + INNER}
    index = tuple(whole[n] // d % m if m < 9 else whole[n] // d for n, d, m in drawn)
    if above:
        index = (*index, (V * 2 + INNER // 4) % 6, INNER % 4)
    if not apart(index, index, (("v", (0, 11)), ("w", (0, 7)))):
        return
    owners: dict[tuple[int, ...], int] = {}
    for v in range(12):
        for w in range(8):
            at = tuple(evaluate(f, {"v": v, "w": w}) for f in index)
            assert owners.setdefault(at, v) == v
