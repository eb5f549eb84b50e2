"""Which indices tell the iterations of a loop apart: compared with trying them all."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilewright.core.index import Ix, evaluate, imin, ix
from tilewright.core.injective import apart

V, OUTER = ix("v"), ix("o")
FUSED = OUTER * 8 + V
ALONE = (("v", None),)


@pytest.mark.parametrize("index", [
    (V,), (OUTER, V * 2 + OUTER), (V // 3, V % 3), ((V // 3) * 3 + V % 3,), (V // 12, V // 4 % 3, V % 4),
    (V // 12, V % 12 // 4, V % 4), (FUSED // 5, FUSED % 5), (FUSED // 6, FUSED % 6 // 2, OUTER, FUSED % 2),
    (V % 3 - (V // 3) * 3,), ((OUTER * 224 + V) // 448, (OUTER * 7 + V // 32) % 14, V % 32),
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
