"""The ONNX frontend on small models: shapes, names, constants, functions, branches, problems."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from graph_helpers import model, ops, random_inputs
from onnx import TensorProto, helper

from tilewright.errors import ModelError, UnsupportedError
from tilewright.frontend.onnx import check_onnx, load_onnx
from tilewright.graph.interp import run
from tilewright.graph.ir import Graph
from tilewright.graph.verify import verify

ort = pytest.importorskip("onnxruntime")

node = helper.make_node
F32 = np.float32


def agrees(m: onnx.ModelProto, shapes: dict[str, tuple[int, ...]] | None = None) -> Graph:
    """Import, verify, and compare with ONNX Runtime."""
    graph = load_onnx(m, shapes)
    verify(graph)
    assert graph.outputs == [o.name for o in m.graph.output]
    inputs = random_inputs(graph)
    session = ort.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"])
    want = session.run(None, inputs)
    got = run(graph, inputs)
    for name, w in zip(graph.outputs, want, strict=True):
        assert got[name].dtype == w.dtype
        np.testing.assert_allclose(got[name], w, rtol=1e-5, atol=1e-6)
    return graph


# ---------------------------------------------------------------- shapes of inputs


def test_symbolic_dims_become_one_and_say_so() -> None:
    said: list[str] = []
    m = model([node("Relu", ["x"], ["y"])], {"x": ["batch", 3]}, ["y"])
    graph = load_onnx(m, notify=said.append)
    assert graph.types["y"].shape == (1, 3)
    assert said == ["input `x`: dimension `batch` is symbolic, using 1 (set it with --shape x=...)"]


def test_a_given_dim_holds_for_every_input_of_that_symbol() -> None:
    said: list[str] = []
    m = model([node("Add", ["x", "z"], ["y"])], {"x": ["n", 3], "z": ["n", "k"]}, ["y"])
    graph = load_onnx(m, {"x": (5, 3)}, said.append)
    assert graph.types["z"].shape == (5, 1) and len(said) == 1
    assert load_onnx(m, {"x": (-1, 3), "z": (4, 3)}).types["x"].shape == (4, 3)


def test_unnamed_dims_are_not_tied() -> None:
    m = model([node("Relu", ["x"], ["y"])], {"x": ["?", "?"]}, ["y"])
    assert load_onnx(m, {"x": (2, 3)}).types["y"].shape == (2, 3)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"q": (1,)}, "names `q`, but the model's inputs are: x, z"),
        ({"x": (2, 3, 4)}, "has 3 dims, the input has 2"),
        ({"x": (2, 4)}, "the model fixes dimension 1 to 3"),
        ({"x": (2, 3), "z": (4, 3)}, "`n` is already 2 in another input"),
        ({"x": (-2, 3)}, "is negative"),
    ],
)
def test_contradicting_shapes(shapes: dict[str, tuple[int, ...]], message: str) -> None:
    m = model([node("Add", ["x", "z"], ["y"])], {"x": ["n", 3], "z": ["n", 3]}, ["y"])
    with pytest.raises(ModelError, match=message):
        load_onnx(m, shapes)


def test_initializers_that_are_also_inputs_are_constants() -> None:
    m = model([node("Add", ["x", "c"], ["y"])], {"x": [3], "c": [3]}, ["y"], {"c": np.ones(3, F32)})
    assert agrees(m).inputs == ["x"]


# ---------------------------------------------------------------- names


def test_values_keep_their_names() -> None:
    m = model(
        [node("Relu", ["x"], ["a/b:0"]), node("HardSwish", ["a/b:0"], ["53"]), node("Neg", ["53"], ["y"])],
        {"x": [4]}, ["y"],
    )  # fmt: skip
    assert [n.outputs[0] for n in agrees(m).nodes][-3:] == ["a/b:0", "53", "y"]


def test_outputs_have_the_models_names() -> None:
    m = model(
        [
            node("Relu", ["x"], ["r"]), node("Identity", ["r"], ["same"]), node("Identity", ["r"], ["too"]),
            node("Identity", ["x"], ["input"]), node("Identity", ["c"], ["constant"]),
            node("Neg", ["r"], ["n"]), node("Identity", ["n"], ["m"]),
        ],
        {"x": [4]}, ["same", "input", "constant", "too", "n", "m"], {"c": np.ones(2, F32)},
    )  # fmt: skip
    assert ops(agrees(m)).count("copy") == 4


@pytest.mark.parametrize(
    ("stem", "name"), [("my-model.v2", "my_model_v2"), ("2x", "m_2x"), ("ü", "_")]
)
def test_graph_name_is_a_c_identifier(tmp_path: Path, stem: str, name: str) -> None:
    path = tmp_path / f"{stem}.onnx"
    onnx.save(model([node("Relu", ["x"], ["y"])], {"x": [4]}, ["y"]), path)
    assert load_onnx(path).name == name


# ---------------------------------------------------------------- constants


def test_shape_arithmetic_is_constant() -> None:
    m = model(
        [
            node("Shape", ["x"], ["s"]), node("Gather", ["s", "zero"], ["n"], axis=0),
            node("Concat", ["n", "rest"], ["t"], axis=0), node("Reshape", ["x", "t"], ["y"]),
            node("ConstantOfShape", ["t"], ["ones"], value=helper.make_tensor("v", 1, [1], [1.0])),
            node("NonZero", ["ones"], ["where"]), node("Cast", ["where"], ["z"], to=TensorProto.FLOAT),
        ],
        {"x": [2, 3, 4]}, ["y", "z"], {"zero": np.array([0]), "rest": np.array([-1])},
    )  # fmt: skip
    m.graph.node[4].input[0] = "s"
    assert ops(agrees(m)) == ["reshape"]


def test_range_size_and_dropout() -> None:
    m = model(
        [
            node("Size", ["x"], ["n"]), node("Range", ["zero", "n", "two"], ["r"]),
            node("Cast", ["r"], ["f"], to=TensorProto.FLOAT), node("Dropout", ["x"], ["d", "mask"]),
            node("Mul", ["d", "f"], ["y"]),
        ],
        {"x": [1, 6, 1]}, ["y", "mask"], {"zero": np.array(0), "two": np.array(2)},
    )  # fmt: skip
    assert ops(agrees(m))[0] == "mul"


def test_quantised_weights_fold() -> None:
    rng = np.random.default_rng(0)
    w = rng.integers(-127, 128, (4, 5)).astype(np.int8)
    m = model(
        [
            node("Cast", ["w"], ["f"], to=TensorProto.FLOAT), node("Mul", ["f", "s"], ["g"]),
            node("MatMul", ["x", "g"], ["y"]),
        ],
        {"x": [3, 4]}, ["y"], {"w": w, "s": np.array(0.01, F32)},
    )  # fmt: skip
    graph = agrees(m)
    assert ops(graph) == ["matmul"] and "w" not in graph.constants


def test_dead_nodes_are_not_imported() -> None:
    m = model([node("Relu", ["x"], ["y"]), node("NoSuchOp", ["x"], ["z"])], {"x": [4]}, ["y"])
    assert ops(load_onnx(m)) == ["relu"] and not check_onnx(m)


def test_nodes_out_of_order_are_sorted() -> None:
    m = model([node("Neg", ["r"], ["y"]), node("Relu", ["x"], ["r"])], {"x": [4]}, ["y"])
    graph = load_onnx(m)
    verify(graph)
    assert ops(graph) == ["relu", "neg"]


# ---------------------------------------------------------------- nested graphs


def branch(name: str, *nodes: onnx.NodeProto) -> onnx.GraphProto:
    out = onnx.ValueInfoProto(name=nodes[-1].output[0])
    return helper.make_graph(
        list(nodes), name, [], [helper.make_tensor_value_info(out.name, 1, None)]
    )


def test_if_with_a_constant_condition() -> None:
    bad = branch("else", node("NonMaxSuppression", ["x", "x"], ["e"]))
    m = model(
        [node("If", ["c"], ["y"], then_branch=branch("then", node("Relu", ["x"], ["t"])), else_branch=bad)],
        {"x": [4]}, ["y"], {"c": np.array(True)},
    )  # fmt: skip
    graph = load_onnx(m)
    assert ops(graph) == ["relu"] and graph.nodes[0].outputs == ("y",)


@pytest.mark.parametrize("rank", [0, 1])
def test_if_at_run_time(rank: int) -> None:
    inner = branch("inner", node("Neg", ["v"], ["w"]))
    other = branch("other", node("Abs", ["v"], ["w"]))
    m = model(
        [
            node("Relu", ["x"], ["v"]),
            node("If", ["b_c"], ["y"],
                 then_branch=branch("then", node("Exp", ["v"], ["v2"]), node("Neg", ["v2"], ["t"])),
                 else_branch=branch("else", node("If", ["b_d"], ["v2"], then_branch=inner, else_branch=other))),
        ],
        {"x": [4], "b_c": [1] * rank, "b_d": []}, ["y"],
    )  # fmt: skip
    graph = agrees(m)
    assert ops(graph).count("where") == 2


def test_if_with_different_shapes_is_refused() -> None:
    other = branch("else", node("Flatten", ["x"], ["e"]))
    m = model(
        [node("If", ["b_c"], ["y"], then_branch=branch("then", node("Neg", ["x"], ["t"])), else_branch=other)],
        {"x": [4], "b_c": []}, ["y"],
    )  # fmt: skip
    with pytest.raises(
        UnsupportedError, match=r"f32\[4\] and f32\[4, 1\]|f32\[4\] and f32\[1, 4\]"
    ):
        load_onnx(m)


def function() -> onnx.FunctionProto:
    """leak(x, scale?) = LeakyRelu(x; alpha) * scale; its inner values have names of the outer graph."""
    leaky = node("LeakyRelu", ["a"], ["y"])
    leaky.attribute.append(
        onnx.AttributeProto(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT)
    )
    return helper.make_function(
        "mine", "Leak", ["a", "scale"], ["out"], [leaky, node("Mul", ["y", "scale"], ["out"])],
        [helper.make_opsetid("", 17)], ["slope"],
    )  # fmt: skip


def test_functions_are_inlined() -> None:
    m = model(
        [
            node("Leak", ["x", "c"], ["v"], domain="mine", slope=0.25),
            node("Leak", ["v", "c"], ["w"], domain="mine"), node("Relu", ["w"], ["y"]),
        ],
        {"x": [4]}, ["y"], {"c": np.array(3, F32)}, functions=[function()], domains=["mine"],
    )  # fmt: skip
    graph = agrees(m)
    assert [n.outputs[0] for n in graph.nodes] == ["v/y", "v", "w/y", "w", "y"]


def test_functions_that_call_themselves() -> None:
    loop = helper.make_function(
        "mine", "Loop2", ["a"], ["b"], [node("Loop2", ["a"], ["b"], domain="mine")],
        [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)],
    )  # fmt: skip
    m = model(
        [node("Loop2", ["x"], ["y"], domain="mine")],
        {"x": [4]},
        ["y"],
        functions=[loop],
        domains=["mine"],
    )
    with pytest.raises(ModelError, match="calls itself"):
        load_onnx(m)


def test_functions_that_explode() -> None:
    """Each calls the next twice: 2 to the power of 30 nodes in a file of a few kilobytes."""
    chain = [
        helper.make_function(
            "mine", f"F{i}", ["a"], ["b"],
            [node(f"F{i + 1}", ["a"], ["t"], domain="mine"), node(f"F{i + 1}", ["t"], ["b"], domain="mine")],
            [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)],
        )
        for i in range(30)
    ]  # fmt: skip
    last = helper.make_function(
        "mine", "F30", ["a"], ["b"], [node("Identity", ["a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    m = model(
        [node("F0", ["x"], ["y"], domain="mine")],
        {"x": [4]},
        ["y"],
        functions=[*chain, last],
        domains=["mine"],
    )
    with pytest.raises(ModelError, match="at most 200000 are supported"):
        load_onnx(m)


# ---------------------------------------------------------------- problems


def endless() -> onnx.GraphProto:
    """The body of a loop that goes on as long as its condition does."""
    values = [helper.make_empty_tensor_value_info(n) for n in ("i", "go", "v")]
    return helper.make_graph([], "body", values, values[1:])


def several_problems() -> onnx.ModelProto:
    return model(
        [
            node("Relu", ["x"], ["a"], name="fine"),
            node("Celuu", ["a"], ["b"], name="unknown"),
            node("Relu", ["b"], ["c"], name="behind"),
            node("Conv", ["v", "w"], ["d"], name="volume", auto_pad="SOME"),
            node("Loop", ["", "b_c", "x"], ["e"], name="loop", body=endless()),
            node("Mystery", ["e"], ["f"], name="foreign", domain="com.example"),
            node("Sum", ["c", "f"], ["y"], name="end"), node("Identity", ["d"], ["z"]),
        ],
        {"x": [1, 4], "v": [1, 2, 3, 4, 5], "b_c": []}, ["y", "z"],
        {"w": np.ones((1, 2, 1, 1, 1), F32)}, domains=["com.example"],
    )  # fmt: skip


def test_all_problems_at_once() -> None:
    found = {p.node: p for p in check_onnx(several_problems())}
    assert set(found) == {"unknown", "volume", "loop", "foreign"}
    assert found["unknown"].hint == "check its name, ONNX has no such operator"
    assert "auto_pad SOME is not one of" in found["volume"].reason
    assert found["loop"].reason.startswith("how often it runs is not bounded")
    assert found["foreign"].op_type == "com.example::Mystery"
    with pytest.raises(UnsupportedError) as err:
        load_onnx(several_problems())
    assert len(err.value.problems) == 4
    assert err.value.problems[0].startswith(
        "node `unknown` (Celuu): operator Celuu is not supported"
    )


def test_types_behind_a_problem_come_from_shape_inference() -> None:
    """What reads an unsupported node is checked with the type that ONNX infers for it."""
    m = model(
        [
            node("RandomUniformLike", ["x"], ["d"], name="first"), node("Relu", ["d"], ["r"], name="fine"),
            node("GlobalLpPool", ["v"], ["p"], name="second"),
            node("RandomNormalLike", ["p"], ["q"], name="third"), node("Bernoulli", ["q"], ["s"], name="fourth"),
        ],
        {"x": [2, 3, 3], "v": [1, 2, 4, 4]}, ["r", "s"],
    )  # fmt: skip
    found = [p.node for p in check_onnx(m)]
    assert found[:1] == ["first"] and "third" in found and "fourth" in found


def test_check_of_a_good_model_and_of_no_model() -> None:
    assert check_onnx(model([node("Relu", ["x"], ["y"])], {"x": [4]}, ["y"])) == []
    (problem,) = check_onnx(b"not a model")
    assert problem.broken and "not an ONNX file" in problem.reason
