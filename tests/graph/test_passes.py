"""Each pass on small graphs: what it does, what it must leave alone, and that values stay the same."""

from __future__ import annotations

import math

import numpy as np
import pytest
from graph_helpers import Builder, check_pass, ops

from tilewright.core.dtypes import BOOL, I32
from tilewright.graph.passes import optimize
from tilewright.graph.passes.eliminate_dead import eliminate_dead
from tilewright.graph.passes.eliminate_duplicates import eliminate_duplicates
from tilewright.graph.passes.fold_batch_norm import fold_batch_norm
from tilewright.graph.passes.fold_bias import fold_bias
from tilewright.graph.passes.fold_constants import fold_constants
from tilewright.graph.passes.fold_pad import fold_pad
from tilewright.graph.passes.simplify import simplify

RNG = np.random.default_rng(7)


def noise(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


# ---------------------------------------------------------------- dead, duplicates, constants


def test_dead() -> None:
    b = Builder(x=(4,))
    b.node("relu", "y", "x")
    b.node("exp", "unused", "x")
    b.node("add", "unused2", "unused", b.const("c", noise(4)))
    out = check_pass(eliminate_dead, b.done("y"))
    assert ops(out) == ["relu"] and not out.constants


def test_duplicates() -> None:
    b = Builder(x=(4,))
    b.node("add", "a", "x", b.const("c", np.float32(2)))
    b.node("add", "b", "x", b.const("d", np.float32(2)))
    b.node("mul", "y", "a", "b")
    out = check_pass(eliminate_duplicates, b.done("y"))
    assert ops(out) == ["add", "mul"] and out.nodes[1].inputs == ("a", "a")


def test_duplicates_keep_output_names() -> None:
    b = Builder(x=(4,))
    for name in ("inner", "one", "two"):
        b.node("relu", name, "x")
    b.node("exp", "y", "inner")
    g = b.done("one", "y", "two")
    out = check_pass(eliminate_duplicates, g)
    assert sorted(ops(out)) == ["copy", "exp", "relu"]
    assert eliminate_duplicates(out).nodes == out.nodes


def test_signed_zeros_are_not_duplicates() -> None:
    b = Builder(x=(4,))
    b.node("clip", "a", "x", min=0.0, max=1.0)
    b.node("clip", "b", "x", min=-0.0, max=1.0)
    b.node("mul", "y", "a", "b")
    b.node(
        "div", "z", b.const("p", np.zeros(4, np.float32)), b.const("n", -np.zeros(4, np.float32))
    )
    assert len(eliminate_duplicates(b.done("y", "z")).nodes) == 4


def test_constants() -> None:
    b = Builder(x=(4,))
    b.node("add", "c", b.const("a", noise(4)), b.const("b", noise(4)))
    b.node("mul", "y", "x", "c")
    b.node("exp", "z", "c")
    out = check_pass(fold_constants, b.done("y", "z"))
    assert ops(out) == ["mul"] and "z" in out.constants


# ---------------------------------------------------------------- batch norm and bias


def norm(b: Builder, name: str, x: str, channels: int) -> str:
    params = [b.const(f"{name}.{i}", noise(channels)) for i in range(3)]
    var = b.const(f"{name}.var", np.abs(noise(channels)) + 0.5)
    return b.node("batch_norm", name, x, *params, var, epsilon=1e-5)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "kind", ["conv2d", "grouped", "depthwise", "transpose", "grouped transpose"]
)
def test_batch_norm_after_convolution(kind: str, bias: bool) -> None:
    b = Builder(x=(2, 4, 6, 5))
    common = {"strides": (1, 1), "pads": (1, 0, 1, 0), "dilations": (1, 1)}
    op, shape, extra, channels = {
        "conv2d": ("conv2d", (6, 4, 3, 2), {"group": 1}, 6),
        "grouped": ("conv2d", (6, 2, 3, 2), {"group": 2}, 6),
        "depthwise": ("depthwise_conv2d", (4, 1, 3, 2), {}, 4),
        "transpose": ("conv_transpose2d", (4, 6, 3, 2), {"group": 1, "output_padding": (0, 0)}, 6),
        "grouped transpose": ("conv_transpose2d", (4, 3, 3, 2), {"group": 2, "output_padding": (0, 0)}, 6),
    }[kind]  # fmt: skip
    biases = [b.const("b", noise(channels))] if bias else []
    b.node(op, "c", "x", b.const("w", noise(*shape)), *biases, **common, **extra)
    norm(b, "y", "c", channels)
    out = check_pass(fold_batch_norm, b.done("y"), 1e-4)
    assert ops(out) == [op]


