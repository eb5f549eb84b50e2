"""Known classes of attack by small files, and the fuzzer that looks for others.

Every model here is read in a process of its own, with a limit on memory and time.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from graph_helpers import model
from onnx import ModelProto, NodeProto, TensorProto, helper

from tilewright.testing.malformed import fuzz_models
from tilewright.testing.mutations import mutate, shrunk, standard_models
from tilewright.testing.sandbox import Sandbox

node = helper.make_node
DATA = Path(__file__).resolve().parents[1] / "data"
HUGE = np.array([1 << 15, 1 << 15])
ONE = np.ones((1, 1), np.float32)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as box:
        yield box


def consumed(*nodes: NodeProto, **constants: object) -> ModelProto:
    """The nodes' last result, reduced: what is huge must not be made on the way."""
    last = nodes[-1].output[0]
    tail = [node("ReduceMax", [last], ["m"], keepdims=0), node("Add", ["x", "m"], ["y"])]
    arrays = {k: np.asarray(v) for k, v in constants.items()}
    return model([*nodes, *tail], {"x": [1]}, ["y"], arrays)


def function(name: str, *nodes: NodeProto) -> onnx.FunctionProto:
    return helper.make_function(
        "own", name, ["a"], ["b"], list(nodes), [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    )  # fmt: skip


def calling(*functions: onnx.FunctionProto) -> ModelProto:
    return model([node("f0", ["x"], ["y"], domain="own")], {"x": [2]}, ["y"], {}, functions=functions, domains=["own"])  # fmt: skip


def doubling(levels: int) -> ModelProto:
    """Functions that call the next one twice: 2**levels nodes."""
    made = [
        function(f"f{i}", node(f"f{i + 1}", ["a"], ["t"], domain="own"), node(f"f{i + 1}", ["t"], ["b"], domain="own"))
        for i in range(levels)
    ]  # fmt: skip
    return calling(*made, function(f"f{levels}", node("Relu", ["a"], ["b"])))


def concats(levels: int) -> ModelProto:
    """A constant that doubles with every node."""
    steps = [node("Concat", [f"c{i}", f"c{i}"], [f"c{i + 1}"], axis=0) for i in range(levels)]
    return consumed(*steps, c0=np.ones(64, np.float32))


def conditions(levels: int) -> ModelProto:
    """`If` in `If`, both branches of which hold the next: 2**levels nodes."""
    inner = node("Relu", ["x"], ["t"])
    for _ in range(levels):
        graph = helper.make_graph([inner], "g", [], [onnx.ValueInfoProto(name="t")])
        inner = node("If", ["b_c"], ["t"], then_branch=graph, else_branch=graph)
    return model([inner], {"x": [2], "b_c": []}, ["t"])


def loops() -> ModelProto:
    """A loop of many rounds in a loop of many rounds."""

    def body(inner: NodeProto) -> onnx.GraphProto:
        def value(name: str, kind: int, *dims: int) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(name, kind, dims)

        return helper.make_graph(
            [node("Identity", ["c"], ["d"]), inner], "g",
            [value("i", TensorProto.INT64), value("c", TensorProto.BOOL), value("v", TensorProto.FLOAT, 2)],
            [value("d", TensorProto.BOOL), value("w", TensorProto.FLOAT, 2)],
        )  # fmt: skip

    once = node("Loop", ["n", "", "v"], ["w"], body=body(node("Relu", ["v"], ["w"])))
    outer = node("Loop", ["n", "", "x"], ["y"], body=body(once))
    return model([outer], {"x": [2]}, ["y"], {"n": np.array(1 << 40)})


def changed(m: ModelProto, **fields: object) -> ModelProto:
    """The first stored tensor with other fields."""
    t = m.graph.initializer[0]
    for key, value in fields.items():
        if key == "dims":
            del t.dims[:]
            t.dims.extend(value)  # type: ignore[arg-type]
        else:
            setattr(t, key, value)
    return m


def stored() -> ModelProto:
    return model([node("Add", ["x", "w"], ["y"])], {"x": [4]}, ["y"], {"w": np.ones(4, np.float32)})


def sparse() -> ModelProto:
    m = stored()
    t = m.graph.sparse_initializer.add()
    t.dims.extend([1 << 40])
    t.values.CopyFrom(onnx.numpy_helper.from_array(np.ones(1, np.float32), "s"))
    t.indices.CopyFrom(onnx.numpy_helper.from_array(np.array([-5]), "i"))
    return m


def resized(**more: object) -> ModelProto:
    return consumed(node("Resize", ["r", "", "", "s"], ["z"]), r=np.ones((1, 1, 2, 2), np.float32), **more)  # fmt: skip


NAN = float("nan")
CORPUS = {
    "shapes that overflow to the right size": lambda: changed(stored(), dims=[1 << 32, 1 << 32, 4]),
    "a dim of 2**63-1": lambda: changed(stored(), dims=[(1 << 63) - 1]),
    "more dims than data": lambda: changed(stored(), dims=[1 << 30]),
    "less dims than data": lambda: changed(stored(), dims=[3]),
    "an element type of the wrong size": lambda: changed(stored(), data_type=TensorProto.DOUBLE),
    "a tensor of strings": lambda: changed(stored(), data_type=TensorProto.STRING),
    "an unknown element type": lambda: changed(stored(), data_type=77),
    "a sparse tensor": sparse,
    "a function that calls itself": lambda: calling(function("f0", node("f0", ["a"], ["b"], domain="own"))),
    "functions that call each other": lambda: calling(
        function("f0", node("f1", ["a"], ["b"], domain="own")), function("f1", node("f0", ["a"], ["b"], domain="own"))
    ),
    "functions that double": lambda: doubling(25),
    "constants that double": lambda: concats(40),
    "branches that double": lambda: conditions(12),
    "loops in loops": loops,
    "a huge ConstantOfShape": lambda: consumed(node("ConstantOfShape", ["s"], ["z"]), s=HUGE),
    "a huge Expand": lambda: consumed(node("Expand", ["o", "s"], ["z"]), o=ONE, s=HUGE),
    "a shape of many dims": lambda: consumed(node("Expand", ["o", "s"], ["z"]), o=ONE, s=np.zeros(99999, np.int64)),
    "a huge Tile": lambda: consumed(node("Tile", ["o", "s"], ["z"]), o=ONE, s=HUGE),
    "a Tile that overflows": lambda: consumed(node("Tile", ["o", "s"], ["z"]), o=ONE, s=np.array([1 << 62, 4])),
    "a huge Range": lambda: consumed(node("Range", ["a", "b", "c"], ["z"]), a=np.array(0), b=np.array(1 << 62), c=np.array(1)),
    "a Range of NaN": lambda: consumed(node("Range", ["a", "b", "c"], ["z"]), a=np.float32(0), b=np.float32(NAN), c=np.float32(1)),
    "a huge Pad": lambda: consumed(node("Pad", ["o", "s"], ["z"]), o=ONE, s=np.array([1 << 20, 0, 1 << 20, 0])),
    "a huge Resize": lambda: resized(s=np.array([1, 1, 1 << 15, 1 << 15])),
    "a Resize to nothing": lambda: resized(s=np.array([1, 1, -1, 0])),
    "a huge OneHot": lambda: consumed(node("OneHot", ["o", "d", "v"], ["z"]), o=np.zeros(1, np.int64), d=np.array(1 << 40), v=np.array([0.0, 1.0])),
    "a huge product of constants": lambda: consumed(
        node("ConstantOfShape", ["s"], ["f"]), node("MatMul", ["f", "f"], ["z"]), s=np.array([1 << 12, 1 << 12])
    ),
    "a window that is mostly padding": lambda: model(
        [node("MaxPool", ["x"], ["y"], kernel_shape=[1 << 30, 1 << 30], pads=[1 << 29] * 4)], {"x": [1, 1, 2, 2]}, ["y"]
    ),
    "a constant Gather out of range": lambda: consumed(node("Gather", ["o", "i"], ["z"]), o=ONE, i=np.array([1 << 62])),
    "a constant GatherND out of range": lambda: consumed(node("GatherND", ["o", "i"], ["z"]), o=ONE, i=np.array([[-9, 7]])),
    "a constant GatherElements out of range": lambda: consumed(node("GatherElements", ["o", "i"], ["z"]), o=ONE, i=np.array([[-9]])),
    "a constant ScatterND out of range": lambda: consumed(
        node("ScatterND", ["o", "i", "u"], ["z"]), o=ONE, i=np.array([[0, 1 << 62]]), u=np.ones(1, np.float32)
    ),
    "a Slice out of range": lambda: consumed(
        node("Slice", ["o", "a", "b", "c", "d"], ["z"]), o=np.ones(4, np.float32),
        a=np.array([-(1 << 63)]), b=np.array([(1 << 63) - 1]), c=np.array([0]), d=np.array([(1 << 63) - 1]),
    ),
    "a Slice with an axis out of range": lambda: consumed(
        node("Slice", ["o", "a", "b", "c"], ["z"]), o=np.ones(4, np.float32), a=np.array([0]), b=np.array([1]), c=np.array([1 << 40])
    ),
    "an attribute that is NaN": lambda: model([node("LRN", ["x"], ["y"], size=3, alpha=NAN, beta=NAN)], {"x": [1, 2, 2, 2]}, ["y"]),
    "an axis of -2**63": lambda: model([node("Softmax", ["x"], ["y"], axis=-(1 << 63))], {"x": [2]}, ["y"]),
    "a group of 0": lambda: model([node("Conv", ["x", "w"], ["y"], group=0)], {"x": [1, 1, 4, 4]}, ["y"], {"w": np.ones((1, 1, 3, 3), np.float32)}),
    "a graph as an input's name": lambda: model([node("Relu", ["x"], ["x"])], {"x": [2]}, ["x"]),
}  # fmt: skip


@pytest.mark.parametrize("name", CORPUS)
def test_attacks(name: str, sandbox: Sandbox, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(CORPUS[name]().SerializeToString())
    verdict = sandbox.read(path)
    assert not verdict.is_bug, verdict
    assert verdict.peak_bytes < 1 << 30, verdict


def test_the_sandbox_notices() -> None:
    """What it is for: memory, and another exception, are told from a refusal."""
    with Sandbox(memory=1 << 20) as box:
        verdict = box.read(DATA / "mlperftiny_resnet8_ic_fp32_randw.onnx")
    assert verdict.is_bug and verdict.outcome in ("memory", "escaped", "crashed")


def seeds() -> dict[str, bytes]:
    found = {p.name: shrunk(p.read_bytes()) for p in sorted(DATA.glob("*ic_*.onnx"))}
    return found | {f"{k}.onnx": CORPUS[k]().SerializeToString() for k in ("a Slice out of range", "a huge Pad", "loops in loops")}  # fmt: skip


def test_mutations_are_repeatable() -> None:
    models = list(seeds().values())
    one, two = (mutate(models[0], np.random.default_rng(7), models) for _ in range(2))
    assert one == two != models[0]


def check(models: dict[str, bytes], cases: int, seed: int) -> None:
    report = fuzz_models(models, cases, seed)
    assert not report.findings, "\n".join(map(str, report.findings.values()))
    assert report.cases == cases and report.largest < 1 << 30


def test_fuzz_shortly() -> None:
    check(seeds(), 40, 1)


@pytest.mark.slow
def test_fuzz_long() -> None:
    """20,000 broken versions of ONNX's own test cases: about half an hour."""
    check({f"{k}.onnx": v for k, v in standard_models()}, 20_000, 2)
