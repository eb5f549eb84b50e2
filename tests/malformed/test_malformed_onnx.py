"""Broken and hostile model files: one clear `ModelError` each, never a crash, never another exception."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from graph_helpers import model
from onnx import ModelProto, NodeProto, TensorProto, helper

from tilewright.errors import ModelError
from tilewright.frontend.onnx import check_onnx, load_onnx
from tilewright.graph.verify import verify

node = helper.make_node
DATA = Path(__file__).resolve().parents[1] / "data"
W = np.ones((4, 3, 3, 3), np.float32)


def conv(**attrs: object) -> ModelProto:
    return model(
        [node("Conv", ["x", "w"], ["c"], **attrs), node("Relu", ["c"], ["y"])],
        {"x": [1, 3, 8, 8]}, ["y"], {"w": W},
    )  # fmt: skip


def changed(change: Callable[[ModelProto], object]) -> ModelProto:
    m = conv(strides=[1, 1])
    change(m)
    return m


def tensor(m: ModelProto, **changes: object) -> None:
    for name, value in changes.items():
        setattr(m.graph.initializer[0], name, value)


def add(m: ModelProto, *nodes: NodeProto) -> None:
    m.graph.node.extend(nodes)


def attribute(m: ModelProto, name: str, value: object) -> None:
    n = m.graph.node[0]
    kept = [a for a in n.attribute if a.name != name]
    del n.attribute[:]
    n.attribute.extend([*kept, helper.make_attribute(name, value)])


def dims(m: ModelProto, *values: int) -> None:
    del m.graph.initializer[0].dims[:]
    m.graph.initializer[0].dims.extend(values)


BROKEN: dict[str, tuple[str, Callable[[ModelProto], object]]] = {
    "dangling input": ("reads `nope`, which nothing defines", lambda m: m.graph.node[0].input.__setitem__(0, "nope")),
    "cycle": ("part of a cycle", lambda m: m.graph.node[0].input.__setitem__(0, "y")),
    "value defined twice": ("defines `c` a second time", lambda m: add(m, node("Neg", ["x"], ["c"]))),
    "value called like an input": ("defines `x` a second time", lambda m: add(m, node("Neg", ["c"], ["x"]))),
    "initializer twice": ("`w` is defined twice", lambda m: m.graph.initializer.append(m.graph.initializer[0])),
    "input twice": ("`x` is defined twice", lambda m: m.graph.input.append(m.graph.input[0])),
    "no outputs": ("has no outputs", lambda m: m.graph.ClearField("output")),
    "empty graph": ("has no outputs", lambda m: m.graph.Clear()),
    "unknown output": ("output `q` is not computed", lambda m: m.graph.output.append(onnx.ValueInfoProto(name="q"))),
    "opset 0": ("does not say which opset", lambda m: setattr(m.opset_import[0], "version", 0)),
    "an opset that cannot be": ("opset 4611686018427387904", lambda m: setattr(m.opset_import[0], "version", 1 << 62)),
    "no opset": ("does not say which opset", lambda m: m.ClearField("opset_import")),
    "attribute of a wrong type": ("`strides` is STRING, but must be INTS", lambda m: attribute(m, "strides", "two")),
    "float for ints": ("`strides` is FLOATS, but must be INTS", lambda m: attribute(m, "strides", [1.5, 1.0])),
    "unknown attribute": ("no attribute `stride`", lambda m: attribute(m, "stride", 1)),
    "zero stride": ("strides", lambda m: attribute(m, "strides", [0, 1])),
    "negative pads": ("pads", lambda m: attribute(m, "pads", [-1, 0, 0, 0])),
    "huge pads": ("", lambda m: attribute(m, "pads", [1 << 60] * 4)),
    "too few strides": ("strides", lambda m: attribute(m, "strides", [1])),
    "too few inputs": ("has 1 inputs, it takes 2 to 3", lambda m: m.graph.node[0].input.pop()),
    "too many inputs": ("has 4 inputs", lambda m: m.graph.node[0].input.extend(["w", "w"])),
    "required input left out": ("input `W` is missing", lambda m: m.graph.node[0].input.__setitem__(1, "")),
    "attribute missing": ("`to` is missing", lambda m: m.graph.node[1].__setattr__("op_type", "Cast")),
    "negative input dim": ("negative dimension -5", lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[0], "dim_value", -5)),
    "huge input": ("at most", lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[0], "dim_value", 1 << 60)),
    "input without type": ("without a type", lambda m: m.graph.input[0].ClearField("type")),
    "input of strings": ("STRING", lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 8)),
    "input of an unknown type": ("9999", lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 9999)),
    "sequence input": ("is a sequence_type", lambda m: m.graph.input[0].type.sequence_type.SetInParent()),
    "tensor of complex64": ("COMPLEX64", lambda m: tensor(m, data_type=TensorProto.COMPLEX64)),
    "tensor of an unknown type": ("999", lambda m: tensor(m, data_type=999)),
    "tensor too short": ("bytes of data", lambda m: tensor(m, raw_data=b"123")),
    "tensor without data": ("initializer `w`", lambda m: m.graph.initializer[0].ClearField("raw_data")),
    "tensor of negative dims": ("negative dimension", lambda m: dims(m, -1, 3, 3, 3)),
    "tensor of huge dims": ("at most", lambda m: dims(m, 1 << 40, 1 << 40)),
    "dims that overflow to the right size": ("at most", lambda m: dims(m, *[1 << 16] * 4, 108)),
    "tensor of rank 99": ("rank 99", lambda m: dims(m, *[1] * 99)),
    "channels that do not fit": ("node `c`", lambda m: dims(m, 4, 9, 3, 1)),
    "sparse": ("sparse", lambda m: m.graph.sparse_initializer.add()),
    "unknown operator": ("no such operator", lambda m: setattr(m.graph.node[1], "op_type", "Reluu")),
    "unknown domain": ("evil::Relu", lambda m: setattr(m.graph.node[1], "domain", "evil")),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken(name: str) -> None:
    message, change = BROKEN[name]
    m = changed(change)
    with pytest.raises(ModelError) as err:
        load_onnx(m)
    text = str(err.value)
    assert message in text and "\n" not in text and text
    assert check_onnx(m)


def test_huge_constants_are_not_made() -> None:
    sizes = np.array([1 << 30, 4])
    fill = node("ConstantOfShape", ["s"], ["f"])
    for nodes in (
        [fill],
        [node("Expand", ["one", "s"], ["f"])],
        [node("Tile", ["one", "s"], ["f"])],
    ):
        m = model(
            [*nodes, node("ReduceMax", ["f"], ["g"], axes=[1]), node("Add", ["x", "g"], ["y"])],
            {"x": [1]}, ["y"], {"s": sizes, "one": np.ones((1, 1), np.float32)},
        )  # fmt: skip
        with pytest.raises(ModelError):
            load_onnx(m)
    for bounds in ((0, 1 << 62, 1), (0, 5, 0)):
        names = dict(zip(("a", "b", "c"), map(np.array, bounds), strict=True))
        m = model([node("Range", list(names), ["y"])], {}, ["y"], names)
        with pytest.raises(ModelError):
            load_onnx(m)


def branch(*nodes: NodeProto) -> onnx.GraphProto:
    return helper.make_graph(list(nodes), "g", [], [onnx.ValueInfoProto(name="t")])


def nested(levels: int) -> ModelProto:
    """`If` in `If`: protobuf itself refuses more than about 30 levels in bytes."""
    inner = node("Relu", ["x"], ["t"])
    for _ in range(levels):
        inner = node("If", ["c"], ["t"], then_branch=branch(inner), else_branch=branch(inner))
    return model([inner], {"x": [2]}, ["t"], {"c": np.array(True)})


def test_deep_nesting() -> None:
    assert len(load_onnx(nested(9)).nodes) == 1


def test_text_that_is_not_utf8() -> None:
    data = conv(strides=[1, 1]).SerializeToString().replace(b"Relu", b"Re\xffu")
    with pytest.raises(ModelError, match="not UTF-8"):
        load_onnx(data)


# ---------------------------------------------------------------- files


@pytest.mark.parametrize(
    "data", [b"", b"\0", b"hello world, this is not a model", b"\x80" * 99, b"PK\3\4"]
)
def test_not_a_model(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    for source in (data, path):
        with pytest.raises(ModelError):
            load_onnx(source)


def test_no_file(tmp_path: Path) -> None:
    for path in (tmp_path / "none.onnx", tmp_path, "a\0b"):
        with pytest.raises(ModelError):
            load_onnx(path)


def test_every_truncation(tmp_path: Path) -> None:
    data = conv(strides=[1, 1]).SerializeToString()
    for end in range(len(data)):
        with pytest.raises(ModelError):
            load_onnx(data[:end])


MODELS = ["mlperftiny_dscnn_kws_fp32_randw", "mlperftiny_resnet8_ic_fp32_randw"]


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """A few bytes of the graph's structure changed, moved or lost."""
    raw = bytearray(data)
    for _ in range(int(rng.integers(1, 6))):
        at = int(rng.integers(0, len(raw)))
        match int(rng.integers(0, 4)):
            case 0:
                raw[at] = int(rng.integers(0, 256))
            case 1:
                raw[at] ^= 1 << int(rng.integers(0, 8))
            case 2:
                del raw[at : at + int(rng.integers(1, 9))]
            case _:
                raw[at:at] = raw[at : at + int(rng.integers(1, 9))]
    return bytes(raw)