def test_scaling_folds_through_a_chain() -> None:
    b = Builder(x=(1, 3, 6, 6))
    b.conv("c", "x", b.const("w", noise(5, 3, 3, 3)))
    b.node("mul", "m", b.const("s", noise(5, 1, 1)), "c")
    b.node("sub", "a", "m", b.const("t", noise(1, 5, 1, 1)))
    b.node("div", "d", "a", b.const("u", np.float32(3)))
    b.node("add", "y", b.const("v", np.float32(1)), "d")
    out = check_pass(optimize, b.done("y"), 1e-4)
    assert ops(out) == ["conv2d"] and out.nodes[0].outputs == ("y",)


def test_matmul_scaling_and_bias() -> None:
    b = Builder(x=(2, 3, 4))
    b.node("matmul", "m", "x", b.const("w", noise(4, 6)))
    b.node("add", "a", "m", b.const("t", noise(6)))
    b.node("mul", "y", "a", b.const("s", noise(1, 1, 6)))
    assert ops(check_pass(optimize, b.done("y"), 1e-4)) == ["matmul"]


def test_batch_norm_after_matmul() -> None:
    b = Builder(x=(3, 4))
    b.node("matmul", "m", "x", b.const("w", noise(4, 6)))
    norm(b, "y", "m", 6)
    assert ops(check_pass(fold_batch_norm, b.done("y"), 1e-4)) == ["matmul"]


def test_batch_norm_of_rank_3_after_matmul_is_spelled_out() -> None:
    b = Builder(x=(2, 5, 4))
    b.node("matmul", "m", "x", b.const("w", noise(4, 5)))
    norm(b, "y", "m", 5)  # its channels are dim 1, those of the product dim 2
    assert ops(check_pass(fold_batch_norm, b.done("y"), 1e-4)) == ["matmul", "mul", "add"]


def test_values_with_other_uses_are_not_folded() -> None:
    b = Builder(x=(1, 3, 6, 6))
    b.conv("c", "x", b.const("w", noise(3, 3, 3, 3)))
    b.node("mul", "y", "c", b.const("s", np.float32(2)))
    b.node("relu", "z", "c")
    assert ops(check_pass(optimize, b.done("y", "z"))) == ["conv2d", "mul", "relu"]
    b = Builder(x=(1, 3, 6, 6))
    b.conv("c", "x", b.const("w", noise(3, 3, 3, 3)))
    b.node("add", "y", "c", b.const("s", np.float32(2)))
    assert ops(check_pass(optimize, b.done("y", "c"))) == ["conv2d", "add"]


@pytest.mark.parametrize("shape", [(1, 1, 1, 4), (1, 1, 4, 1), (3, 1, 1, 1), (1, 1, 3, 1, 1)])
def test_constants_that_do_not_run_along_channels(shape: tuple[int, ...]) -> None:
    b = Builder(x=(1, 3, 4, 4))
    b.conv("c", "x", b.const("w", noise(3, 3, 1, 1)))
    b.node("mul", "m", "c", b.const("s", noise(*shape)))
    b.node("add", "y", "m", b.const("t", noise(*shape)))
    assert ops(check_pass(optimize, b.done("y"))) == ["conv2d", "mul", "add"]


def test_bias_is_exact_where_there_was_none() -> None:
    b = Builder(x=(2, 4))
    b.node("matmul", "m", "x", b.const("w", np.eye(4, dtype=np.float32)))
    b.node("add", "y", "m", b.const("t", noise(4)))
    assert ops(check_pass(fold_bias, b.done("y"), 1e-6)) == ["matmul"]


