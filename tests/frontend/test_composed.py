"""Einsum, DFT, STFT, packed weights: compiled code against NumPy and ONNX Runtime."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tilewright.errors import UnsupportedError
from tilewright.frontend.onnx import load_onnx
from tilewright.pipeline import build
from tilewright.session import Session

RNG = np.random.default_rng(0)


def f(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


def model(
    nodes: list[onnx.NodeProto], arrays: dict[str, Any], stored: dict[str, Any], opset: int = 21
) -> onnx.ModelProto:
    inputs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for n, a in arrays.items()
    ]
    constants = [numpy_helper.from_array(np.asarray(a), n) for n, a in stored.items()]
    graph = helper.make_graph(
        nodes, "g", inputs, [helper.make_empty_tensor_value_info("y")], constants
    )
    domains = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=domains, ir_version=10)


def run(proto: onnx.ModelProto, feeds: dict[str, Any]) -> tuple[Any, list[str]]:
    """The result of compiled code, and the operators of its steps."""
    program = build(load_onnx(proto), "host")
    session = Session(program)
    session.set_inputs(feeds)
    return session.run()[0], [s.op for s in program.steps]


EQUATIONS = {
    "ij,jk->ik": [(3, 4), (4, 5)], "ij,jk,kl->il": [(3, 4), (4, 5), (5, 2)],
    "bhqd,bhkd->bhqk": [(2, 3, 4, 5), (2, 3, 6, 5)], "...ij,...jk->...ik": [(2, 3, 4), (2, 4, 5)],
    "...a,...a->...": [(2, 1, 4), (3, 4)], "i,j": [(3,), (4,)], "ii": [(4, 4)], "ii->i": [(4, 4)],
    "iij->j": [(3, 3, 4)], "iii->i": [(3, 3, 3)], "ji": [(3, 4)], "ij,ij->": [(3, 4), (3, 4)],
    "abc,cd,def->abef": [(2, 3, 4), (4, 5), (5, 6, 2)], "i...->...": [(3, 4, 5)],
    "ij,kl->ijkl": [(2, 3), (4, 5)], "ij,k->i": [(2, 3), (4,)], "ij,ij,ij->i": [(3, 4)] * 3,
    "bnij,bnjk->bik": [(2, 3, 4, 5), (2, 3, 5, 2)], ",->": [(), ()],
}  # fmt: skip


@pytest.mark.parametrize("equation", EQUATIONS)
def test_einsum(equation: str) -> None:
    feeds = {f"x{i}": f(*s) for i, s in enumerate(EQUATIONS[equation])}
    node = helper.make_node("Einsum", list(feeds), ["y"], equation=equation)
    got, _ = run(model([node], feeds, {}), feeds)
    want = np.einsum(equation, *[x.astype(np.float64) for x in feeds.values()])
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("equation", "shape"), [("ij->k", (2, 3)), ("ijk->i", (2, 3)), ("i1->i", (2, 2))]
)
def test_bad_equations_are_refused(equation: str, shape: tuple[int, ...]) -> None:
    x = f(*shape)
    node = helper.make_node("Einsum", ["x"], ["y"], equation=equation)
    with pytest.raises(UnsupportedError, match="equation"):
        load_onnx(model([node], {"x": x}, {}))


@pytest.mark.parametrize("n", [1, 7, 97, 400])
def test_transforms_of_any_length(n: int) -> None:
    x = f(2, n, 2)
    axis = {"n": np.asarray(n), "axis": np.asarray(1)}

    def dft(value: Any, **attrs: Any) -> Any:
        node = helper.make_node("DFT", ["x", "n", "axis"], ["y"], **attrs)
        got, _ = run(model([node], {"x": value}, axis), {"x": value})
        return got[..., 0] if got.shape[-1] == 1 else got[..., 0] + 1j * got[..., 1]

    whole = x[..., 0] + 1j * x[..., 1].astype(np.complex128)
    size = np.sqrt(n)
    np.testing.assert_allclose(dft(x), np.fft.fft(whole, axis=1), atol=4e-6 * size)
    np.testing.assert_allclose(dft(x, inverse=1), np.fft.ifft(whole, axis=1), atol=4e-6)
    real = x[..., :1]
    half = np.fft.rfft(real[..., 0].astype(np.float64), axis=1)
    np.testing.assert_allclose(dft(real, onesided=1), half, atol=4e-6 * size)
    if n > 1:
        bins = np.stack([half.real, half.imag], -1).astype(np.float32)
        np.testing.assert_allclose(dft(bins, onesided=1, inverse=1), real[..., 0], atol=1e-5)


def test_short_time_transform() -> None:
    x, window = f(2, 200, 1), np.hanning(32).astype(np.float32)
    stored = {"step": np.asarray(10), "window": window, "n": np.asarray(32)}
    node = helper.make_node("STFT", ["x", "step", "window", "n"], ["y"])
    got, _ = run(model([node], {"x": x}, stored, 17), {"x": x})
    frames = np.stack([x[:, i : i + 32, 0] for i in range(0, 169, 10)], 1)
    want = np.fft.rfft(frames * window)
    np.testing.assert_allclose(got[..., 0] + 1j * got[..., 1], want, atol=1e-4)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("depth", [64, 100])
def test_packed_products_agree_with_onnxruntime(bits: int, depth: int) -> None:
    runtime = pytest.importorskip("onnxruntime")
    blocks, columns, x = -(-depth // 32), 33, f(2, 3, depth)
    stored: dict[str, Any] = {
        "b": RNG.integers(0, 256, (columns, blocks, 4 * bits)).astype(np.uint8),
        "s": RNG.random(columns * blocks).astype(np.float32) + np.float32(0.1),
    }
    if bits == 4:
        stored["z"] = RNG.integers(0, 256, columns * ((blocks + 1) // 2)).astype(np.uint8)
    attrs = {"K": depth, "N": columns, "bits": bits, "block_size": 32}
    node = helper.make_node("MatMulNBits", ["x", *stored], ["y"], domain="com.microsoft", **attrs)
    proto = model([node], {"x": x}, stored)
    want = runtime.InferenceSession(proto.SerializeToString()).run(None, {"x": x})[0]
    got, ops = run(proto, {"x": x})
    assert ops[-1] == "matmul_nbits"
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=2e-4 * np.abs(want).max())


@pytest.mark.parametrize("kind", [ml_dtypes.int4, ml_dtypes.uint4, np.int8])
@pytest.mark.parametrize("rows", [1, 40])
def test_dequantized_weights_stay_packed(kind: Any, rows: int) -> None:
    x, q = f(rows, 64), RNG.integers(0, 8, (64, 48)).astype(np.int8).astype(kind)
    scales = RNG.random((2, 48)).astype(np.float32) + np.float32(0.1)
    stored = {"q": q, "s": scales, "z": np.ones((2, 48), np.int8).astype(kind)}
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"], axis=0, block_size=32),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    got, ops = run(model(nodes, {"x": x}, stored), {"x": x})
    want = x.astype(np.float64) @ ((q.astype(np.float64) - 1) * np.repeat(scales, 32, axis=0))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)
    assert ops == ["matmul" if kind is np.int8 and rows > 8 else "matmul_nbits"]


@pytest.mark.parametrize("name", ["dscnn_kws", "resnet8_ic", "autoencoder_ad"])
def test_quantised_models_give_onnxruntime_s_bytes(name: str) -> None:
    from pathlib import Path

    runtime = pytest.importorskip("onnxruntime")
    path = Path(__file__).resolve().parents[1] / "data" / f"mlperftiny_{name}_int8_qdq.onnx"
    theirs = runtime.InferenceSession(path)
    first = theirs.get_inputs()[0]
    x = RNG.integers(-128, 128, [d if isinstance(d, int) else 1 for d in first.shape]).astype(
        np.int8
    )
    session = Session(build(path, "host"))
    session.set_inputs([x])
    np.testing.assert_array_equal(session.run()[0], theirs.run(None, {first.name: x})[0])


@pytest.mark.parametrize(("batch", "space"), [(1, (3, 4)), (2, (2, 3, 4)), (1, (1, 5))])
@pytest.mark.parametrize("aligned", [0, 1])
def test_affine_grid(batch: int, space: tuple[int, ...], aligned: int) -> None:
    """A batch of one, too, which ONNX's function body loses."""
    dims = len(space)
    feeds = {"theta": f(batch, dims, dims + 1)}
    node = helper.make_node("AffineGrid", ["theta", "size"], ["y"], align_corners=aligned)
    size = np.array([batch, 3, *space], np.int64)
    proto = model([node], feeds, {"size": size})
    got, _ = run(proto, feeds)
    ort = pytest.importorskip("onnxruntime")
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (want,) = session.run(None, feeds)
    if aligned and 1 in space:  # ONNX Runtime divides 0 by 0 there
        assert np.isfinite(got).all()
        return
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
