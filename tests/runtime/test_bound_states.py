"""Bound models with states: nothing is copied, and there is one state for all ways to call."""

from __future__ import annotations

import numpy as np
import pytest
from graph_helpers import Builder

from tilewright import api
from tilewright.frontend.states import declare_states
from tilewright.pipeline import build


def test_bound_calls_go_on_with_the_states_of_other_calls() -> None:
    """y = x + state, the sum kept: calls and bound calls take turns on one state, and reset starts anew."""
    b = Builder()
    b.input("x", (3,))
    b.input("sum", (3,))
    graph = b.done(b.node("add", "next", "x", "sum"), b.node("neg", "y", "next"))
    model = api.CompiledModel(build(declare_states(graph, {"sum": "next"}), "host"))
    x, y = np.array([1, 2, 3], np.float32), np.empty(3, np.float32)
    bound = model.bind([x], [y])
    for count in (1, 2, 3):
        bound()
        np.testing.assert_array_equal(y, -count * x)
    np.testing.assert_array_equal(model(x)[0], -4 * x)
    bound()
    np.testing.assert_array_equal(y, -5 * x)
    model.reset()
    model.run_into([x], [y])
    np.testing.assert_array_equal(y, -x)
    with pytest.raises(ValueError, match="has 1 inputs, got 2 arrays"):
        model.bind([x, x], [y])
