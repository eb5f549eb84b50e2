"""The Python interface: `compile` a model for a target, `load` an artifact.

In: a model file and options. Out: a callable `CompiledModel` that can be saved as an artifact.
Invariant: `compile` needs no linker; what it runs in this process is the code that `save` writes.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilewright.artifact.cuda.write import write_cuda_artifact
from tilewright.artifact.manifest import read as read_manifest
from tilewright.artifact.toolchain import find_compiler
from tilewright.artifact.write import Written, write_artifact
from tilewright.codegen.checked import require_checkable
from tilewright.codegen.llvm import Jit, runs_here, to_assembly, to_object_and_assembly
from tilewright.codegen.module import emit_module, emit_parts
from tilewright.device.board_model import BoardModel
from tilewright.device.cuda_device import CudaModel, require_driver
from tilewright.device.gpu_model import GpuModel
from tilewright.device.linux_model import LinuxArtifact, LinuxModel
from tilewright.errors import ModelError, TargetError, ToolchainError
from tilewright.footprint import Footprint, footprint
from tilewright.gpu import GpuCode, generate_gpu, gpu_assembly
from tilewright.graph.ir import Graph
from tilewright.pipeline import Progress, Shapes, Source, build, largest, resolve_target
from tilewright.program import Program, spec_of
from tilewright.report import StepFacts, step_facts, to_facts
from tilewright.runtime.loader import Pool
from tilewright.runtime.loader import load as load_artifact
from tilewright.runtime.model import Model
from tilewright.schedule.target import Target, load_target
from tilewright.selftest import make_vectors
from tilewright.session import Session

if TYPE_CHECKING:
    from tilewright.tune.state import Result, State


class CompiledModel(Model):
    """A model compiled in this process: call it, inspect `program`, or `save` it as an artifact."""

    def __init__(self, program: Program, threads: int = 1, source_hash: str = "") -> None:
        self.program = program
        self.source_hash = source_hash
        self._session = Session(program, Jit(emit_parts(program.plan(), False), program.target))
        pool = _pool(threads) if threads > 1 else None
        trailing = (self._session.weights.ctypes.data, pool.parallel if pool else None)
        super().__init__(spec_of(program), self._session.main, keep=pool, trailing=trailing)

    def save(self, directory: str | Path) -> Written:
        """Write the artifact: object, static and shared library, header, manifest, C example."""
        return write(self.program, Path(directory), self.source_hash)

    def session(self) -> Session:
        """Step-by-step access for profiling and verification."""
        return self._session


#: A model on a device, or in what stands in for it.
Remote = BoardModel | LinuxModel | CudaModel | GpuModel
#: A model in this process or elsewhere.
Compiled = CompiledModel | Remote


def compile(  # the name users expect, as in re.compile
    model: Source,
    target: str | Target = "host",
    shapes: Shapes | None = None,
    threads: int = 1,
    *,
    states: Mapping[str, str] | None = None,
    device: str | None = None,
    checked: bool = False,
    winograd: bool = True,
    progress: Progress = lambda stage, fraction: None,
    notify: Callable[[str], None] = lambda message: None,
    dump_ir: str | Path | None = None,
) -> Compiled:
    """Compile an ONNX model (path, bytes or `Graph`) and return it as a callable.

    `shapes` fixes the shapes of inputs by name; dims that nothing fixes become 1 and `notify` says so. A dim may
    stay open: `{"x": (1, "tokens"), "tokens": "1..512"}`, where a symbolic dim of the model goes by its name
    alone. The model then takes any size in the range. `{"tokens": (77,)}` fixes a symbolic dim.
    `states` ({"h": "h_next"}) keeps an output for the next call, which gets it as that input: both are gone from
    what a call takes and returns; the first call and the first after `reset()` get zeros.
    `dump_ir` is a directory that receives the text of every stage. A model for another kind of machine
    runs in the target's emulator, or on `device` (ssh://user@host:port). `checked` code looks at every index
    before it uses it and raises `AccessError` instead of an access outside a buffer. `winograd=False` computes all
    convolutions directly, with rounding errors a few times smaller. Raises `ModelError` for a model
    that is broken or not supported, `TargetError` if nothing at hand runs the target's code.
    """
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    machine = resolve_target(target)
    here = device is None and runs_here(machine)
    if threads > 1 and (machine.gpu is not None or machine.board is not None):
        raise TargetError(f"code for {machine.name} takes no threads of ours: use threads=1")
    if machine.gpu is not None and device is None:
        require_driver(machine)
    if checked:
        require_checkable(machine)
    source, shapes = with_states(model, shapes, states, notify)
    program = build(source, machine, shapes, progress, notify, _path(dump_ir), winograd=winograd)
    progress("generate code", 0.0)
    if checked:
        program = program.with_checks()
    digest = source_hash(model)
    made = (
        CompiledModel(program, threads, digest)
        if here
        else remote(program, device, digest, threads)
    )
    progress("done", 1.0)
    return made


def with_states(
    model: Source,
    shapes: Shapes | None,
    states: Mapping[str, str] | None,
    notify: Callable[[str], None] = lambda message: None,
) -> tuple[Source, Shapes | None]:
    """What `pipeline.build` is given for a model whose `states` (input -> output) are declared, and its shapes.

    Raises `ModelError` for pairs that cannot be states, or sizes that stay open.
    """
    if not states:
        return model, shapes
    if any(isinstance(v, str) or any(".." in str(d) for d in v) for v in (shapes or {}).values()):
        raise ModelError("--state needs fixed sizes: give --shape numbers, not ranges")
    from tilewright.frontend.models import load_model
    from tilewright.frontend.states import declare_states

    graph = model if isinstance(model, Graph) else load_model(model, largest(model, shapes), notify)
    return declare_states(graph, states), None


def remote(
    program: Program, device: str | None = None, model_hash: str = "", threads: int = 1
) -> Remote:
    """A program where it can run: on the board that QEMU emulates, on `threads` of a Linux `device`, on a GPU.

    `device` is `ssh://user@host:port/directory`, `local` or `emulator`; the default is the target's
    emulator. Code for a GPU runs on this machine's, or (`emulator`) in an interpreter of its threads.
    Raises `TargetError` if nothing runs the target's code, `ToolchainError` if a tool is
    missing.
    """

    def save(folder: Path) -> Written:
        return write(program, folder, model_hash)

    if program.target.gpu is not None:
        if device not in (None, "emulator"):
            raise TargetError(
                f"{program.target.name} runs on this machine's GPU or in the interpreter: leave out --device "
                "or use `--device emulator`"
            )
        return CudaModel(program, save) if device is None else GpuModel(program)
    if program.target.board is None:
        return LinuxModel(program, device, save, threads)
    if device is not None:
        raise TargetError(f"{program.target.name} runs in QEMU only: leave out --device")
    if program.sizes:
        raise TargetError(
            f"a model with open sizes is not run on an emulated {program.target.name}: compile it, or fix "
            "the sizes"
        )
    return BoardModel(program)


def tune(
    model: Source,
    target: str | Target = "host",
    minutes: float = 5.0,
    shapes: Shapes | None = None,
    *,
    logs: str | Path | None = None,
    executor: Executor | None = None,
    slots: int = 1,
    device: str = "",
    seed: int | None = None,
    report: Callable[[State], None] = lambda state: None,
    notify: Callable[[str], None] = lambda message: None,
) -> Result:
    """Search for faster schedules for `minutes` and log what is found; `compile` uses it from then on.

    `logs` is the folder of the logs (default: the user's). Jobs run in worker processes of this machine,
    or on any `executor` with the interface of `concurrent.futures`, `slots` at a time; candidates run on
    the `device` (`ssh://user@host`, `emulator`) if one is named. `report` gets the state several times a
    second. Code that cannot run here is ranked by estimates, labelled as such.
    """
    from tilewright.frontend.models import load_model
    from tilewright.tune.folders import user_folder
    from tilewright.tune.tuner import Tuner

    machine = resolve_target(target)
    graph = model if isinstance(model, Graph) else load_model(model, largest(model, shapes), notify)
    folder = _path(logs) or user_folder()
    tuner = Tuner(graph, machine, folder, executor, slots, device, seed, report)
    return tuner.run(60 * minutes)


def load(path: str | Path, threads: int = 1, device: str | None = None) -> Model:
    """Load an artifact directory (or the .so in it) and return it as a callable.

    With a `device` (see `remote`), its library runs there. Raises `ArtifactError`.
    """
    if device is None:
        return load_artifact(path, threads)
    folder = Path(path)
    target = read_manifest(folder if folder.is_dir() else folder.parent).spec.target
    return LinuxArtifact(folder, load_target(target), device, threads)


# ---------------------------------------------------------------- artifacts


@dataclass(frozen=True, slots=True)
class Generated:
    """Object code of a program, what it needs of a microcontroller (None on other targets); for a GPU
    the kernels instead of an object."""

    code: bytes
    need: Footprint | None = None
    steps: Sequence[StepFacts] = ()
    gpu: GpuCode | None = None


def generate(program: Program) -> Generated:
    """Code of `program`."""
    if program.target.gpu is not None:
        gpu = generate_gpu(program)
        return Generated(b"", None, step_facts(program, kernels=gpu.reports), gpu)
    parts = emit_parts(program.plan(), with_weights=True)
    code, listing = to_object_and_assembly(parts, program.target, program.weights)
    need = None if program.target.board is None else footprint(program, code, listing)
    return Generated(code, need, step_facts(program, code, listing))


def generate_fitting(
    program: Program, ram: int, again: Callable[[int], Program]
) -> tuple[Program, Generated]:
    """`program` for a microcontroller with its code; where that needs more than `ram` bytes and `again`, which builds
    it for an arena of so many bytes, gives one that needs less, that one."""
    made = generate(program)
    if made.need is None or made.need.ram <= ram:
        return program, made
    smaller = again(max(0, ram - (made.need.ram - made.need.arena)))
    if smaller.arena_bytes >= program.arena_bytes:
        return program, made
    return smaller, generate(smaller)


def facts_of(program: Program) -> Sequence[StepFacts]:
    """What there is to say about every step, code size and stack accesses included."""
    return generate(program).steps


def write(
    program: Program,
    directory: Path,
    model_hash: str = "",
    generated: Generated | None = None,
    selftest: bool = False,
) -> Written:
    """Write `program` as an artifact into `directory`; `generated` if there is code of it already;
    `selftest` adds C code that runs it and compares with results known now.

    What fits into the part is the caller's decision: see `footprint.require_fit`.
    """
    made = generated or generate(program)
    vectors = make_vectors(program) if selftest else None
    target = {
        "name": program.target.name,
        "triple": program.target.triple,
        "required_features": list(program.target.required),
    }
    facts = _facts(program, model_hash)
    facts["steps"] = to_facts(made.steps or step_facts(program))
    if made.need is not None:
        facts["memory"] = asdict(made.need)
    if made.gpu is not None:
        facts["kernels"] = made.gpu.facts()
        written = write_cuda_artifact(
            directory, spec_of(program), made.gpu.image, facts, program.target.triple
        )
        written.notes[:0] = made.gpu.notes
        return written
    spec = spec_of(program, made.need.stack if made.need else 0)
    return write_artifact(directory, spec, made.code, facts, target, vectors)


def assembly(program: Program) -> str:
    """Assembly text (PTX) of a whole program."""
    if program.target.gpu is not None:
        return gpu_assembly(program)
    return to_assembly(emit_module(program.plan(), with_weights=False), program.target)


def _facts(program: Program, model_hash: str) -> dict[str, Any]:
    """What the manifest says beyond the calling interface."""
    return {
        "model_sha256": model_hash,
        **({} if program.winograd else {"direct": True}),
        "arena": {
            "bytes": program.arena_bytes,
            **({} if program.arena_limit is None else {"limit": program.arena_limit}),
            "lower_bound": program.arena_lower_bound,
            "values": {
                name: {"offset": place.offset, "elements": program.placement.elements(name)}
                for name, place in sorted(program.places.items())
                if place.base == "arena"
            },
        },
        "tools": {
            "tilewright": metadata.version("tilewright"),
            "llvmlite": metadata.version("llvmlite"),
        },
    }


def source_hash(model: Source) -> str:
    """SHA-256 of the model file, empty for a graph built in memory."""
    if isinstance(model, bytes):
        return hashlib.sha256(model).hexdigest()
    if isinstance(model, str | Path) and Path(model).is_file():
        return hashlib.sha256(Path(model).read_bytes()).hexdigest()
    return ""


def _path(p: str | Path | None) -> Path | None:
    return None if p is None else Path(p)


@cache
def _pool_library() -> Any:
    """The thread pool as a shared library, compiled once per process."""
    import ctypes

    compiler = find_compiler()
    if compiler is None:
        raise ToolchainError(
            "threads > 1 in this process need a C compiler for the thread pool: install gcc or "
            "`pip install 'tilewright[cross]'`, or use threads=1"
        )
    runtime = resources.files("tilewright.runtime")
    with tempfile.TemporaryDirectory(prefix="tilewright-pool-") as name:
        folder = Path(name)
        for source in ("tilewright.h", "pool.c"):
            text = (runtime / source).read_text(encoding="utf-8")
            (folder / source).write_text(text, encoding="utf-8")
        flags = ["-std=c11", "-O2", "-fPIC", "-shared", "-pthread"]
        compiler.run([*flags, "pool.c", "-o", "pool.so"], folder)
        return ctypes.CDLL(str(folder / "pool.so"))  # stays mapped when the file is gone


def _pool(threads: int) -> Pool:
    return Pool(_pool_library(), threads)
