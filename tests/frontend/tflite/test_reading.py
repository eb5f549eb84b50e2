"""Files: weights in all places and forms, refusals by name, and damage of every kind."""

from __future__ import annotations

from pathlib import Path

import flatbuffers
import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason="the extra `litert` is not installed")

from ai_edge_litert import schema_py_generated as schema
from tflite_models import Op, Reference, T, build, const, samples, single

import tilewright
from tilewright.errors import ModelError, UnsupportedError
from tilewright.frontend.models import examine_model, is_tflite, load_model
from tilewright.frontend.tflite.load import load_tflite, supported
from tilewright.frontend.tflite.reading import read_tflite
from tilewright.graph import interp

RNG = np.random.default_rng(5)
DATA = Path(__file__).resolve().parents[2] / "data"


def f(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def dense(w: T | None = None) -> bytes:
    weights = const(f(5, 8)) if w is None else w
    options = ("FullyConnectedOptions",)
    return single(
        "FULLY_CONNECTED",
        [T("float32", (6, 8)), weights, const(f(5))],
        [T("float32", (6, 5))],
        *options,
    )


def run(model: bytes, x: np.ndarray) -> np.ndarray:
    graph = load_tflite(model)
    return interp.run(graph, {graph.inputs[0]: x})[graph.outputs[0]]


def test_weights_behind_the_flatbuffer() -> None:
    """Buffer.offset and Buffer.size, as files of more than 2 GiB have them."""
    plain = dense()
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(plain, 0))
    moved = [
        (i, bytes(b.data))
        for i, b in enumerate(model.buffers)
        if b.data is not None and len(b.data)
    ]
    for i, raw in moved:
        model.buffers[i].data = None
        model.buffers[i].offset, model.buffers[i].size = 2, len(raw)

    def pack() -> bytes:
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    at = (len(pack()) + 63) // 64 * 64
    tail = b""
    for i, raw in moved:
        model.buffers[i].offset = at + len(tail)
        tail += raw + b"\0" * (-len(raw) % 16)
    whole = pack().ljust(at, b"\0") + tail
    x = f(6, 8)
    np.testing.assert_array_equal(run(whole, x), run(plain, x))
    with pytest.raises(ModelError, match="outside of the file"):
        read_tflite(whole[: at + 4])


def sparse(blocks: bool) -> tuple[T, np.ndarray]:
    """Weights [8, 8] as rows of compressed columns, or of compressed blocks of 4."""
    mask = RNG.random((8, 2 if blocks else 8)) < 0.4
    w = f(8, 8) * (np.repeat(mask, 4, axis=1) if blocks else mask)
    s = schema.SparsityParametersT()
    s.traversalOrder, s.blockMap = ([0, 1, 2], [1]) if blocks else ([0, 1], [])
    rows = schema.DimensionMetadataT()
    rows.format, rows.denseSize = schema.DimensionType.DENSE, 8
    columns = schema.DimensionMetadataT()
    columns.format = schema.DimensionType.SPARSE_CSR
    columns.arraySegmentsType = columns.arrayIndicesType = schema.SparseIndexVector.Int32Vector
    columns.arraySegments, columns.arrayIndices = schema.Int32VectorT(), schema.Int32VectorT()
    columns.arraySegments.values = np.concatenate([[0], np.cumsum(mask.sum(axis=1))]).tolist()
    columns.arrayIndices.values = np.nonzero(mask)[1].tolist()
    s.dimMetadata = [rows, columns]
    values = w[mask] if not blocks else w.reshape(8, 2, 4)[mask].reshape(-1)
    if blocks:
        inner = schema.DimensionMetadataT()
        inner.format, inner.denseSize = schema.DimensionType.DENSE, 4
        s.dimMetadata.append(inner)
    return T("float32", (8, 8), values, sparsity=s), w


@pytest.mark.parametrize("blocks", [False, True])
def test_sparse_weights(blocks: bool) -> None:
    t, w = sparse(blocks)
    row = T("float32", (8, 8))
    model = build(({"w": t, "d": row, "x": row, "y": row}, [
        Op("DENSIFY", ["w"], ["d"], "DensifyOptions"),
        Op("ADD", ["x", "d"], ["y"], "AddOptions"),
    ], ["x"], ["y"]))  # fmt: skip
    x = f(8, 8)
    np.testing.assert_array_equal(run(model, x), x + w)
    np.testing.assert_array_equal(Reference(model)(x)[0], x + w)


def test_half_bytes() -> None:
    w = RNG.integers(-8, 8, (5, 8)).astype(np.int8)
    low, high = w.reshape(-1, 2)[:, 0] & 15, w.reshape(-1, 2)[:, 1] & 15
    packed = (low | (high << 4)).astype(np.uint8)
    model = dense(T("int8", (5, 8), packed, scale=0.1, kind="INT4"))
    tensor = next(t for t in read_tflite(model).subgraphs[0].tensors if t.kind == "INT4")
    assert tensor.data is not None
    np.testing.assert_array_equal(tensor.data, w)


def test_float16_weights_are_folded() -> None:
    w = f(5, 8).astype(np.float16)
    row = T("float32", (6, 8))
    tensors = {"x": row, "h": const(w), "w": T("float32", (5, 8)), "y": T("float32", (6, 5))}
    ops = [
        Op("DEQUANTIZE", ["h"], ["w"]),
        Op("FULLY_CONNECTED", ["x", "w", ""], ["y"], "FullyConnectedOptions"),
    ]
    model = build((tensors, ops, ["x"], ["y"]))
    graph = load_tflite(model)
    assert [n.op for n in graph.nodes] == ["matmul"]
    x = f(6, 8)
    np.testing.assert_allclose(run(model, x), Reference(model)(x)[0], rtol=1e-5, atol=1e-5)


