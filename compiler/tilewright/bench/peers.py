"""The peers we measure ourselves against, each with its best single-model settings.

In: a `Case` (model file, input arrays by name, output names, threads). Out: a function that computes
the outputs once, in the model's order.
Invariant: every peer computes in float32 on the same number of threads, through its leanest Python
call; one that is not installed or refuses a model says so in one line.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from tilewright.bench.litert import PACKAGE, open_interpreter, set_inputs
from tilewright.bench.zoo import cache_dir
from tilewright.frontend.expose import read_proto
from tilewright.frontend.models import is_tflite
from tilewright.graph.ir import Array

Runner = Callable[[], list[Array]]

#: What TVM may measure per model when it is tuned: minutes on one core for a small model.
DEFAULT_TRIALS = 256


@dataclass(frozen=True, slots=True)
class Case:
    """A model to run: its file, inputs by name, names of its outputs, threads to use; how many candidates
    TVM may measure if it is to be tuned."""

    path: Path
    inputs: Mapping[str, Array]
    outputs: Sequence[str]
    threads: int
    tvm_trials: int = DEFAULT_TRIALS


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
            for number, old in zip((1, 2), saved, strict=True):
                os.dup2(old, number)
                os.close(old)


def _module(name: str, package: str) -> Any:
    if importlib.util.find_spec(name) is None:
        raise PeerUnavailable(f"{package} is not installed")
    with _quiet():
        return importlib.import_module(name)


# ---------------------------------------------------------------- the peers


def onnxruntime(case: Case) -> Runner:
    """ONNX Runtime: CPU provider, all graph optimisations, sequential, shapes fixed in advance."""
    ort = _module("onnxruntime", "onnxruntime")

    def open_session(free: Mapping[str, int]) -> Any:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.intra_op_num_threads = case.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        for dim, extent in free.items():
            options.add_free_dimension_override_by_name(dim, extent)
        return ort.InferenceSession(str(case.path), options, providers=["CPUExecutionProvider"])

    session = open_session({})
    free: dict[str, set[int]] = {}
    for wanted in session.get_inputs():
        if wanted.name in case.inputs:
            for dim, extent in zip(wanted.shape, case.inputs[wanted.name].shape, strict=True):
                if isinstance(dim, str):
                    free.setdefault(dim, set()).add(extent)
    fixed = {dim: extents.pop() for dim, extents in free.items() if len(extents) == 1}
    if fixed:
        session = open_session(fixed)
    binding = session.io_binding()
    for name, array in case.inputs.items():
        binding.bind_cpu_input(name, array)
    for output in session.get_outputs():
        binding.bind_output(output.name, "cpu")

    def run() -> list[Array]:
        session.run_with_iobinding(binding)
        return [v.numpy() for v in binding.get_outputs()]

    return run


def openvino(case: Case) -> Runner:
    """OpenVINO: latency mode, float32 forced, no dynamic quantisation, inputs shared."""
    ov = _module("openvino", "openvino")
    core = ov.Core()
    model = core.read_model(str(case.path))
    by_name = {n: port for port in model.inputs for n in port.get_names()}
    model.reshape({by_name[n]: list(a.shape) for n, a in case.inputs.items()})
    settings = {
        "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": case.threads, "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    }  # fmt: skip
    compiled = core.compile_model(model, "CPU", settings)
    request = compiled.create_infer_request()
    for port in compiled.inputs:
        name = next(n for n in port.get_names() if n in case.inputs)
        request.set_tensor(port, ov.Tensor(case.inputs[name], shared_memory=True))
    outputs = [request.get_output_tensor(i).data for i in range(len(compiled.outputs))]
    native: Any = super(type(request), request)  # skips the copying of inputs in the Python wrapper

    def run() -> list[Array]:
        native.infer({}, True, False)
        return outputs

    try:
        run()
    except TypeError:  # another version of the binding: its public, slower call

        def run() -> list[Array]:
            request.infer(share_outputs=True)
            return outputs

    return run


_MNN_INPUTS = {"float32": "float", "int32": "int"}


def mnn(case: Case) -> Runner:
    """MNN: converted with its own converter (kept in the cache), high precision is float32."""
    _module("MNN", "MNN")
    nn, expr = _module("MNN.nn", "MNN"), _module("MNN.expr", "MNN")
    arrays = [a.astype(np.int32) if a.dtype == np.int64 else a for a in case.inputs.values()]
    refused = next((a.dtype for a in arrays if a.dtype.name not in _MNN_INPUTS), None)
    if refused is not None:
        raise PeerUnavailable(f"MNN takes no {refused} inputs from Python")
    converted = str(_converted(case.path))
    settings = {"precision": "high", "backend": "CPU", "numThread": case.threads}
    with _quiet():
        manager = nn.create_runtime_manager((settings,))
        known = nn.load_module_from_file(converted, [], [], runtime_manager=manager)
        outputs = list(known.get_info()["outputNames"])
        if set(case.outputs) <= set(outputs):
            outputs = list(case.outputs)
        net = nn.load_module_from_file(
            converted, list(case.inputs), outputs, runtime_manager=manager, shape_mutable=False
        )
        feed = [
            expr.const(a, list(a.shape), expr.NCHW, getattr(expr, _MNN_INPUTS[a.dtype.name]))
            for a in arrays
        ]
    return lambda: [np.asarray(expr.convert(v, expr.NCHW).read()) for v in net.forward(feed)]


def _converted(path: Path) -> Path:
    """The model in MNN's format, converted once per model and version.

    The converter's C extension is called directly: importing `MNN.tools` would install and start a
    log uploader.
    """
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    target = cache_dir().parent / "peers" / f"{digest}-{metadata.version('MNN')}.mnn"
    if not target.is_file():
        converter = _module("_tools", "MNN")
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder, _quiet():
            made = Path(folder) / "model.mnn"
            arguments = ["--modelFile", str(path), "--MNNModel", str(made), "--bizCode", "bench"]
            converter.mnnconvert(["mnnconvert", "-f", "ONNX", *arguments])
            if not made.is_file():
                raise PeerUnavailable("MNN cannot convert the model")
            made.replace(target)
    return target


def tvm(case: Case, tuned: bool = False) -> Runner:
    """TVM: Relax importer, default pipeline for this CPU; `tuned` searches schedules first."""
    os.environ["TVM_NUM_THREADS"] = str(case.threads)  # read once, when TVM makes its pool
    tvm_ = _module("tvm", "apache-tvm")
    frontend = _module("tvm.relax.frontend.onnx", "apache-tvm")
    shapes = {n: list(a.shape) for n, a in case.inputs.items()}
    proto = read_proto(case.path)
    with _quiet():
        module = frontend.from_onnx(proto, shape_dict=shapes, keep_params_in_input=False)
        cpu = {"kind": "llvm", "mcpu": tvm_.target.codegen.llvm_get_system_cpu()}
        if tuned:
            target = tvm_.target.Target({**cpu, "num-cores": case.threads})
            module = _tvm_tuned(tvm_, module, target, case.tvm_trials)
        else:
            target = tvm_.target.Target(cpu)
            module = tvm_.relax.get_pipeline("zero")(module)
        built = tvm_.relax.build(module, target=target)
        machine = tvm_.relax.VirtualMachine(built, tvm_.cpu())
    feed = [tvm_.runtime.tensor(a) for a in case.inputs.values()]

    def run() -> list[Array]:
        out = machine["main"](*feed)
        return [o.numpy() for o in ([out] if hasattr(out, "numpy") else out)]

    return run


def _tvm_tuned(tvm_: Any, module: Any, target: Any, trials: int) -> Any:
    """The module with schedules that TVM's own tuner finds by measuring `trials` candidates.

    The tuner runs in a child process, which a crash of it ends; this one reads what it found.
    """
    with tempfile.TemporaryDirectory(prefix="tilewright-tvm-") as folder:

        def searched(count: int) -> Any:
            pipeline = tvm_.relax.get_pipeline(
                "static_shape_tuning", target=target, total_trials=count, work_dir=folder
            )
            with target:
                return pipeline(module)

        child = os.fork()
        if child == 0:
            try:
                searched(trials)
                os._exit(0)
            finally:
                os._exit(1)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code:
            how = f"was ended by signal {-code}" if code < 0 else "failed"
            raise PeerUnavailable(f"the tuner of this version of TVM {how}: use `tvm`, untuned")
        return searched(0)


def litert(case: Case) -> Runner:
    """LiteRT: the format's own runtime, with XNNPACK, which it uses unless told otherwise."""
    if not is_tflite(case.path):
        raise PeerUnavailable("LiteRT runs .tflite files only")
    _module(PACKAGE, "ai-edge-litert")
    interpreter = open_interpreter(case.path, num_threads=case.threads)
    set_inputs(interpreter, case.inputs)
    outputs = [d["index"] for d in interpreter.get_output_details()]

    def run() -> list[Array]:
        interpreter.invoke()
        return [np.asarray(interpreter.get_tensor(i)) for i in outputs]

    return run


def _onnx_only(peer: Callable[[Case], Runner]) -> Callable[[Case], Runner]:
    """`peer` for ONNX files; it refuses others."""

    def run(case: Case) -> Runner:
        if is_tflite(case.path):
            raise PeerUnavailable("it runs ONNX files only")
        return peer(case)

    return run


PEERS: dict[str, Callable[[Case], Runner]] = {
    "onnxruntime": _onnx_only(onnxruntime),
    "openvino": openvino,
    "mnn": _onnx_only(mnn),
    "tvm": _onnx_only(tvm),
    "tvm-tuned": _onnx_only(partial(tvm, tuned=True)),
    "litert": litert,
}
PACKAGES = {
    "onnxruntime": "onnxruntime", "openvino": "openvino", "mnn": "MNN", "tvm": "apache-tvm",
    "tvm-tuned": "apache-tvm", "litert": "ai-edge-litert",
}  # fmt: skip


def version(peer: str) -> str:
    """Installed version of a peer, empty if it is not installed."""
    try:
        return metadata.version(PACKAGES[peer])
    except metadata.PackageNotFoundError:
        return ""