def test_division_by_zero_is_not_folded() -> None:
    b = Builder(x=(2, 4))
    b.node("matmul", "m", "x", b.const("w", noise(4, 4)))
    b.node("div", "y", "m", b.const("z", np.float32(0)))
    assert ops(check_pass(fold_batch_norm, b.done("y"))) == ["matmul", "div"]


# ---------------------------------------------------------------- padding


def padded(b: Builder, x: str, value: float = 0.0) -> str:
    return b.node(
        "pad", "p", x, before=(0, 0, 1, 0), after=(0, 0, 2, 1), mode="constant", value=value
    )


WINDOW = {"kernel": (3, 3), "strides": (2, 1), "dilations": (1, 1)}


def test_pad_into_convolution() -> None:
    b = Builder(x=(1, 2, 5, 5))
    b.conv("y", padded(b, "x"), b.const("w", noise(3, 2, 3, 3)), pads=(1, 0, 0, 1))
    out = check_pass(optimize, b.done("y"))
    assert ops(out) == ["conv2d"] and out.nodes[0].attrs["pads"] == (2, 0, 2, 2)


def test_pad_by_one_stays_before_convolution() -> None:
    b = Builder(x=(1, 2, 5, 5))
    b.conv("y", padded(b, "x", 1.0), b.const("w", noise(3, 2, 3, 3)))
    assert ops(check_pass(optimize, b.done("y"))) == ["pad", "conv2d"]


def test_pad_into_max_pool() -> None:
    b = Builder(x=(1, 2, 6, 6))
    b.node("max_pool2d", "y", padded(b, "x", -math.inf), pads=(0, 0, 0, 0), **WINDOW)
    assert ops(check_pass(optimize, b.done("y"))) == ["max_pool2d"]
    for before, left in (("neg", ["neg", "pad", "max_pool2d"]), ("relu", ["relu", "max_pool2d"])):
        b = Builder(x=(1, 2, 6, 6))
        b.node("max_pool2d", "y", padded(b, b.node(before, "r", "x")), pads=(0, 0, 0, 0), **WINDOW)
        assert ops(check_pass(optimize, b.done("y"))) == left


@pytest.mark.parametrize(
    ("pads", "counts", "folds"),
    [((0, 0, 0, 0), False, True), ((1, 1, 1, 1), True, True), ((1, 1, 1, 1), False, False)],
)
def test_pad_into_average_pool(pads: tuple[int, ...], counts: bool, folds: bool) -> None:
    b = Builder(x=(1, 2, 6, 6))
    b.node("avg_pool2d", "y", padded(b, "x"), pads=pads, count_include_pad=counts, **WINDOW)
    assert ("pad" not in ops(check_pass(fold_and_dead, b.done("y")))) == folds


def fold_and_dead(g):  # type: ignore[no-untyped-def]
    return eliminate_dead(fold_pad(g))


# ---------------------------------------------------------------- simplification


def test_identities_vanish() -> None:
    b = Builder(x=(1, 4, 3, 3))
    b.node("reshape", "a", "x", shape=(4, 9))
    b.node("reshape", "b", "a", shape=(1, 4, 3, 3))
    b.node("transpose", "c", "b", perm=(0, 2, 3, 1))
    b.node("transpose", "d", "c", perm=(0, 3, 1, 2))
    b.node("mul", "e", "d", b.const("one", np.float32(1)))
    b.node("add", "f", "e", b.const("zero", np.float32(-0.0)))
    b.node("sub", "g", "f", b.const("plus", np.float32(0.0)))
    b.node("cast", "h", "g", to="f32")
    b.node("slice", "i", "h", starts=(0, 0, 0, 0), ends=(1, 4, 3, 3), steps=(1, 1, 1, 1))
    b.node("expand", "j", "i", shape=(1, 4, 3, 3))
    b.node("pad", "k", "j", before=(0,) * 4, after=(0,) * 4, mode="constant", value=0.0)
    b.node("max_pool2d", "l", "k", kernel=(1, 1), strides=(1, 1), pads=(0,) * 4, dilations=(1, 1))
    b.node("relu", "m", "l")
    b.node("relu", "y", "m")
    out = check_pass(optimize, b.done("y"))
    assert ops(out) == ["relu"] and out.nodes[0].inputs == ("x",)