def small(name: str) -> bytes:
    """A model without the values of its weights, so that mutations hit structure."""
    m = onnx.load(DATA / f"{name}.onnx")
    for t in m.graph.initializer:
        values = onnx.numpy_helper.to_array(t)
        if values.size > 64:
            where = [1] * max(values.ndim, 1)
            t.CopyFrom(onnx.numpy_helper.from_array(values.reshape(-1)[:1].reshape(where), t.name))
    return m.SerializeToString()


@pytest.mark.parametrize("name", ["conv", *MODELS])
def test_mutated_files(name: str) -> None:
    """Whatever happens to the bytes: a graph or a ModelError."""
    data = conv(strides=[1, 1]).SerializeToString() if name == "conv" else small(name)
    rng = np.random.default_rng(3)
    for _ in range(300):
        broken = mutated(data, rng)
        try:
            load_onnx(broken)
        except ModelError as err:
            assert "\n" not in str(err)
        check_onnx(broken)


# ---------------------------------------------------------------- external data


def external(folder: Path, location: str, **more: str) -> Path:
    m = conv(strides=[1, 1])
    t = m.graph.initializer[0]
    t.ClearField("raw_data")
    t.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **more}.items():
        t.external_data.add(key=key, value=value)
    path = folder / "m.onnx"
    path.write_bytes(m.SerializeToString())
    return path


