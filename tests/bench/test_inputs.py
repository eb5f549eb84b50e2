"""Made-up inputs: repeatable, of the right type, within what the model does with them."""

from __future__ import annotations

import numpy as np
import pytest

from tilewright.bench.inputs import make_inputs
from tilewright.core.dtypes import F32, I64
from tilewright.graph.ir import Graph, Node, TensorType
from tilewright.runtime.model import TensorSpec


def table_graph() -> Graph:
    """ids pick rows of a table with 7 rows, through a reshape."""
    g = Graph("g", ["ids"], ["y"])
    g.types = {
        "ids": TensorType(I64, (1, 64)),
        "flat": TensorType(I64, (64,)),
        "y": TensorType(F32, (64, 3)),
    }
    table = g.add_constant("table", np.zeros((7, 3), np.float32))
    g.nodes = [
        Node("r", "reshape", ("ids",), ("flat",), {"shape": (64,)}),
        Node("g", "gather", (table, "flat"), ("y",), {"axis": 0}),
    ]
    return g


@pytest.mark.parametrize(
    "shape", [(1, 3, 32, 32), (1, 32, 32, 3), (2, 1, 1, 1), (1, 1, 2, 9), (4, 7)]
)
def test_floats(shape: tuple[int, ...]) -> None:
    spec = [TensorSpec("x", shape, "float32")]
    (a,), (b,), (c,) = (make_inputs(spec, None, seed) for seed in (1, 1, 2))
    assert a.shape == shape and a.dtype == np.float32 and a.flags.c_contiguous
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()
    if len(shape) == 4:
        assert a.min() >= 0 and a.max() <= 1


def test_whole_numbers_stay_in_the_table() -> None:
    (ids,) = make_inputs([TensorSpec("ids", (1, 64), "int64")], table_graph(), 0)
    assert ids.min() >= 0 and ids.max() == 6


def test_without_a_graph_whole_numbers_are_small() -> None:
    (ids,) = make_inputs([TensorSpec("ids", (1, 64), "int64")], None, 0)
    assert set(np.unique(ids)) == {0, 1}


@pytest.mark.parametrize("kind", ["int8", "uint8"])
@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (1, 640)])
def test_bytes_use_their_range(kind: str, shape: tuple[int, ...]) -> None:
    (x,) = make_inputs([TensorSpec("x", shape, kind)], None, 0)
    info = np.iinfo(kind)
    assert x.dtype == kind and x.shape == shape
    assert x.min() < info.min + 64 and x.max() > info.max - 64


def test_masks_are_ones_and_given_arrays_are_kept() -> None:
    specs = [TensorSpec("attention_mask", (1, 8), "int64"), TensorSpec("x", (2,), "float32")]
    given = np.array([5, 6], np.float32)
    mask, x = make_inputs(specs, None, 0, {"x": given})
    assert (mask == 1).all()
    assert x is given
