"""Ranges of sizes, forms fitted to numbers, kernels generalised from instances."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tilewright.core.dtypes import F32
from tilewright.core.index import Ix, ix
from tilewright.core.sizes import (
    Size,
    fit,
    fit_product,
    parse_size,
    points_to_check,
    points_to_fit,
    values_at,
)
from tilewright.dynamic.request import requested
from tilewright.loop.builder import KernelBuilder
from tilewright.loop.generalise import Different, at_point, generalise, same, with_sizes
from tilewright.loop.ir import Buffer, Const, Kernel, Load, Param, Store
from tilewright.loop.text import to_text
from tilewright.schedule.trace import step
from tilewright.tune.admit import finish

TWO = (Size("h", 32, 640, 32, "size0"), Size("w", 1, 40, 1, "size1"))
H, W = ix("size0"), ix("size1")


@pytest.mark.parametrize(
    ("text", "size"),
    [("1..512", Size("n", 1, 512)), ("32..640:32", Size("n", 32, 640, 32)), ("512", None)],
)
def test_ranges_are_read(text: str, size: Size | None) -> None:
    assert parse_size("n", text) == size


@pytest.mark.parametrize(
    "form",
    [Ix(7), H * 4 + 3, W - 2, (W + 1) // 2 * 3 - 1, H + W * 2, (H + 3) // 4, (W + 5) // 8 + 2],
)
def test_forms_are_found_again(form: Ix) -> None:
    points = points_to_fit(TWO)
    from tilewright.core.index import evaluate

    assert fit(points, [evaluate(form, p) for p in points]) == form


def test_products_of_two_sizes_are_found() -> None:
    points = points_to_fit(TWO)
    found = fit_product(points, [p["size0"] * 2 * (p["size1"] + 1) for p in points])
    assert found is not None and fit(points, [p["size0"] * p["size1"] for p in points]) is None


def test_points_lie_within_the_ranges_and_hold_both_ends() -> None:
    points = [*points_to_fit(TWO), *points_to_check(TWO)]
    for p in points:
        assert all(s.holds(v) for s, v in zip(TWO, values_at(TWO, p).values(), strict=True))
    assert {"size0": 20, "size1": 40} in points and {"size0": 1, "size1": 1} in points


def copy(n: int) -> Kernel:
    """y[m, i] = x[m, i] for m below n, or 0 with an odd stride for the mutant."""
    k = KernelBuilder()
    x, y = (Buffer(b, F32, (n, 20), (20, 1), "global") for b in "xy")
    with k.loop("m", n) as m, k.loop("i", 20) as i:
        k.stmt(Store("y", (m, i), Load("x", (m, i), F32)))
    return Kernel("copy", (Param(x, "in"), Param(y, "out")), k.finish())


SIZE = (Size("n", 1, 50, 1, "size0"),)


def test_a_kernel_for_all_sizes_is_each_of_them() -> None:
    points = points_to_fit(SIZE)
    general = generalise([copy(p["size0"]) for p in points], points)
    for n in range(1, 51):
        assert same(at_point(general, {"size0": n}), copy(n))
        assert not same(at_point(general, {"size0": n}), copy(51))


def test_tails_of_open_extents_are_code_of_their_own() -> None:
    points = points_to_fit(SIZE)
    general = with_sizes(generalise([copy(p["size0"]) for p in points], points), SIZE)
    trace = (
        step("split", "m", 8, "mo", "mi"), step("split", "i", 16, "io", "il"),
        step("vectorize", "il"), step("unroll", "mi"),
    )  # fmt: skip
    text = to_text(finish(general, trace))
    assert "for mo in (size0) // 8" in text and "unroll mi in 8" in text
    assert "if (index((size0) % 8):i64 > 0:i64)" in text


def test_kernels_that_nothing_unites_are_told_apart() -> None:
    points = points_to_fit(SIZE)
    kernels = [copy(p["size0"]) for p in points]
    odd = replace(kernels[1], body=(Store("y", (Ix(0), Ix(0)), Const(0.0, F32)),))
    with pytest.raises(Different):
        generalise([kernels[0], odd, *kernels[2:]], points)


DECLARED = {"x": ("batch", 3, "n"), "mask": ("batch", "n"), "n2": (4,)}


@pytest.mark.parametrize(
    ("shapes", "found"),
    [
        ({"n": (7,)}, {"x": (-1, 3, 7), "mask": (-1, 7)}),
        ({"n": (7,), "batch": (2,)}, {"x": (2, 3, 7), "mask": (2, 7)}),
        ({"n": (7,), "mask": (2, 7)}, {"x": (-1, 3, 7), "mask": (2, 7)}),
        ({"k": (7,), "mask": (2, "k")}, {"mask": (2, 7)}),
        ({"n2": (4,)}, {"n2": (4,)}),
        ({"other": (4,)}, {"other": (4,)}),
    ],
)
def test_a_name_may_stand_for_one_number(
    shapes: dict[str, tuple[int | str, ...]], found: dict[str, tuple[int, ...]]
) -> None:
    request = requested(shapes, lambda: DECLARED)
    assert request.at({}) == found and not request.sizes


def test_numbers_and_ranges_of_names_go_together() -> None:
    request = requested({"n": (7,), "batch": "1..4"}, lambda: DECLARED)
    assert request.at({"size0": 3}) == {"x": (3, 3, 7), "mask": (3, 7)}
