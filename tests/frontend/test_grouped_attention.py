"""GroupQueryAttention and small language models made of it, compiled, against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import tilewright
from tilewright.errors import UnsupportedError
from tilewright.frontend.onnx import load_onnx
from tilewright.graph.ir import Array

MS = "com.microsoft"
OPSETS = [helper.make_opsetid("", 18), helper.make_opsetid(MS, 1)]


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def info(name: str, kind: int, *shape: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def attention(
    batch: int, length: int, past: int, last: list[int], total: int, packed: bool = False,
    extra: dict[str, Any] | None = None, **attrs: Any,
) -> tuple[onnx.ModelProto, dict[str, Array]]:  # fmt: skip
    """One GroupQueryAttention of 4 heads that share 2, of 16 elements each."""
    rng = np.random.default_rng(7)

    def f(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(np.float32)

    names = ["q", "k", "v", "pk", "pv", "last", "total", "cos", "sin", "", "bias", "sink"]
    arrays: dict[str, Array] = {
        "q": f(batch, length, 128 if packed else 64),
        "k": f(batch, length, 32), "v": f(batch, length, 32),
        "pk": f(batch, 2, past, 16), "pv": f(batch, 2, past, 16), "last": np.array(last, np.int32),
        "total": np.array(total, np.int32), "cos": f(64, 8), "sin": f(64, 8), **(extra or {}),
    }  # fmt: skip
    for n in ("k", "v") if packed else ():
        del arrays[n]
    for n in ("pk", "pv") if not past else ():
        del arrays[n]
    if not attrs.get("do_rotary"):
        del arrays["cos"], arrays["sin"]
    given = [n if n in arrays else "" for n in names]
    while not given[-1]:
        given.pop()
    node = helper.make_node(
        "GroupQueryAttention", given, ["y", "nk", "nv"], "gqa", domain=MS, num_heads=4,
        kv_num_heads=2, **attrs,
    )  # fmt: skip
    free = {n: a for n, a in arrays.items() if n != "total"}
    graph = helper.make_graph(
        [node], "g",
        [info(n, helper.np_dtype_to_tensor_dtype(a.dtype), *a.shape) for n, a in free.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("y", "nk", "nv")],
        [numpy_helper.from_array(arrays["total"], "total")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=OPSETS, ir_version=9), free


@pytest.mark.parametrize(
    ("case", "attrs"),
    [
        ((1, 5, 0, [4], 5), {}),
        ((2, 5, 0, [4, 4], 5), {"do_rotary": 1}),
        ((1, 5, 0, [4], 5, True), {"do_rotary": 1, "rotary_interleaved": 1}),
        ((1, 1, 6, [6], 7), {"do_rotary": 1}),
        ((2, 1, 6, [6, 3], 7), {"do_rotary": 1}),
        ((1, 1, 12, [6], 7), {"do_rotary": 1, "scale": 0.3}),
        ((1, 3, 6, [8], 9), {"do_rotary": 1, "softcap": 5.0}),
        ((1, 4, 12, [3], 4), {"do_rotary": 1}),
        ((1, 6, 0, [5], 6), {"local_window_size": 3}),
        ((1, 1, 9, [9], 10), {"local_window_size": 4}),
        ((1, 5, 0, [4], 5), {"smooth_softmax": 1}),
    ],
)  # fmt: skip
def test_one_node(case: Any, attrs: dict[str, Any]) -> None:
    model, feeds = attention(*case, **attrs)
    want = session(model).run(None, feeds)
    got = tilewright.compile(model)(*feeds.values())
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_scores_are_added_and_sinks_take_part() -> None:
    rng = np.random.default_rng(2)
    for extra in (
        {"bias": rng.standard_normal((1, 4, 5, 5)).astype(np.float32)},
        {"bias": rng.standard_normal((1, 1, 5, 5)).astype(np.float32)},
        {"sink": rng.standard_normal(4).astype(np.float32)},
    ):
        model, feeds = attention(1, 5, 0, [4], 5, extra=extra)
        want = session(model).run(None, feeds)
        for a, b in zip(tilewright.compile(model)(*feeds.values()), want, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_what_does_not_fit_is_refused() -> None:
    model, _ = attention(1, 5, 0, [4], 3)
    with pytest.raises(UnsupportedError, match="5 new positions after 0 in the cache are not 3"):
        load_onnx(model)


# ---------------------------------------------------------------- a whole decoder

LAYERS, WIDTH, INNER, WORDS, ROOM = 2, 64, 96, 128, 24


class Decoder:
    """A language model as exporters write it: int4 weights, a cache of ROOM positions, RMS norms, gated MLP."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(11)
        self.nodes: list[onnx.NodeProto] = []
        self.stored: list[onnx.TensorProto] = []

    def store(self, name: str, a: Array) -> str:
        self.stored.append(numpy_helper.from_array(np.ascontiguousarray(a), name))
        return name

    def floats(self, name: str, *shape: int, by: float = 1.0) -> str:
        return self.store(name, (self.rng.standard_normal(shape) * by).astype(np.float32))

    def add(
        self, op: str, inputs: list[str], outputs: list[str], domain: str = MS, **a: Any
    ) -> str:
        name = next(o for o in outputs if o)
        self.nodes.append(helper.make_node(op, inputs, outputs, f"{op}_{name}", domain=domain, **a))
        return name

    def product(self, x: str, name: str, k: int, n: int, symmetric: bool = False) -> str:
        """x W of 4 bits in blocks of 32."""
        blocks = k // 32
        packed = self.rng.integers(0, 256, (n, blocks, 16)).astype(np.uint8)
        scale = (self.rng.random(n * blocks) * 0.01 + 0.005).astype(np.float32)
        inputs = [x, self.store(f"{name}.w", packed), self.store(f"{name}.s", scale)]
        if not symmetric:
            zeros = self.rng.integers(0, 256, n * ((blocks + 1) // 2)).astype(np.uint8)
            inputs.append(self.store(f"{name}.z", zeros))
        return self.add("MatMulNBits", inputs, [f"{name}.y"], K=k, N=n, bits=4, block_size=32)

    def model(self) -> onnx.ModelProto:
        ones = self.store("one", np.array(1, np.int64))
        self.add(
            "ReduceSum", ["mask", self.store("axis", np.array([1]))], ["count"], "", keepdims=1
        )
        self.add("Sub", ["count", ones], ["last64"], "")
        self.add("Cast", ["last64"], ["last"], "", to=TensorProto.INT32)
        self.add("Shape", ["mask"], ["shape"], "")
        self.add("Gather", ["shape", ones], ["total64"], "")
        self.add("Cast", ["total64"], ["total"], "", to=TensorProto.INT32)
        angles = np.arange(ROOM)[:, None] / 100 ** (np.arange(8) / 8)
        cos = self.store("cos", np.cos(angles).astype(np.float32))
        sin = self.store("sin", np.sin(angles).astype(np.float32))
        h = self.add("Gather", [self.floats("words", WORDS, WIDTH), "ids"], ["h"], "")
        y = self.add(
            "SimplifiedLayerNormalization",
            [h, self.floats("n0", WIDTH)],
            ["norm0"],
            "",
            epsilon=1e-6,
        )
        for i in range(LAYERS):
            q = self.product(y, f"q{i}", WIDTH, WIDTH)
            k, v = (self.product(y, f"{n}{i}", WIDTH, 32, n == "v") for n in "kv")
            at = [q, k, v, f"past_key{i}", f"past_value{i}", "last", "total", cos, sin]
            a = self.add(
                "GroupQueryAttention", at, [f"a{i}", f"present_key{i}", f"present_value{i}"],
                num_heads=4, kv_num_heads=2, do_rotary=1,
            )  # fmt: skip
            a = self.product(a, f"o{i}", WIDTH, WIDTH)
            y = self.normal(h, a, f"m{i}")
            gate, up = (
                self.product(y, f"g{i}", WIDTH, INNER),
                self.product(y, f"u{i}", WIDTH, INNER),
            )
            self.add("Sigmoid", [gate], [f"s{i}"], "")
            self.add("Mul", [gate, f"s{i}"], [f"silu{i}"], "")
            self.add("Mul", [f"silu{i}", up], [f"up{i}"], "")
            h = f"sum_m{i}"
            y = self.normal(h, self.product(f"up{i}", f"d{i}", INNER, WIDTH), f"e{i}")
            h = f"sum_e{i}"
        self.add("MatMul", [y, self.floats("head", WIDTH, WORDS, by=0.1)], ["logits"], "")
        cache = [
            (f"{kind}_{n}{i}", (1, 2, ROOM, 16))
            for kind in ("past", "present") for i in range(LAYERS) for n in ("key", "value")
        ]  # fmt: skip
        kinds = [info(n, TensorProto.FLOAT, *shape) for n, shape in cache]
        ids = [helper.make_tensor_value_info(n, TensorProto.INT64, [1, d]) for n, d in
               (("ids", "n"), ("mask", ROOM))]  # fmt: skip
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, "n", WORDS])
        half = len(kinds) // 2
        graph = helper.make_graph(
            self.nodes, "decoder", [*ids, *kinds[:half]], [logits, *kinds[half:]], self.stored
        )
        return helper.make_model(graph, opset_imports=OPSETS, ir_version=9)

    def normal(self, h: str, x: str, name: str) -> str:
        return self.add(
            "SkipSimplifiedLayerNormalization", [h, x, self.floats(f"{name}.w", WIDTH)],
            [f"{name}.y", "", "", f"sum_{name}"], epsilon=1e-6,
        )  # fmt: skip