def test_external_data_is_read(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal(W.shape).astype(np.float32)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "w.bin").write_bytes(b"1234" + values.tobytes() + b"5")
    path = external(tmp_path, "sub/w.bin", offset="4", length=str(values.nbytes))
    np.testing.assert_array_equal(load_onnx(path).constants["w"], values)
    with pytest.raises(ModelError, match="not read from a folder"):
        load_onnx(path.read_bytes())


@pytest.mark.parametrize(
    ("location", "more", "message"),
    [
        ("../w.bin", {}, "outside the model's folder"),
        ("sub/../../w.bin", {}, "outside the model's folder"),
        ("/etc/passwd", {}, "outside the model's folder"),
        ("link.bin", {}, "outside the model's folder"),
        ("linked/w.bin", {}, "outside the model's folder"),
        ("loop", {}, "cannot be opened|not a path"),
        ("pipe", {}, "not a regular file"),
        ("hard.bin", {}, "hard links"),
        ("sub/../hard.bin", {}, "hard links|cannot be opened"),
        ("folder", {}, "not a regular file"),
        ("", {}, "outside the model's folder"),
        (".", {}, "not a regular file"),
        ("a\0b", {}, "not a path"),
        ("x" * 5000, {}, "cannot be opened|not a path"),
        ("none.bin", {}, "cannot be opened"),
        ("w.bin", {"offset": "-1"}, "wants bytes"),
        ("w.bin", {"offset": "1"}, "needs 432"),
        ("w.bin", {"length": "-1"}, "wants bytes"),
        ("w.bin", {"length": "433"}, "truncated"),
        ("w.bin", {"length": "4"}, "needs 432"),
        ("w.bin", {"offset": "99999999999999999999"}, "wants bytes"),
        ("w.bin", {"offset": "four"}, "not a number"),
    ],
)
def test_external_data_is_refused(
    tmp_path: Path, location: str, more: dict[str, str], message: str
) -> None:
    home = tmp_path / "home"
    (home / "folder").mkdir(parents=True)
    for where in (tmp_path, home):
        (where / "w.bin").write_bytes(W.tobytes())
    (home / "link.bin").symlink_to(tmp_path / "w.bin")
    (home / "linked").symlink_to(tmp_path)
    (home / "loop").symlink_to(home / "loop")
    os.mkfifo(home / "pipe")
    (tmp_path / "secret.bin").write_bytes(W.tobytes())
    (home / "hard.bin").hardlink_to(tmp_path / "secret.bin")
    with pytest.raises(ModelError, match=message):
        load_onnx(external(home, location, **more))


