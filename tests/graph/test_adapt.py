"""Passes that depend on the target: the same bytes from fewer or other instructions."""

from __future__ import annotations

import numpy as np
import pytest
from graph_helpers import Builder

from tilewright import api
from tilewright.adapt import ADAPTATIONS, adapt
from tilewright.codegen.llvm import runs_here
from tilewright.core.dtypes import I8, U8, DType
from tilewright.graph.interp import run
from tilewright.graph.ir import AttrValue, Graph
from tilewright.graph.passes.merge_requantize import merge_requantize
from tilewright.graph.passes.merge_roundings import merge_roundings
from tilewright.graph.verify import verify
from tilewright.loop.ir import For
from tilewright.pipeline import build
from tilewright.schedule.target import load_target

CONV: dict[str, AttrValue] = {
    "strides": (1, 1), "pads": (1, 0, 1, 2), "dilations": (1, 1), "group": 1, "pad_value": -3
}  # fmt: skip


def _sum(left: int, multipliers: tuple[int, int, int], rights: tuple[int, int, int], minus: bool,
         kind: DType) -> Graph:  # fmt: skip
    """A rescaled sum of all pairs of bytes."""
    least = np.iinfo(kind.numpy).min
    numbers = {"zero_a": least + 125, "zero_b": least + 7, "zero_point": least + 118}
    b = Builder()
    b.input("a", (256, 1), kind)
    b.input("b", (256,), kind)
    names = ("_a", "_b", "")
    return b.done(b.node(
        "rescaled_add", "y", "a", "b", left=left, minus=minus, to=str(kind), low=least, high=least + 255,
        **dict(zip((f"multiplier{n}" for n in names), multipliers, strict=True)),
        **dict(zip((f"right{n}" for n in names), rights, strict=True)), **numbers,
    ))  # fmt: skip


@pytest.mark.parametrize("minus", [False, True])
@pytest.mark.parametrize("kind", [I8, U8], ids=str)
def test_three_roundings_in_one(kind: DType, minus: bool) -> None:
    graph = _sum(20, (1 << 30, 1424094599, 1565533740), (0, 1, 18), minus, kind)
    merged = merge_roundings(graph)
    verify(merged)
    assert [n.op for n in merged.nodes] == ["quantized_add"]
    every = np.arange(256).astype(kind.numpy)
    values = {"a": every[:, None], "b": every}
    np.testing.assert_array_equal(run(graph, values)["y"], run(merged, values)["y"])


def test_roundings_that_cannot_be_merged_stay() -> None:
    """With few bits in between, the first roundings are seen in the result."""
    graph = _sum(1, (1431655765, 1717986918, 1 << 30), (0, 1, 0), False, I8)
    assert [n.op for n in merge_roundings(graph).nodes] == ["rescaled_add"]


def test_microcontrollers_keep_the_roundings() -> None:
    graph = _sum(20, (1 << 30, 1424094599, 1565533740), (0, 1, 18), False, I8)
    assert adapt(graph, load_target("cortex-m4"), lambda g, n: None).nodes == graph.nodes


@pytest.mark.parametrize("channels", [1, 3, 4, 8])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", ["x86-64-v3", "x86-64-v4-vnni", "cortex-a76", "cortex-m4"])
def test_contractions_of_bytes(name: str, channels: int, bias: bool) -> None:
    """Channels that are missing and pixels that count from 0 change no sum; without the passes nothing changes."""
    rng = np.random.default_rng(channels)
    b = Builder()
    b.input("x", (1, channels, 5, 6), I8)
    b.graph.add_constant("w", rng.integers(-128, 128, (7, channels, 3, 3)).astype(np.int8))
    b.graph.add_constant("v", rng.integers(-128, 128, (4 * channels, 9)).astype(np.int8))
    b.graph.add_constant("c", rng.integers(-(2**31), 2**31, 7).astype(np.int32))
    b.input("rows", (3, 4 * channels), I8)
    conv = b.node("conv2d", "y", "x", "w", *(["c"] if bias else []), **CONV)
    graph = b.done(conv, b.node("matmul", "z", "rows", "v"))
    target = load_target(name)
    made = adapt(graph, target, lambda g, n: None)
    verify(made)
    nodes = {n.op: n for n in made.nodes}
    wide = channels % 4 == 0 or target.family == "simd"
    vnni = target.unsigned_by_signed
    assert nodes["conv2d"].attrs.get("raised", False) == (vnni and wide)
    assert nodes["matmul"].attrs.get("raised", False) == vnni
    assert ("more_channels" in nodes["conv2d"].attrs) == (wide and channels % 4 > 0)
    values = {
        n: rng.integers(-128, 128, graph.types[n].shape).astype(np.int8) for n in graph.inputs
    }
    for out, want in run(graph, values).items():
        np.testing.assert_array_equal(run(made, values)[out], want)
    assert adapt(graph, target, lambda g, n: None, set(ADAPTATIONS)).nodes == graph.nodes