def test_a_decoder_writes_what_onnx_runtime_writes() -> None:
    """The prompt in one run, then a word per run; the cache is a state of the second model."""
    model = Decoder().model()
    runs = session(model)
    caches = [f"_{n}{i}" for i in range(LAYERS) for n in ("key", "value")]
    empty = {f"past{c}": np.zeros((1, 2, ROOM, 16), np.float32) for c in caches}
    prompt = np.array([[3, 14, 15, 92, 65]])
    mask = np.zeros((1, ROOM), np.int64)
    mask[:, :5] = 1
    want = runs.run(None, {"ids": prompt, "mask": mask, **empty})
    first = tilewright.compile(model.SerializeToString(), shapes={"n": (5,)})
    got = first(ids=prompt, mask=mask, **empty)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-4, atol=1e-5 * np.abs(want[0]).max())
    states = {f"past{c}": f"present{c}" for c in caches}
    step = tilewright.compile(model.SerializeToString(), shapes={"n": (1,)}, states=states)
    held = want[1:]
    for i in range(ROOM - 5):  # the same words through both, from an empty cache
        word = np.array([[int(prompt[0, i]) if i < 5 else 7 * i % WORDS]])
        mask = (np.arange(ROOM) <= i).astype(np.int64)[None]
        fed = empty if i == 0 else {f"past{c}": a for c, a in zip(caches, held, strict=True)}
        logits, *held = runs.run(None, {"ids": word, "mask": mask, **fed})
        (ours,) = step(ids=word, mask=mask)
        np.testing.assert_allclose(ours, logits, rtol=1e-4, atol=1e-5 * np.abs(logits).max())