def test_links_inside_the_folder_are_fine(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(W.tobytes())
    (tmp_path / "link.bin").symlink_to("w.bin")
    assert "w" in load_onnx(external(tmp_path, "link.bin")).constants


STRANGE_INTS = (-(1 << 63), -2, -1, 0, 1, 2, 3, 7, 16, 99, 1 << 31, (1 << 62) + 1)


def shaken(m: ModelProto, rng: np.random.Generator) -> None:
    """One change that leaves a readable file: a number, a name, a type or a list of some node."""
    g = m.graph
    names = (
        [t.name for t in g.initializer] + [o for n in g.node for o in n.output] + ["", "nowhere"]
    )
    n = g.node[int(rng.integers(len(g.node)))]
    number = int(rng.choice(np.array(STRANGE_INTS)))
    a = n.attribute[int(rng.integers(len(n.attribute)))] if n.attribute else None
    t = g.initializer[int(rng.integers(len(g.initializer)))]
    match int(rng.integers(0, 8)):
        case 0 if n.input:
            n.input[int(rng.integers(len(n.input)))] = str(rng.choice(names))
        case 1 if a is not None and a.ints:
            a.ints[int(rng.integers(len(a.ints)))] = number
        case 2 if a is not None:
            a.i, a.f = number, float(rng.choice([np.nan, np.inf, -1.0, 0.0, 1e30]))
        case 3 if a is not None:
            n.attribute.remove(a)
        case 4:
            n.op_type = str(rng.choice([o.op_type for o in g.node] + OTHERS))
        case 5 if t.dims:
            t.dims[int(rng.integers(len(t.dims)))] = number
        case 6:
            t.data_type = int(rng.integers(0, 24))
        case _:
            n.input.append(str(rng.choice(names)))


OTHERS = [
    "Reshape", "Transpose", "Slice", "Concat", "Pad", "Gather", "Expand", "Tile", "Split", "Squeeze", "Unsqueeze",
    "Resize", "Softmax", "ReduceSum", "ArgMax", "Clip", "Cast", "Where", "Range", "ConstantOfShape", "If", "Loop",
    "LayerNormalization", "BatchNormalization", "ConvTranspose", "MaxPool", "AveragePool", "LRN", "PRelu", "Gemm",
    "MatMul", "GatherND", "DepthToSpace", "Flatten", "Shape", "Constant", "Dropout", "NonZero", "Mod", "Pow",
]  # fmt: skip


@pytest.mark.parametrize("name", ["conv", *MODELS])
def test_shaken_models(name: str) -> None:
    """Readable files that make no sense: a verified graph or a ModelError."""
    data = conv(strides=[1, 1]).SerializeToString() if name == "conv" else small(name)
    rng = np.random.default_rng(5)
    for _ in range(300):
        m = onnx.load_from_string(data)
        for _ in range(int(rng.integers(1, 4))):
            shaken(m, rng)
        try:
            verify(load_onnx(m))
        except ModelError as err:
            assert "\n" not in str(err)
        check_onnx(m)