def _requantized(
    multipliers: list[int],
    places: list[int],
    bias: list[int],
    constant: bool = True,
    **attrs: AttrValue,
) -> Graph:
    """Requantised sums of all pairs of bytes: every sum that a weight of 127 and one of 1 can give."""
    b = Builder()
    b.input("x", (1 << 16, 2), I8)
    w = np.repeat(np.array([[127], [1]], np.int8), len(bias), 1)
    if constant:
        b.graph.add_constant("w", w)
    else:
        b.input("w", w.shape, I8)
    for name, values in (("bias", bias), ("m", multipliers), ("p", places)):
        b.graph.add_constant(name, np.array(values, np.int32))
    sums = b.node("matmul", "sums", "x", "w", "bias")
    full = {"shift": 1, "zero_point": 0, "low": -128, "high": 127, "to": "i8", "least": -1, **attrs}
    return b.done(b.node("requantize", "y", sums, "m", "p", **full))


_PAIRS = np.stack(np.meshgrid(*[np.arange(-128, 128, dtype=np.int8)] * 2, indexing="ij"), -1)


@pytest.mark.parametrize("low, zero", [(-128, -128), (-128, 3), (-11, -11), (-100, 127)])
@pytest.mark.parametrize("single", [False, True])
def test_two_roundings_in_one(low: int, zero: int, single: bool) -> None:
    """Every sum of every channel, also where nothing is weighed and where sums reach few steps or none."""
    rng = np.random.default_rng(zero + 128)
    multipliers = [
        *rng.integers(1 << 30, 1 << 31, 40),
        (1 << 30) + 99_999,
        (1 << 31) - 9999,
        0,
        1 << 30,
        0,
    ]
    places = [*rng.integers(4, 10, 40), 6, 6, 5, 12, 5]
    # the last channel counts for nothing, whatever its sums are: converters leave such, with the least bias
    bias = [*rng.integers(-5000, 5000, 41), 70000, 2**31 - 20000, 0, 128 * 128 - 2**31]
    kind = {"single": True, "least": 0} if single else {}
    graph = _requantized(
        [*map(int, multipliers)],
        [*map(int, places)],
        [*map(int, bias)],
        low=low,
        zero_point=zero,
        **kind,
    )
    merged = merge_requantize(graph)
    verify(merged)
    assert [n.op for n in merged.nodes] == ["matmul", "rescale_stepwise"]
    x = {"x": _PAIRS.reshape(-1, 2)}
    np.testing.assert_array_equal(run(graph, x)["y"], run(merged, x)["y"])


def test_one_factor_for_all_channels() -> None:
    graph = _requantized([1518500250], [6], [-900, 0, 44], zero_point=-7)
    merged = merge_requantize(graph)
    assert [n.op for n in merged.nodes] == ["matmul", "rescale_stepwise"]
    x = {"x": _PAIRS.reshape(-1, 2)}
    np.testing.assert_array_equal(run(graph, x)["y"], run(merged, x)["y"])


def test_two_roundings_stay() -> None:
    """Where nobody knows how large sums get, and on microcontrollers, which have an instruction for them."""
    unknown = _requantized([1518500250], [6], [0], constant=False)
    assert merge_requantize(unknown).nodes == unknown.nodes
    known = _requantized([1518500250], [6], [0])
    done = adapt(known, load_target("cortex-m4"), lambda g, n: None)
    assert [n.op for n in done.nodes] == ["matmul", "requantize"]


