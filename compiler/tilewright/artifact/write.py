"""Write an artifact directory.

In: a `Spec`, object code, facts for the manifest. Out: NAME.o, NAME.a, NAME.so, NAME.h, example.c,
manifest.json and the thread pool's sources.
Invariant: everything is made in a temporary directory and moved in at the end, so that a failure
leaves nothing half-written; the same inputs give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from tilewright.artifact.header import example, header
from tilewright.artifact.toolchain import MISSING, Compiler, find_compiler, write_archive
from tilewright.errors import ArtifactError, ToolchainError
from tilewright.runtime.loader import SCHEMA
from tilewright.runtime.model import Spec

_POOL_FLAGS = ("-std=c11", "-O2", "-fPIC", "-fvisibility=default", "-g0", "-pthread")


@dataclass(slots=True)
class Written:
    """What was written: `files` with their sizes, `notes` for the user (what is missing and why)."""

    directory: Path
    files: dict[str, int] = field(default_factory=dict[str, int])
    notes: list[str] = field(default_factory=list[str])


def write_artifact(
    directory: Path, spec: Spec, object_code: bytes, facts: Mapping[str, Any], target: Mapping[str, Any]
) -> Written:
    """Write all files of a compiled model into `directory` (created if need be).

    `facts` go into the manifest as they are; `target` names the target, its triple and the required
    CPU features. Raises `ArtifactError` if the directory cannot be written.
    """
    written = Written(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=".tilewright-", dir=directory))
    except OSError as err:
        raise ArtifactError(f"cannot write to {directory}: {err.strerror}") from None
    try:
        _build(stage, spec, object_code, written)
        _manifest(stage, spec, facts, target)
        for path in sorted(stage.iterdir()):
            written.files[path.name] = path.stat().st_size
            path.replace(directory / path.name)
        for stale in (f"{spec.name}.so",):  # of an earlier compilation that had a linker
            if stale not in written.files:
                (directory / stale).unlink(missing_ok=True)
    except OSError as err:
        raise ArtifactError(f"cannot write to {directory}: {err.strerror or err}") from None
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return written


def _build(stage: Path, spec: Spec, object_code: bytes, written: Written) -> None:
    name = spec.name
    (stage / f"{name}.o").write_bytes(object_code)
    (stage / f"{name}.h").write_text(header(spec), encoding="utf-8")
    (stage / "example.c").write_text(example(spec), encoding="utf-8")
    runtime = resources.files("tilewright.runtime")
    for source in ("tilewright.h", "pool.c"):
        (stage / source).write_text((runtime / source).read_text(encoding="utf-8"), encoding="utf-8")
    members = [(f"{name}.o", object_code)]
    compiler = find_compiler()
    if compiler is None:
        written.notes.append(MISSING)
    else:
        try:
            members.append(("tilewright_pool.o", _compile_pool(stage, compiler)))
            _link(stage, name, compiler)
        except ToolchainError as err:
            (stage / f"{name}.so").unlink(missing_ok=True)
            written.notes.append(f"no shared library was made: {err}")
        finally:
            for left in ("pool.o", "exports.map"):
                (stage / left).unlink(missing_ok=True)
    write_archive(stage / f"{name}.a", members)


def _compile_pool(stage: Path, compiler: Compiler) -> bytes:
    compiler.run([*_POOL_FLAGS, "-c", "pool.c", "-o", "pool.o"], stage)
    return (stage / "pool.o").read_bytes()


def _link(stage: Path, name: str, compiler: Compiler) -> None:
    """A shared library that exports the entry points and the pool, nothing else."""
    exports = f"{{ global: {name}_run; {name}_run_parallel; tilewright_pool_*; local: *; }};\n"
    (stage / "exports.map").write_text(exports, encoding="utf-8")
    flags = (
        "-shared", "-Wl,-z,noexecstack", "-Wl,-z,relro", "-Wl,--build-id=none", "-Wl,-s",
        "-Wl,--version-script=exports.map", f"-Wl,-soname,{name}.so", "-pthread",
    )  # fmt: skip
    compiler.run([*flags, f"{name}.o", "pool.o", "-o", f"{name}.so"], stage)


def _manifest(stage: Path, spec: Spec, facts: Mapping[str, Any], target: Mapping[str, Any]) -> None:
    def tensors(items: tuple[Any, ...]) -> list[dict[str, Any]]:
        return [{**asdict(t), "shape": list(t.shape)} for t in items]

    files = {
        p.name: {"bytes": p.stat().st_size, "sha256": hashlib.sha256(p.read_bytes()).hexdigest()}
        for p in sorted(stage.iterdir())
    }
    manifest = {
        "schema": SCHEMA,
        "name": spec.name,
        "target": dict(target),
        "inputs": tensors(spec.inputs),
        "outputs": tensors(spec.outputs),
        "weights_bytes": spec.weights_bytes,
        "files": files,
        **facts,
    }
    text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
    (stage / "manifest.json").write_text(text, encoding="utf-8")
