"""Three ways to compute one operator, to be compared: its reference, its lowering, compiled code.

Every fixture is a function. The loop nest that `lower` writes runs in the interpreter of the loop
IR; inputs lie in arrays with exactly the border that `wishes` asks for, so a wish that is too small
is an access outside the array, and a wrong fill is a wrong result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tilewright.core.index import Ix
from tilewright.frontend.onnx import load_onnx
from tilewright.graph import interp as graph_interp
from tilewright.graph.ir import Array, Graph, Node, type_of
from tilewright.loop import interp as loop_interp
from tilewright.loop.builder import KernelBuilder, Reader
from tilewright.loop.ir import Buffer, Expr, Kernel, Load, Param, Store, dense
from tilewright.registry import Operator, Sample

Run = Callable[[Operator, Sample], list[Array]]


def _reference(op: Operator, sample: Sample) -> list[Array]:
    with np.errstate(all="ignore"):
        return op.reference(sample.inputs, sample.attrs)


def _types(sample: Sample) -> list[Any]:
    return [None if a is None else type_of(a) for a in sample.inputs]


def _interpret(op: Operator, sample: Sample) -> list[Array]:
    """Run the unscheduled loop nest of `op` on a sample."""
    types = _types(sample)
    (out,) = op.infer(types, sample.attrs)
    wish = op.wishes(types, sample.attrs) if op.wishes else None
    arrays: dict[str, Array] = {}
    params: list[Param] = []
    readers: list[Reader | None] = []
    k = KernelBuilder()
    for i, array in enumerate(sample.inputs):
        if array is None:
            readers.append(None)
            continue
        wanted = wish.halos.get(i) if wish else None
        border = wanted or ((0, 0),) * array.ndim
        fill = wish.fill if wish else 0
        arrays[f"x{i}"] = np.pad(array, border, constant_values=fill) if wanted else array
        buffer = dense(f"x{i}", types[i].dtype, arrays[f"x{i}"].shape)
        params.append(Param(buffer, "in"))
        readers.append(_reader(k, array, buffer, border))
    buffer = dense("y", out.dtype, out.shape)
    params.append(Param(buffer, "out"))
    arrays["y"] = np.zeros(out.shape, out.dtype.numpy)

    def emit(index: tuple[Ix, ...], value: Expr) -> None:
        k.stmt(Store("y", index, value))

    k.inputs, k.out_shape, k.out_dtype, k._emit = readers, out.shape, out.dtype, emit
    k.result = _reader(k, arrays["y"], buffer, ((0, 0),) * out.rank)
    if op.lower is not None:
        op.lower(k, sample.attrs)
    else:
        assert op.compute is not None
        _nest(op, sample, k, out)
    loop_interp.run(Kernel(op.name, tuple(params), k.finish()), arrays)
    return [arrays["y"]]


def _reader(
    k: KernelBuilder, array: Array, buffer: Buffer, border: Sequence[tuple[int, int]]
) -> Reader:
    def read(index: tuple[Ix, ...]) -> Expr:
        at = tuple(i + lo for i, (lo, _) in zip(index, border, strict=True))
        return Load(buffer.name, k.simplify(at), buffer.dtype)

    return Reader(array.shape, buffer.dtype, read)


def _nest(op: Operator, sample: Sample, k: KernelBuilder, out: Any) -> None:
    """One loop per output dim around the expression of an injective operator."""
    assert op.compute is not None
    compute = op.compute

    def loops(index: tuple[Ix, ...]) -> None:
        if len(index) == out.rank:
            k.emit(index, compute(k.inputs, index, sample.attrs, out, k))
            return
        with k.loop(f"i{len(index)}", out.shape[len(index)]) as i:
            loops((*index, i))

    loops(())


def _compile(op: Operator, sample: Sample, constants: bool) -> list[Array]:
    """Run native code for a graph of this one operator; parameters are constants or inputs."""
    from tilewright.pipeline import build
    from tilewright.session import Session

    g = Graph("one", [], [])
    names: list[str] = []
    for i, array in enumerate(sample.inputs):
        if array is None:
            names.append("")
        elif i and constants:
            names.append(g.add_constant(f"c{i}", array))
        else:
            g.types[f"x{i}"] = type_of(array)
            g.inputs.append(f"x{i}")
            names.append(f"x{i}")
    (g.types["y"],) = op.infer(_types(sample), sample.attrs)
    g.nodes.append(Node("node", op.name, tuple(names), ("y",), sample.attrs))
    g.outputs.append("y")
    session = Session(build(g, "host"))
    session.set_inputs([a for i, a in enumerate(sample.inputs) if f"x{i}" in g.inputs])
    return session.run()


def _model(
    op_type: str,
    arrays: Sequence[Array | None],
    attrs: dict[str, Any],
    opset: int,
    *,
    constants: bool,
    outputs: int = 1,
) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """A model of one node; all inputs but the first are initializers if `constants`."""
    feeds: dict[str, Array] = {}
    inputs, initializers, names = [], [], []
    for i, a in enumerate(arrays):
        names.append("" if a is None else f"i{i}")
        if a is None:
            continue
        if i and (constants or a.dtype == np.int64):
            initializers.append(numpy_helper.from_array(a, f"i{i}"))
        else:
            feeds[f"i{i}"] = a
            kind = helper.np_dtype_to_tensor_dtype(a.dtype)
            inputs.append(helper.make_tensor_value_info(f"i{i}", kind, a.shape))
    made = [f"o{i}" for i in range(outputs)]
    node = helper.make_node(op_type, names, made, name="the_node", **attrs)
    outs = [helper.make_empty_tensor_value_info(o) for o in made]
    graph = helper.make_graph([node], "g", inputs, outs, initializers)
    version = {"opset_imports": [helper.make_opsetid("", opset)], "ir_version": 8}
    return helper.make_model(graph, **version), feeds


def _imported(
    op_type: str,
    arrays: Sequence[Array | None],
    attrs: dict[str, Any] | None = None,
    opset: int = 17,
    *,
    constants: bool = True,
    outputs: int = 1,
) -> list[Array]:
    """What our importer and references make of a model of one node."""
    model, feeds = _model(op_type, arrays, attrs or {}, opset, constants=constants, outputs=outputs)
    graph = load_onnx(model)
    got = graph_interp.run(graph, feeds)
    return [got[o] for o in graph.outputs]


def _runtime(
    op_type: str,
    arrays: Sequence[Array | None],
    attrs: dict[str, Any] | None = None,
    opset: int = 17,
    *,
    constants: bool = True,
) -> list[Array]:
    """What ONNX Runtime makes of the same model."""
    import onnxruntime

    model, feeds = _model(op_type, arrays, attrs or {}, opset, constants=constants)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, feeds))


@pytest.fixture
def reference() -> Run:
    return _reference


@pytest.fixture
def interpret() -> Run:
    return _interpret


@pytest.fixture
def compile_and_run() -> Callable[[Operator, Sample, bool], list[Array]]:
    return _compile


@pytest.fixture
def imported() -> Callable[..., list[Array]]:
    return _imported


@pytest.fixture
def runtime() -> Callable[..., list[Array]]:
    return _runtime