@pytest.mark.parametrize("op", ["add", "sub"])
def test_zeros_that_change_the_sign_of_zero_stay(op: str) -> None:
    b = Builder(x=(4,))
    b.node(op, "y", "x", b.const("z", np.float32(0.0 if op == "add" else -0.0)))
    assert ops(check_pass(simplify, b.done("y"))) == [op]


def test_integer_zero_goes() -> None:
    b = Builder()
    b.input("x", (4,), I32)
    b.node("add", "a", "x", b.const("z", np.zeros(4, np.int32)))
    b.node("abs", "y", "a")
    assert ops(check_pass(simplify, b.done("y"))) == ["abs"]


def test_broadcasting_neutral_operand_stays() -> None:
    b = Builder(x=(4,))
    b.node("mul", "y", "x", b.const("one", np.ones((3, 4), np.float32)))
    assert ops(check_pass(simplify, b.done("y"))) == ["mul"]


def test_reversing_slice_stays() -> None:
    b = Builder(x=(4,))
    b.node("slice", "y", "x", starts=(3,), ends=(-1,), steps=(-1,))
    assert ops(check_pass(simplify, b.done("y"))) == ["slice"]


def test_where_with_a_known_condition() -> None:
    b = Builder(x=(4,), z=(4,))
    b.node("where", "w", b.const("t", np.ones(4, np.bool_)), "x", "z")
    b.node("relu", "y", "w")
    assert ops(check_pass(optimize, b.done("y"))) == ["relu"]


def test_slices_that_make_up_a_value() -> None:
    b = Builder(x=(6, 2), z=(1, 2))
    for i, (lo, hi) in enumerate(((0, 2), (2, 5), (5, 6))):
        b.node("slice", f"s{i}", "x", starts=(lo, 0), ends=(hi, 2), steps=(1, 1))
    b.node("concat", "c", "z", "s0", "s1", "s2", axis=0)
    b.node("concat", "d", "s1", "s0", "s2", axis=0)
    out = check_pass(optimize, b.done("c", "d"))
    assert [n.inputs for n in out.nodes if n.outputs == ("c",)] == [("z", "x")]
    assert [n.inputs for n in out.nodes if n.outputs == ("d",)] == [("s1", "s0", "s2")]


def test_reduction_over_single_elements() -> None:
    b = Builder(x=(2, 5, 1, 1))
    b.node("reduce_mean", "m", "x", axes=(2, 3), keepdims=True)
    b.node("reduce_sum", "s", "m", axes=(2, 3), keepdims=False)
    b.node("relu", "y", "s")
    assert ops(check_pass(optimize, b.done("y"))) == ["reshape", "relu"]


def test_expand_before_an_elementwise_operator() -> None:
    b = Builder(x=(2, 3, 4), z=(3, 1))
    b.node("expand", "e", "z", shape=(2, 3, 4))
    b.node("add", "y", "x", "e")
    assert ops(check_pass(optimize, b.done("y"))) == ["add"]
    b = Builder(x=(1, 4), z=(3, 1))
    b.node("expand", "e", "z", shape=(2, 3, 4))
    b.node("add", "y", "x", "e")  # only the expansion has the leading 2
    assert ops(check_pass(optimize, b.done("y"))) == ["expand", "add"]


def test_outputs_keep_their_names() -> None:
    b = Builder(x=(2, 2))
    b.input("m", (2,), BOOL)
    b.node("reshape", "same", "x", shape=(2, 2))
    b.node("relu", "r", "x")
    b.node("cast", "one", "r", to="f32")
    b.node("cast", "two", "r", to="f32")
    b.node("reshape", "constant", b.const("c", noise(4)), shape=(4,))
    out = check_pass(optimize, b.done("same", "one", "two", "constant"))
    assert ops(out).count("relu") == 1
    assert optimize(out).nodes == out.nodes