def test_subnormal_weights_are_flushed_on_x86() -> None:
    """Only in contractions, only where other weights are normal, and only where they cost time."""
    tiny = np.float32(1e-40)
    weights = np.array([[1.0, -tiny, np.nan], [tiny, 0.5, np.float32(2.0**-126)]], np.float32)
    b = Builder()
    b.input("x", (4, 2))
    b.graph.add_constant("w", weights)
    b.graph.add_constant("all", np.full((2, 3), tiny))
    b.graph.add_constant("c", np.full(3, tiny))
    y = b.node("matmul", "y", "x", "w")
    graph = b.done(b.node("mul", "z", y, "c"), b.node("matmul", "v", "x", "all"))
    made = adapt(graph, load_target("x86-64-v4"), lambda g, n: None)
    verify(made)
    (w,) = (made.constants[n.inputs[1]] for n in made.nodes if n.outputs == ("y",))
    np.testing.assert_array_equal(w, np.where(np.abs(weights) < 1e-39, 0, weights))
    assert [n.inputs[1] for n in made.nodes if n.outputs != ("y",)] == ["c", "all"]
    assert adapt(graph, load_target("cortex-a76"), lambda g, n: None).nodes == graph.nodes


@pytest.mark.parametrize("name", ["x86-64-v3", "x86-64-v4-vnni"])
def test_short_rows_with_a_border_are_filled_whole(name: str) -> None:
    """Pixels of three channels and one more: the border is written with them, before they are."""
    rng = np.random.default_rng(3)
    b = Builder()
    b.input("x", (1, 3, 5, 6), I8)
    b.graph.add_constant("w", rng.integers(-128, 128, (7, 3, 3, 3)).astype(np.int8))
    graph = b.done(b.node("conv2d", "y", "x", "w", **CONV))
    program = build(graph, name)
    fills = [k for k in program.kernels if k.name.endswith("fill")]
    assert len(fills) == 1 and sum(isinstance(s, For) for s in fills[0].body) == 1
    if runs_here(load_target(name)):
        model = api.CompiledModel(program)
        for _ in range(2):
            x = rng.integers(-128, 128, (1, 3, 5, 6)).astype(np.int8)
            np.testing.assert_array_equal(model(x)[0], run(graph, {"x": x})["y"])


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("name", ["x86-64-v3", "x86-64-v4-vnni"])
def test_bytes_between_layers_are_unsigned(name: str, early: bool) -> None:
    """Borders, sums and zero points move with them; inputs and outputs of the graph do not."""
    rng = np.random.default_rng(4)
    b = Builder()
    b.input("x", (1, 4, 5, 6), I8)
    for w, shape in (("w", (4, 4, 1, 1)), ("v", (5, 4, 3, 3)), ("d", (4, 1, 3, 3))):
        b.graph.add_constant(w, rng.integers(-128, 128, shape).astype(np.int8))
    b.graph.add_constant("c", rng.integers(-(2**31), 2**31, 5).astype(np.int32))
    b.graph.add_constant("f", (rng.random((4, 1, 1)) * 0.02).astype(np.float32))
    byte: dict[str, AttrValue] = {"zero_point": -3, "low": -128, "high": 127, "to": "i8"}
    point = {**CONV, "pads": (0, 0, 0, 0)}
    t = b.node("conv2d", "t", "x", "w", **point)
    r = b.node("rescale", "r", t, "f", bounded=False, early=early, **byte)
    plain = {k: v for k, v in CONV.items() if k not in ("pad_value", "group")}
    y, z = (
        b.node("conv2d", "y", r, "v", "c", **CONV),
        b.node("depthwise_conv2d", "z", r, "d", **plain),
    )
    numbers = {"factor_a": 700_001, "factor_b": 400_003, "zero_a": -3, "zero_b": 5, "bits": 20}
    s = b.node("quantized_add", "s", r, "x", **numbers, **byte)
    graph = b.done(y, z, s)
    made = adapt(graph, load_target(name), lambda g, n: None)
    verify(made)
    assert made.types[r].dtype is (U8 if name.endswith("vnni") and not early else I8)
    assert made.types[s].dtype is I8
    values = {"x": rng.integers(-128, 128, (1, 4, 5, 6)).astype(np.int8)}
    for out, want in run(graph, values).items():
        np.testing.assert_array_equal(run(made, values)[out], want)
