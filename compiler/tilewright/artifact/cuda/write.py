"""Write the artifact of a model for an NVIDIA GPU.

In: a `Spec`, an `Image`, facts for the manifest. Out: NAME.ptx, NAME.cubin (where there is machine code),
NAME.weights, NAME.h, NAME.c, NAME_data.S, example.c, manifest.json, and NAME.so where a C compiler is found.
Invariant: as in `artifact.write`; NAME.so needs nothing of the other files, and is for the machine that
made it: NAME.c and NAME_data.S build anywhere.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tilewright.artifact.cuda.text import (
    Image,
    data_source,
    example,
    exports,
    header,
    host_source,
)
from tilewright.artifact.manifest import is_identifier
from tilewright.artifact.toolchain import Compiler, find_compiler
from tilewright.artifact.write import LINK_FLAGS, Written, install
from tilewright.errors import ArtifactError, ToolchainError
from tilewright.runtime.cpu import architecture
from tilewright.runtime.model import Spec

_COMPILE_FLAGS = (
    "-std=c11", "-O2", "-g0", "-fPIC", "-fno-ident", "-Wall", "-Wextra", "-c",
)  # fmt: skip


def write_cuda_artifact(
    directory: Path, spec: Spec, image: Image, facts: Mapping[str, Any], triple: str
) -> Written:
    """Write all files of a model into `directory` (created if need be).

    Raises `ArtifactError` if the directory cannot be written, or holds a file of the same name that is
    not part of an artifact. Without a C compiler there is no NAME.so, and a note says so.
    """
    if not is_identifier(spec.name):
        raise ArtifactError(
            f"`{spec.name}` cannot be a model's name in C: use letters, digits and _ (--name)"
        )

    def build(stage: Path, written: Written) -> dict[str, Any]:
        return _build(stage, spec, image, facts, written)

    return install(directory, spec, triple, build)


def _build(
    stage: Path, spec: Spec, image: Image, facts: Mapping[str, Any], written: Written
) -> dict[str, Any]:
    """Make all files but the manifest; returns the facts with what made NAME.so added."""
    name = spec.name
    texts = {
        f"{name}.ptx": image.ptx,
        f"{name}.h": header(spec),
        f"{name}.c": host_source(spec, image),
        f"{name}_data.S": data_source(spec, image),
        "example.c": example(spec),
    }
    for file, text in texts.items():
        (stage / file).write_text(text, encoding="utf-8")
    (stage / f"{name}.weights").write_bytes(image.weights)
    if image.cubin:
        (stage / f"{name}.cubin").write_bytes(image.cubin)
    try:
        compiler = find_compiler()
        if compiler is not None:
            _link(stage, spec, compiler)
            tools = {**facts.get("tools", {}), "c_compiler": compiler.version()}
            return {**facts, "tools": tools, "host": {"machine": architecture()}}
        reason = "no C compiler was found"
    except ToolchainError as err:
        (stage / f"{name}.so").unlink(missing_ok=True)
        reason = str(err)
    written.notes.append(
        f"{name}.so was not made: {reason}; build it with `cc -O2 -fPIC -shared {name}.c {name}_data.S -o "
        f"{name}.so -ldl`"
    )
    return dict(facts)


def _link(stage: Path, spec: Spec, compiler: Compiler) -> None:
    """Make NAME.so, which exports the functions of NAME.h and nothing else."""
    name = spec.name
    library, sources = f"{name}.so", (f"{name}.c", f"{name}_data.S")
    with tempfile.TemporaryDirectory(dir=stage.parent) as folder:
        work = Path(folder)
        for p in stage.iterdir():
            (work / p.name).symlink_to(p)
        for s in sources:
            compiler.run([*_COMPILE_FLAGS, s, "-o", f"{s}.o"], work)
        listed = "; ".join(exports(spec))
        (work / "exports.map").write_text(f"{{ global: {listed}; local: *; }};\n", encoding="utf-8")
        objects = [f"{s}.o" for s in sources]
        flags = [*LINK_FLAGS, f"-Wl,-soname,{library}"]
        compiler.run([*flags, *objects, "-o", library, "-ldl"], work)
        shutil.copyfile(work / library, stage / library)
