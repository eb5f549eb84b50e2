"""The Python interface: `compile` a model for a target, `load` an artifact.

In: a model file and options. Out: a callable `CompiledModel` that can be saved as an artifact.
Invariant: `compile` needs no linker; what it runs in this process is the code that `save` writes.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from tilewright.artifact.toolchain import find_compiler
from tilewright.artifact.write import Written, write_artifact
from tilewright.codegen.llvm import Jit, to_assembly, to_object, to_object_and_assembly
from tilewright.codegen.module import emit_module
from tilewright.errors import TargetError, ToolchainError
from tilewright.footprint import Footprint, footprint
from tilewright.pipeline import Progress, Source, build, resolve_target
from tilewright.program import Program, spec_of
from tilewright.runtime.loader import Pool
from tilewright.runtime.loader import load as load_artifact
from tilewright.runtime.model import Model
from tilewright.schedule.target import Target
from tilewright.session import Session


class CompiledModel(Model):
    """A model compiled in this process: call it, inspect `program`, or `save` it as an artifact."""

    def __init__(self, program: Program, threads: int = 1, source_hash: str = "") -> None:
        self.program = program
        self.source_hash = source_hash
        self._session = Session(program, Jit(emit_module(program.plan(), False), program.target))
        pool = _pool(threads) if threads > 1 else None
        trailing = (self._session.weights.ctypes.data, pool.parallel if pool else None)
        super().__init__(spec_of(program), self._session.main, keep=pool, trailing=trailing)

    def save(self, directory: str | Path) -> Written:
        """Write the artifact: object, static and shared library, header, manifest, C example."""
        return write(self.program, Path(directory), self.source_hash)

    def session(self) -> Session:
        """Step-by-step access for profiling and verification."""
        return self._session


def compile(  # the name users expect, as in re.compile
    model: Source,
    target: str | Target = "host",
    shapes: Mapping[str, Sequence[int]] | None = None,
    threads: int = 1,
    *,
    progress: Progress = lambda stage, fraction: None,
    notify: Callable[[str], None] = lambda message: None,
    dump_ir: str | Path | None = None,
) -> CompiledModel:
    """Compile an ONNX model (path, bytes or `Graph`) and return it as a callable.

    `shapes` fixes the shapes of inputs by name; dims that nothing fixes become 1 and `notify` says so.
    `dump_ir` is a directory that receives the text of every stage. Raises `ModelError` for a model
    that is broken or not supported, `TargetError` if this machine cannot run the target's code.
    """
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    machine = resolve_target(target)
    _require_runnable(machine)
    program = build(model, machine, shapes, progress, notify, _path(dump_ir))
    progress("generate code", 0.0)
    compiled = CompiledModel(program, threads, source_hash(model))
    progress("done", 1.0)
    return compiled


def load(path: str | Path, threads: int = 1) -> Model:
    """Load an artifact directory (or the .so in it) and return it as a callable."""
    return load_artifact(path, threads)


# ---------------------------------------------------------------- artifacts


@dataclass(frozen=True, slots=True)
class Generated:
    """Object code of a program, and what it needs of a microcontroller (None on other targets)."""

    code: bytes
    need: Footprint | None = None


def generate(program: Program) -> Generated:
    """Object code of `program`."""
    text = emit_module(program.plan(), with_weights=True)
    if program.target.board is None:
        return Generated(to_object(text, program.target, program.weights))
    code, listing = to_object_and_assembly(text, program.target, program.weights)
    return Generated(code, footprint(program, code, listing))


def write(
    program: Program, directory: Path, model_hash: str = "", generated: Generated | None = None
) -> Written:
    """Write `program` as an artifact into `directory`; `generated` if there is code of it already.

    What fits into the part is the caller's decision: see `footprint.require_fit`.
    """
    made = generated or generate(program)
    target = {
        "name": program.target.name,
        "triple": program.target.triple,
        "required_features": list(program.target.required),
    }
    facts = _facts(program, model_hash)
    if made.need is not None:
        facts["memory"] = asdict(made.need)
    spec = spec_of(program, made.need.stack if made.need else 0)
    return write_artifact(directory, spec, made.code, facts, target)


def assembly(program: Program) -> str:
    """Assembly text of a whole program."""
    return to_assembly(emit_module(program.plan(), with_weights=False), program.target)


def _facts(program: Program, model_hash: str) -> dict[str, Any]:
    """What the manifest says beyond the calling interface."""
    return {
        "model_sha256": model_hash,
        "arena": {
            "bytes": program.arena_bytes,
            "lower_bound": program.arena_lower_bound,
            "values": {
                name: {"offset": place.offset, "elements": program.placement.elements(name)}
                for name, place in sorted(program.places.items())
                if place.base == "arena"
            },
        },
        "steps": [
            {"label": s.label, "kernel": s.kernel, "nodes": list(s.nodes), "flops": s.flops}
            for s in program.steps
        ],
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


def _require_runnable(target: Target) -> None:
    from tilewright.codegen.llvm import host_cpu

    arch = target.triple.split("-")[0]
    _, features = host_cpu()
    missing = [f for f in target.required if f not in features]
    if arch != os.uname().machine or missing:
        why = (
            f"this CPU lacks {', '.join(missing)}"
            if missing
            else f"this machine is {os.uname().machine}"
        )
        raise TargetError(
            f"code for {target.name} cannot run here ({why}): write an artifact with `tilewright compile` "
            "and run it on the device, or use --target host"
        )


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
