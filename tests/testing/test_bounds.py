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
