"""Bounds of errors: what an operation leaves open is not held against code."""

from __future__ import annotations

import numpy as np
import pytest

from tilewright.loop.parse import parse
from tilewright.testing.bounds import bounded

KERNEL = """\
kernel k(x: f32[3], y: f32[3], out z: f32[3])
  for i in 3:
    z[i] = {op}(x[i]:f32, y[i]:f32)
"""


@pytest.mark.parametrize("op", ["min", "max"])
def test_either_zero_may_come_of_two(op: str) -> None:
    """IEEE 754 says nothing of the sign of max(-0, +0); equal zeros and other numbers are exact."""
    x = np.array([-0.0, -0.0, 1.0], np.float32)
    y = np.array([0.0, -0.0, 1.0], np.float32)
    values, errors = bounded(parse(KERNEL.format(op=op)), {"x": x, "y": y})["z"]
    np.testing.assert_array_equal(values, [0, 0, 1])
    assert errors[0] > 0 and not errors[1:].any()
    assert errors[0] < np.finfo(np.float32).tiny * 2


def test_the_reference_rounds_too() -> None:
    """A product and a sum in float64 round twice where code with one instruction rounds once."""
    x, y, z = 1 + 2.0**-30, 1 - 2.0**-30, -1.0
    kernel = "kernel k(x: f64[1], out z: f64[1])\n  z[0] = fma(x[0]:f64, {y!r}:f64, {z!r}:f64)\n"
    values, errors = bounded(parse(kernel.format(y=y, z=z)), {"x": np.array([x])})["z"]
    assert values[0] == 0 and abs(values[0] - -(2.0**-60)) <= errors[0] < 2.0**-52


def test_what_vanishes_next_to_a_value_counts_in_functions() -> None:
    """exp of a sum in float64: the sum's error is less than a unit in its last place, yet no nothing."""
    kernel = "kernel k(x: f64[1], out z: f64[1])\n  z[0] = exp((x[0]:f64 + 8.0:f64))\n"
    _, errors = bounded(parse(kernel), {"x": np.array([0.1])})["z"]
    assert errors[0] > np.exp(8.1) * 2.0**-53 * 8
