"""The peers we measure ourselves against, each with its best single-model settings.

In: a model file, input arrays, a number of threads. Out: objects with `run() -> outputs`.
Invariant: every peer computes in float32 on the same number of threads; one that is not installed or
refuses a model says so in one line.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tilewright.graph.ir import Array

Runner = Callable[[], list[Array]]


class PeerUnavailable(Exception):
    """The peer is not installed or cannot run the model."""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide what native libraries print to stdout and stderr."""
    saved = os.dup(1), os.dup(2)
    with open(os.devnull, "wb") as sink:
        os.dup2(sink.fileno(), 1)
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved[0], 1)
            os.dup2(saved[1], 2)
            os.close(saved[0])
            os.close(saved[1])


def _module(name: str, package: str) -> Any:
    if importlib.util.find_spec(name) is None:
        raise PeerUnavailable(f"{package} is not installed")
    with _quiet():
        return importlib.import_module(name)


def onnxruntime(path: Path, names: Sequence[str], inputs: Sequence[Array], threads: int) -> Runner:
    """ONNX Runtime, CPU provider, all graph optimisations, sequential."""
    ort = _module("onnxruntime", "onnxruntime")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = dict(zip(names, inputs, strict=True))
    return lambda: session.run(None, feed)  # type: ignore[no-any-return]


def openvino(path: Path, names: Sequence[str], inputs: Sequence[Array], threads: int) -> Runner:
    """OpenVINO, latency mode, float32 forced, no dynamic quantisation."""
    ov = _module("openvino", "openvino")
    core = ov.Core()
    model = core.read_model(str(path))
    by_name = {n: port for port in model.inputs for n in port.get_names()}
    model.reshape({by_name[n]: list(a.shape) for n, a in zip(names, inputs, strict=True)})
    settings = {
        "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0", "NUM_STREAMS": "1",
    }  # fmt: skip
    compiled = core.compile_model(model, "CPU", settings)
    request = compiled.create_infer_request()
    ports = {n: port for port in compiled.inputs for n in port.get_names()}
    feed = {ports[n]: a for n, a in zip(names, inputs, strict=True)}

    def run() -> list[Array]:
        request.infer(feed, share_inputs=True, share_outputs=True)
        return [request.get_output_tensor(i).data for i in range(len(compiled.outputs))]

    return run


def mnn(path: Path, names: Sequence[str], inputs: Sequence[Array], threads: int) -> Runner:
    """MNN, converted with its own converter, high precision (float32).

    The converter's C extension is called directly: importing `MNN.tools` would install and start a
    log uploader.
    """
    _module("MNN", "MNN")
    converter, nn, expr = (_module(n, "MNN") for n in ("_tools", "MNN.nn", "MNN.expr"))
    folder = tempfile.mkdtemp(prefix="tilewright-mnn-")
    converted = str(Path(folder) / "model.mnn")
    with _quiet():
        arguments = ["mnnconvert", "-f", "ONNX", "--modelFile", str(path), "--MNNModel", converted]
        converter.mnnconvert([*arguments, "--bizCode", "bench"])
        if not Path(converted).is_file():
            raise PeerUnavailable("MNN cannot convert the model")
        settings = {"precision": "high", "backend": "CPU", "numThread": threads}
        manager = nn.create_runtime_manager((settings,))
        loaded = nn.load_module_from_file(converted, [], [], runtime_manager=manager)
        outputs = loaded.get_info()["outputNames"]
        net = nn.load_module_from_file(
            converted, list(names), outputs, runtime_manager=manager, shape_mutable=False
        )
    kinds = {np.dtype(np.float32): expr.float, np.dtype(np.int32): expr.int}
    feed = []
    for a in inputs:
        array = a.astype(np.int32) if a.dtype == np.int64 else a
        if array.dtype not in kinds:
            raise PeerUnavailable(f"MNN takes no {a.dtype} inputs from Python")
        layout = expr.NCHW
        feed.append(expr.const(array, list(array.shape), layout, kinds[array.dtype]))

    def run() -> list[Array]:
        return [np.asarray(expr.convert(v, expr.NCHW).read()) for v in net.forward(feed)]

    return run


def tvm(path: Path, names: Sequence[str], inputs: Sequence[Array], threads: int) -> Runner:
    """TVM through its Relax importer, untuned, default pipeline for this CPU."""
    tvm_ = _module("tvm", "apache-tvm")
    onnx = importlib.import_module("onnx")
    frontend = importlib.import_module("tvm.relax.frontend.onnx")
    os.environ["TVM_NUM_THREADS"] = str(threads)
    shapes = {n: list(a.shape) for n, a in zip(names, inputs, strict=True)}
    with _quiet():
        module = frontend.from_onnx(
            onnx.load(str(path)), shape_dict=shapes, keep_params_in_input=False
        )
        target = tvm_.target.Target({"kind": "llvm", "mcpu": "native"})
        built = tvm_.relax.build(tvm_.relax.get_pipeline("zero")(module), target=target)
    machine = tvm_.relax.VirtualMachine(built, tvm_.cpu())
    feed = [tvm_.runtime.tensor(a) for a in inputs]

    def run() -> list[Array]:
        out = machine["main"](*feed)
        return [o.numpy() for o in (out if isinstance(out, list | tuple) else [out])]

    return run


PEERS: dict[str, Callable[[Path, Sequence[str], Sequence[Array], int], Runner]] = {
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "mnn": mnn,
    "tvm": tvm,
}
