"""The pass that finds integer arithmetic between quantised tensors: against the float form it replaces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tilewright.graph import interp
from tilewright.graph.ir import Array, Graph, Node, TensorType, type_of
from tilewright.graph.passes import optimize
from tilewright.graph.passes.quantize import quantize
from tilewright.graph.verify import verify
from tilewright.registry import operator

DATA = Path(__file__).resolve().parents[1] / "data"
CONV: dict[str, Any] = {
    "strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1), "group": 1
}  # fmt: skip
POOL: dict[str, Any] = {
    "kernel": (2, 2), "strides": (2, 2), "pads": (0, 0, 0, 0), "dilations": (1, 1)
}  # fmt: skip


class Builder:
    """A graph of pairs, written down as a chain of calls; inputs are bytes of random content."""

    def __init__(self) -> None:
        self.g = Graph("g", [], [])
        self.feeds: dict[str, Array] = {}
        self.rng = np.random.default_rng(0)

    def bytes(self, *shape: int, kind: str = "int8") -> str:
        info = np.iinfo(kind)
        name = f"x{len(self.feeds)}"
        self.feeds[name] = self.rng.integers(info.min, info.max + 1, shape).astype(kind)
        self.g.inputs.append(name)
        self.g.types[name] = type_of(self.feeds[name])
        return name

    def const(self, value: Any) -> str:
        return self.g.add_constant("c", np.asarray(value))

    def op(self, op: str, *inputs: str, **attrs: Any) -> str:
        out = self.g.fresh(f"{op}.out")
        (self.g.types[out],) = operator(op).infer([self.g.types[i] for i in inputs], attrs)
        self.g.nodes.append(Node(out, op, inputs, (out,), attrs))
        return out

    def real(self, x: str, step: float, zero: int = 0) -> str:
        kind = self.g.types[x].dtype.numpy
        scale, zeros = self.const(np.float32(step)), self.const(np.asarray(zero, kind))
        return self.op("dequantize", x, scale, zeros)

    def quantised(self, x: str, step: float, zero: int = 0, kind: str = "int8") -> str:
        scale, zeros = self.const(np.float32(step)), self.const(np.asarray(zero, kind))
        return self.op("quantize", x, scale, zeros)

    def weights(self, *shape: int, step: float = 0.01) -> str:
        return self.real(self.const(self.rng.integers(-127, 128, shape).astype(np.int8)), step)

    def check(self, *outputs: str, off: int = 1) -> Graph:
        """The graph after the pass, which gives the same within `off` steps."""
        self.g.outputs = list(outputs)
        want = interp.run(self.g, self.feeds)
        done = optimize(self.g)
        verify(done)
        got = interp.run(done, self.feeds)
        for name, other in zip(outputs, done.outputs, strict=True):
            away = np.abs(got[other].astype(np.float64) - want[name].astype(np.float64))
            assert away.max() <= (off if self.g.types[name].dtype.is_integer else 1e-4)
        return done


def ops(g: Graph) -> list[str]:
    return [n.op for n in g.nodes]


def floats(g: Graph) -> set[str]:
    return {n.op for n in g.nodes if any(g.types[o].dtype.is_float for o in n.outputs)}


def test_a_convolution_with_its_activation_is_integers() -> None:
    b = Builder()
    x = b.real(b.bytes(1, 4, 6, 6), 0.05, -3)
    bias = b.real(b.const(np.array([100, -900, 0, 7], np.int32)), 0.0005)
    y = b.op("relu", b.op("conv2d", x, b.weights(4, 4, 3, 3), bias, **CONV))
    done = b.check(b.quantised(y, 0.02, -128))
    assert ops(done) == ["conv2d", "rescale"]
    assert done.nodes[0].attrs["pad_value"] == -3
    assert done.nodes[1].attrs["low"] == -128


def test_movement_may_stand_before_the_quantisation() -> None:
    b = Builder()
    x = b.real(b.bytes(1, 4, 6, 6), 0.05, -3)
    y = b.op("conv2d", x, b.weights(4, 4, 3, 3), **CONV)
    y = b.op("max_pool2d", b.op("clip", y, min=0.0, max=1.5), **POOL)
    done = b.check(b.quantised(y, 0.02, 5))
    assert ops(done) == ["conv2d", "rescale", "max_pool2d"]
    assert (done.nodes[1].attrs["low"], done.nodes[1].attrs["high"]) == (5, 80)


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (2.0, 1.0), (-np.inf, 0.5)])
def test_bounds_of_two_clips_meet(bounds: tuple[float, float]) -> None:
    b = Builder()
    x = b.op("matmul", b.real(b.bytes(3, 8), 0.05), b.weights(8, 4))
    x = b.op("clip", b.op("clip", x, min=bounds[0], max=bounds[1]), min=0.7, max=3.0)
    assert not floats(b.check(b.quantised(x, 0.02, 5)))


def test_a_function_of_one_tensor_is_a_table_and_exact() -> None:
    b = Builder()
    x = b.bytes(2, 3, 50)
    real = b.real(x, 0.04, 11)
    gate = b.real(b.quantised(b.op("sigmoid", real), 1 / 256, -128), 1 / 256, -128)
    y = b.quantised(b.op("mul", real, gate), 0.03, -100)
    done = b.check(y, off=0)
    assert ops(done) == ["table"] and done.nodes[0].inputs[0] == x


def test_the_same_scale_twice_is_nothing() -> None:
    b = Builder()
    x = b.bytes(2, 50)
    y = b.quantised(b.real(x, 0.04, 11), 0.04, 11)
    z = b.quantised(b.op("exp", b.real(y, 0.04, 11)), 0.1)
    done = b.check(y, z, off=0)
    assert ops(done) == ["copy", "table"] and done.nodes[1].inputs[0] == x


@pytest.mark.parametrize("op", ["add", "sub", "mul", "max", "min"])
@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_two_tensors(op: str, kind: str) -> None:
    b = Builder()
    x = b.real(b.bytes(2, 3, 50, kind=kind), 0.04, 11)
    y = b.real(b.bytes(3, 1, kind=kind), 0.013, 100)
    done = b.check(b.quantised(b.op(op, x, y), 0.05113, 7, kind))
    assert not floats(done)


def test_parts_get_the_scale_of_the_whole() -> None:
    b = Builder()
    x, y = b.bytes(1, 3, 4, 4), b.bytes(1, 2, 4, 4)
    parts = [b.real(x, 0.04, 11), b.real(y, 0.0131, -5)]
    done = b.check(b.quantised(b.op("concat", *parts, axis=1), 0.04, 11))
    assert not floats(done) and ops(done).count("rescale") == 1
    assert x in done.nodes[-1].inputs


MOVES: dict[str, tuple[str, dict[str, Any]]] = {
    "transpose": ("transpose", {"perm": (0, 2, 3, 1)}),
    "reshape": ("reshape", {"shape": (4, 36)}),
    "slice": (
        "slice",
        {"starts": (0, 1, 0, 5), "ends": (1, 3, 6, -1), "steps": (1, 1, 2, -1)},
    ),
    "pad": (
        "pad",
        {"before": (0, 0, 1, 2), "after": (0, 0, 0, 1), "mode": "constant", "value": 0.0},
    ),
    "pad edge": (
        "pad",
        {"before": (0, 0, 1, 2), "after": (0, 0, 0, 1), "mode": "edge", "value": 0.0},
    ),
    "tile": ("tile", {"repeats": (1, 2, 1, 1)}),
    "max pool": ("max_pool2d", {**POOL, "pads": (1, 1, 1, 1)}),
    "largest": ("reduce_max", {"axes": (2, 3), "keepdims": True}),
    "depth to space": ("depth_to_space", {"blocksize": 2, "mode": "DCR"}),
}


@pytest.mark.parametrize("same", [True, False], ids=["same scale", "other scale"])
@pytest.mark.parametrize("case", MOVES)
def test_movement(case: str, same: bool) -> None:
    op, attrs = MOVES[case]
    b = Builder()
    y = b.op(op, b.real(b.bytes(1, 4, 6, 6), 0.04, 11), **attrs)
    done = b.check(b.quantised(y, *((0.04, 11) if same else (0.0511, 3))), off=0 if same else 1)
    assert not floats(done)
    assert ("rescale" in ops(done)) != same


@pytest.mark.parametrize("counted", [True, False])
def test_means_of_windows(counted: bool) -> None:
    b = Builder()
    attrs = {**POOL, "kernel": (3, 3), "pads": (1, 0, 1, 2), "count_include_pad": counted}
    y = b.op("avg_pool2d", b.real(b.bytes(1, 4, 7, 6), 0.04, 11), **attrs)
    assert not floats(b.check(b.quantised(y, 0.0311, 3)))


@pytest.mark.parametrize("op", ["reduce_mean", "reduce_sum"])
def test_sums(op: str) -> None:
    b = Builder()
    y = b.op(op, b.real(b.bytes(1, 4, 7, 6), 0.04, 11), axes=(2, 3), keepdims=False)
    assert not floats(b.check(b.quantised(y, 0.0311 if op == "reduce_mean" else 0.5, 3)))


@pytest.mark.parametrize("op", ["mul", "div"])
def test_a_constant_factor_is_part_of_the_scale(op: str) -> None:
    b = Builder()
    y = b.op(op, b.real(b.bytes(1, 4, 7, 6), 0.04, 11), b.const(np.float32(3.0)))
    y = b.op("max_pool2d", y, **POOL)
    y = b.op("reduce_mean", y, axes=(2, 3), keepdims=False)
    assert not floats(b.check(b.quantised(y, 0.0311, 3)))


def test_a_padding_between_two_steps_stays_in_floats() -> None:
    b = Builder()
    attrs: dict[str, Any] = {"before": (0, 1), "after": (0, 1), "mode": "constant"}
    y = b.op("pad", b.real(b.bytes(2, 9), 0.04, 11), **attrs, value=0.05)
    assert floats(b.check(b.quantised(y, 0.0311, 3))) == {"dequantize", "pad"}


def test_a_value_that_others_read_as_a_float_is_computed_once() -> None:
    b = Builder()
    y = b.op("matmul", b.real(b.bytes(3, 8), 0.05), b.weights(8, 4))
    done = b.check(b.quantised(y, 0.02), b.op("exp", y))
    assert ops(done).count("matmul") == 1 and "f32" in str(done.types[done.nodes[0].outputs[0]])


@pytest.mark.parametrize("zeros", [(0, 0), (5, 0), (0, -9), (-128, 31)])
def test_the_product_of_two_tensors(zeros: tuple[int, int]) -> None:
    b = Builder()
    x = b.real(b.bytes(2, 3, 5, 16), 0.02, zeros[0])
    y = b.op("transpose", b.real(b.bytes(3, 7, 16), 0.03, zeros[1]), perm=(0, 2, 1))
    y = b.real(b.quantised(y, 0.03, zeros[1]), 0.03, zeros[1])
    done = b.check(b.quantised(b.op("matmul", x, y), 0.1113, 9))
    assert not floats(done) and ops(done).count("reduce_sum") == sum(z != 0 for z in zeros)


def test_scales_that_are_not_known_stay_in_floats() -> None:
    b = Builder()
    x = b.real(b.bytes(3, 8), 0.05)
    b.g.inputs.append("scale")
    b.g.types["scale"] = TensorType(operator("exp").infer([b.g.types[x]], {})[0].dtype, ())
    b.feeds["scale"] = np.asarray(0.02, np.float32)
    y = b.op("quantize", b.op("exp", x), "scale", b.const(np.int8(0)))
    assert "quantize" in ops(b.check(y))


def test_weights_with_a_scale_per_row_stay_in_floats() -> None:
    """One scale per element of the dim that is summed over has no integer form."""
    b = Builder()
    w = b.const(b.rng.integers(-9, 9, (8, 4)).astype(np.int8))
    scales = b.const(np.linspace(0.1, 0.2, 8).astype(np.float32).reshape(8, 1))
    real = b.op("dequantize", w, scales, b.const(np.zeros((8, 1), np.int8)))
    done = b.check(b.quantised(b.op("matmul", b.real(b.bytes(3, 8), 0.05), real), 0.1))
    assert "matmul" in floats(done)


def test_graphs_without_quantisation_are_left_alone() -> None:
    b = Builder()
    b.g.outputs = [b.op("exp", b.real(b.bytes(3), 0.1))]
    assert quantize(b.g) is b.g


@pytest.mark.parametrize("model", sorted(DATA.glob("*_int8_qdq.onnx")), ids=lambda p: p.stem)
def test_mlperf_tiny_is_integers_up_to_the_softmax(model: Path) -> None:
    from tilewright.frontend.onnx import load_onnx

    done = optimize(load_onnx(model))
    assert ops(optimize(done)) == ops(done)
    assert floats(done) <= {"dequantize", "softmax"}
    assert {done.types[v].dtype.name for v in (*done.inputs, *done.outputs)} == {"i8"}


@pytest.mark.parametrize("step", [1e-38, 1e-20, 1e20, 3e38])
@pytest.mark.parametrize("op", ["add", "mul", "matmul", "reduce_mean", "transpose", "concat"])
def test_absurd_scales_do_no_harm(op: str, step: float) -> None:
    b = Builder()
    x = b.real(b.bytes(4, 4), step)
    attrs: dict[str, dict[str, Any]] = {
        "reduce_mean": {"axes": (1,), "keepdims": True}, "transpose": {"perm": (1, 0)},
        "concat": {"axis": 0},
    }  # fmt: skip
    one = [b.weights(4, 4)] if op == "matmul" else [b.real(b.bytes(4, 4), 0.1)]
    inputs = [x, *(one if op not in ("reduce_mean", "transpose") else [])]
    y = b.op(op, *inputs, **attrs.get(op, {}))
    b.check(b.quantised(y, 0.1))


def test_weights_without_steps_stay_in_floats() -> None:
    b = Builder()
    y = b.op("matmul", b.real(b.bytes(4, 4), 0.1), b.weights(4, 4, step=0.0))
    assert "matmul" in floats(b.check(b.quantised(y, 0.1)))