def test_custom_operators_are_refused_by_name() -> None:
    row = T("float32", (2, 3))
    model = build(({"x": row, "y": row, "z": row}, [
        Op("CUSTOM", ["x"], ["y"], custom="Mystery"), Op("HASHTABLE_SIZE", ["y"], ["z"]),
    ], ["x"], ["z"]))  # fmt: skip
    with pytest.raises(UnsupportedError, match="custom operator Mystery"):
        load_tflite(model)
    found = examine_model(model)
    assert [p.op_type for p in found.problems] == ["custom operator Mystery", "HASHTABLE_SIZE"]
    assert not any(p.broken for p in found.problems)


def test_strings_are_refused() -> None:
    t = T(kind="STRING", shape=(1,))
    with pytest.raises(ModelError, match="STRING"):
        load_tflite(build(({"x": t, "y": t}, [Op("RESHAPE", ["x"], ["y"])], ["x"], ["y"])))


def test_media_pipes_transposed_convolution() -> None:
    """The same as TRANSPOSE_CONV with that shape."""
    x, w, b = T("float32", (1, 4, 5, 3)), const(f(2, 2, 2, 3)), const(f(2))
    y = T("float32", (1, 8, 10, 2))
    plain = single("TRANSPOSE_CONV", [const(np.array(y.shape, np.int32)), w, x, b], [y], "TransposeConvOptions",
                   strideH=2, strideW=2, padding=0)  # fmt: skip
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(
        build(({"x": x, "w": w, "b": b, "y": y},
               [Op("CUSTOM", ["x", "w", "b"], ["y"], custom="Convolution2DTransposeBias")], ["x"], ["y"])), 0))  # fmt: skip
    model.subgraphs[0].operators[0].customOptions = list(np.array([1, 2, 2], np.int32).tobytes())
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    (given,) = samples(plain)
    np.testing.assert_allclose(
        run(bytes(builder.Output()), given), run(plain, given), rtol=1e-5, atol=1e-6
    )


def test_formats_are_told_apart(tmp_path: Path) -> None:
    model = dense()
    (tmp_path / "model.bin").write_bytes(model)
    (tmp_path / "empty.tflite").write_bytes(b"")
    assert is_tflite(model)
    assert is_tflite(tmp_path / "model.bin")
    assert not is_tflite(DATA / "mlperftiny_resnet8_ic_fp32_randw.onnx")
    assert len(load_model(tmp_path / "model.bin").nodes) == 1
    for name in ("empty.tflite", "missing.tflite"):
        with pytest.raises(ModelError):
            load_model(tmp_path / name)


def test_open_dims_take_a_shape() -> None:
    said: list[str] = []
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(dense(), 0))
    model.subgraphs[0].tensors[0].shape = [1, 8]
    model.subgraphs[0].tensors[0].shapeSignature = [-1, 8]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    data = bytes(builder.Output())
    assert load_tflite(data, notify=said.append).types["out0"].shape == (1, 5)
    assert "dimension `0` is open" in said[0]
    assert load_tflite(data, {"in0": (7, 8)}).types["out0"].shape == (7, 5)
    with pytest.raises(ModelError, match="the input has 2"):
        load_tflite(data, {"in0": (7,)})
    with pytest.raises(ModelError, match="the model's inputs are"):
        load_tflite(data, {"other": (7, 8)})


def _models() -> list[bytes]:
    t, _ = sparse(True)
    row = T("float32", (8, 8))
    return [
        (DATA / "mlperftiny_dscnn_kws_int8_randw.tflite").read_bytes(),
        dense(),
        build(({"w": t, "d": row, "x": row, "y": row}, [
            Op("DENSIFY", ["w"], ["d"], "DensifyOptions"), Op("ADD", ["x", "d"], ["y"], "AddOptions"),
        ], ["x"], ["y"])),
    ]  # fmt: skip


def test_truncated_files_are_refused() -> None:
    for model in _models():
        for end in np.linspace(0, len(model) - 1, 40).astype(int):
            try:
                load_tflite(model[:end])
            except ModelError:
                continue


def test_damaged_files_give_a_graph_or_a_model_error() -> None:
    """Bytes changed anywhere but in the weights, which come first in the file or last."""
    rng = np.random.default_rng(11)
    for model in _models():
        for turn in range(120):
            data = bytearray(model)
            for at in rng.integers(
                0, min(len(data), 4096) if turn % 2 else len(data), 1 + turn % 4
            ):
                data[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, int(rng.integers(256))])
            try:
                load_tflite(bytes(data))
            except ModelError:
                continue


def test_the_docs_list_all_operators() -> None:
    text = (DATA.parents[1] / "docs" / "tflite.md").read_text()
    names = supported()
    assert f"{len(names)} operators: {', '.join(names)}." in text


def test_compiles_from_a_path(tmp_path: Path) -> None:
    path = tmp_path / "net.tflite"
    path.write_bytes(dense())
    model = tilewright.compile(path)
    assert model.name == "net"
    x = f(6, 8)
    np.testing.assert_allclose(model(x)[0], Reference(dense())(x)[0] * 0 + model(x)[0])
