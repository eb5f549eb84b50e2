"""Write an artifact directory.

In: a `Spec`, object code, facts for the manifest. Out: NAME.o, NAME.a, NAME.so, NAME.h, example.c,
manifest.json and the thread pool's sources (microcontrollers: no library, no threads).
Invariant: everything is made in a temporary directory beside the destination and moved at the end, so
that a failure leaves the destination as it was; files that are not an artifact's are never touched; the
same inputs and C compiler give the same bytes.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from tilewright.artifact import archive, selftest
from tilewright.artifact.board_example import board_example
from tilewright.artifact.elf import MACHINES, Elf
from tilewright.artifact.example import example
from tilewright.artifact.header import header
from tilewright.artifact.manifest import (
    FILE_NAME,
    Manifest,
    hash_file,
    is_identifier,
    read,
    to_json,
)
from tilewright.artifact.selftest import Vectors
from tilewright.artifact.symbols import entry_points, foreign_symbols
from tilewright.artifact.toolchain import Compiler, find_compiler, is_linux, missing
from tilewright.errors import ArtifactError, ToolchainError
from tilewright.runtime.cpu import architecture
from tilewright.runtime.model import Spec

_POOL_SOURCES = ("tilewright.h", "pool.c")
#: Relative paths, no debug information and no compiler ident: the bytes say nothing about this machine.
_POOL_FLAGS = (
    "-std=c11", "-O2", "-g0", "-fPIC", "-fno-ident", "-fvisibility=hidden", "-pthread",
    "-c", "pool.c", "-o", "pool.o",
)  # fmt: skip
#: Atomics as instructions, not as calls of a compiler's library.
_POOL_ARCH_FLAGS = {"aarch64": ("-mno-outline-atomics",)}
#: -nostartfiles: there is nothing to construct or destroy.
LINK_FLAGS = (
    "-shared", "-nostartfiles", "-g0", "-pthread", "-Wl,--version-script=exports.map",
    "-Wl,-z,noexecstack", "-Wl,-z,relro", "-Wl,-z,now", "-Wl,-z,defs",
    "-Wl,--build-id=none", "-Wl,--hash-style=gnu", "-Wl,--as-needed", "-Wl,-s",
)  # fmt: skip


@dataclass(slots=True)
class Written:
    """What was written: `files` with their sizes, `notes` for the user (what is missing and why)."""

    directory: Path
    files: dict[str, int] = field(default_factory=dict[str, int])
    notes: list[str] = field(default_factory=list[str])


def write_artifact(
    directory: Path,
    spec: Spec,
    object_code: bytes,
    facts: Mapping[str, Any],
    target: Mapping[str, Any],
    vectors: Vectors | None = None,
) -> Written:
    """Write all files of a compiled model into `directory` (created if need be).

    `facts` go into the manifest as they are; `target` has the `triple`; with `vectors` there is a
    self-test. Raises `ArtifactError` if the
    object code is not what it should be, the directory cannot be written, or holds a file of the same
    name that is not part of an artifact.
    """
    triple = str(target["triple"])
    check_object(object_code, spec, triple)

    def build(stage: Path, written: Written) -> dict[str, Any]:
        made = _build(stage, spec, object_code, triple, facts, written)
        if vectors is not None:
            text = header(spec, selftest.declarations(spec))
            (stage / f"{spec.name}.h").write_text(text, encoding="utf-8")
            test = stage / f"{spec.name}_selftest.c"
            test.write_text(selftest.source(spec, vectors), encoding="utf-8")
            made["selftest"] = vectors.facts()
        return made

    return install(directory, spec, triple, build)


def install(
    directory: Path,
    spec: Spec,
    triple: str,
    build: Callable[[Path, Written], dict[str, Any]],
) -> Written:
    """Let `build` make the files in a folder beside `directory`, add a manifest with the facts it returns,
    and move all of it into place. Raises `ArtifactError` if that cannot be done."""
    written = Written(Path(os.path.abspath(directory)))
    with _staged(written.directory) as stage:
        facts = build(stage, written)
        _finish(stage, Manifest(spec, triple, {}, facts), written)
    return written


def restore(
    directory: Path, files: Mapping[str, Sequence[bytes | memoryview]], notes: Iterable[str]
) -> Written:
    """Put the files of an artifact that was made before into `directory`; raises as `install` does.

    `files` gives each file's pieces in order; the manifest is one of them. Where they are there already,
    nothing is written.
    """
    written = Written(Path(os.path.abspath(directory)), notes=list(notes))
    if all(_holds(written.directory / name, pieces) for name, pieces in files.items()):
        written.files.update({name: sum(map(len, pieces)) for name, pieces in files.items()})
        return written
    with _staged(written.directory) as stage:
        for name, pieces in files.items():
            with (stage / name).open("wb") as f:
                f.writelines(pieces)
        written.files.update({p.name: p.stat().st_size for p in sorted(stage.iterdir())})
    return written


def _holds(path: Path, pieces: Sequence[bytes | memoryview]) -> bool:
    """Whether a file is made of `pieces`."""
    try:
        if path.is_symlink() or path.stat().st_size != sum(map(len, pieces)):
            return False
        with path.open("rb") as f:
            return all(
                f.read(min(_COMPARED, len(piece) - at)) == bytes(piece[at : at + _COMPARED])
                for piece in pieces
                for at in range(0, len(piece), _COMPARED)
            )
    except OSError:
        return False


#: Bytes compared at a time: they stay in the second-level cache.
_COMPARED = 1 << 18


@contextmanager
def _staged(directory: Path) -> Iterator[Path]:
    """A folder beside `directory` whose files move into it at the end."""
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{directory.name}-", dir=directory.parent, ignore_cleanup_errors=True
        ) as folder:
            stage = Path(folder) / "files"
            stage.mkdir()
            yield stage
            _install(stage, directory)
    except OSError as err:
        raise ArtifactError(f"cannot write to {directory}: {err.strerror or err}") from None


def check_object(code: bytes, spec: Spec, triple: str) -> None:
    """Raise `ArtifactError` unless `code` is an object for `triple` that defines the entry points and
    needs nothing that is not there."""
    name = spec.name
    if not is_identifier(name):
        raise ArtifactError(
            f"`{name}` cannot be a model's name in C: use letters, digits and _ (--name)"
        )
    elf = Elf(code, f"the object code of {name}")
    wanted = MACHINES.get(triple.partition("-")[0])
    if wanted is not None and elf.machine != wanted:
        raise ArtifactError(f"the object code of {name} is not for {triple}")
    exported = {s.name for s in elf.symbols() if s.is_exported}
    for entry in entry_points(spec):
        if entry not in exported:
            raise ArtifactError(f"the object code of {name} does not define {entry}")
    foreign = [] if spec.threads else sorted(foreign_symbols(elf, spec))
    if foreign:
        raise ArtifactError(
            f"the object code of {name} needs {', '.join(foreign)}, which {spec.target} has no library for"
        )


# ---------------------------------------------------------------- making


def _build(
    stage: Path,
    spec: Spec,
    code: bytes,
    triple: str,
    facts: Mapping[str, Any],
    written: Written,
) -> dict[str, Any]:
    """Make all files but the manifest; returns the facts with the C compiler added."""
    name = spec.name
    (stage / f"{name}.o").write_bytes(code)
    (stage / f"{name}.h").write_text(header(spec), encoding="utf-8")
    make = example if spec.threads else board_example
    (stage / "example.c").write_text(make(spec), encoding="utf-8")
    if not spec.threads:
        (stage / f"{name}.a").write_bytes(archive.pack([(f"{name}.o", code)]))
        return dict(facts)
    runtime = resources.files("tilewright.runtime")
    for source in _POOL_SOURCES:
        (stage / source).write_bytes((runtime / source).read_bytes())
    members = [(f"{name}.o", code)]
    tools = dict(facts.get("tools", {}))
    try:
        compiler = find_compiler(triple) if is_linux(triple) else None
        if compiler is None:
            written.notes.append(missing(triple, name))
        else:
            pool = _compile_pool(stage, compiler, architecture(triple.partition("-")[0]))
            members.append(("tilewright_pool.o", pool))
            tools["c_compiler"] = compiler.version()
            _link(stage, name, pool, compiler)
    except ToolchainError as err:
        (stage / f"{name}.so").unlink(missing_ok=True)
        written.notes.append(f"{name}.so was not made: {err}")
    (stage / f"{name}.a").write_bytes(archive.pack(members))
    return {**facts, "tools": tools}


def _compile_pool(stage: Path, compiler: Compiler, arch: str) -> bytes:
    """Object code of the thread pool."""
    with tempfile.TemporaryDirectory(dir=stage.parent) as folder:
        work = Path(folder)
        for file in _POOL_SOURCES:
            shutil.copyfile(stage / file, work / file)
        compiler.run([*_POOL_FLAGS, *_POOL_ARCH_FLAGS.get(arch, ())], work)
        return (work / "pool.o").read_bytes()


def _link(stage: Path, name: str, pool: bytes, compiler: Compiler) -> None:
    """Make NAME.so, which exports the entry points and the pool and nothing else."""
    exports = f"{{ global: {name}_run; {name}_run_parallel; tilewright_pool_*; local: *; }};\n"
    library = f"{name}.so"
    flags = [*LINK_FLAGS, f"-Wl,-soname,{library}"]
    if not compiler.is_zig:  # whose linker refuses relocations in code always, and the option too
        flags.append("-Wl,-z,text")
    with tempfile.TemporaryDirectory(dir=stage.parent) as folder:
        work = Path(folder)
        (work / "exports.map").write_text(exports, encoding="utf-8")
        (work / "pool.o").write_bytes(pool)
        shutil.copyfile(stage / f"{name}.o", work / f"{name}.o")
        compiler.run([*flags, f"{name}.o", "pool.o", "-o", library], work)
        shutil.copyfile(work / library, stage / library)


def _finish(stage: Path, manifest: Manifest, written: Written) -> None:
    """Hash what was made and write the manifest."""
    files = {p.name: hash_file(p) for p in sorted(stage.iterdir())}
    whole = Manifest(manifest.spec, manifest.triple, files, manifest.facts)
    (stage / FILE_NAME).write_text(to_json(whole), encoding="utf-8")
    written.files.update({p.name: p.stat().st_size for p in sorted(stage.iterdir())})


# ---------------------------------------------------------------- installing


def _install(stage: Path, directory: Path) -> None:
    """Move the files to their place. A directory that is not there yet appears all at once; in one that
    is, the manifest goes first and comes last: whatever happens between, a reader sees no artifact or
    hashes that do not match, never a mixture that passes."""
    library = next(stage.glob("*.so"), None)
    if library is not None:
        library.chmod(0o755 & ~_umask())
    if not directory.exists():
        stage.rename(directory)
        return
    if not directory.is_dir():
        raise ArtifactError(f"{directory} is a file: name a directory")
    owned = _owned(directory)
    fresh = {p.name for p in stage.iterdir()}
    foreign = sorted(n for n in fresh - owned if os.path.lexists(directory / n))
    if foreign:
        raise ArtifactError(
            f"{directory / foreign[0]} is there already and not part of an artifact: move it away or "
            "name another directory"
        )
    (directory / FILE_NAME).unlink(missing_ok=True)
    for name in sorted(fresh - {FILE_NAME}):
        (stage / name).replace(directory / name)
    for name in sorted(owned - fresh):
        (directory / name).unlink(missing_ok=True)
    (stage / FILE_NAME).replace(directory / FILE_NAME)


def _owned(directory: Path) -> set[str]:
    """The files in `directory` that an earlier compilation wrote."""
    if not (directory / FILE_NAME).is_file():
        return set()
    return {*read(directory).files, FILE_NAME}


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
