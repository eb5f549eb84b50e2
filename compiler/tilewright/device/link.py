"""Compiled models and candidates as one self-contained Linux program.

In: `Unit`s (object code or a shared library, and how it is called). Out: an executable for their target.
Invariant: the program is our driver, a table of the units and the units; linked statically unless units
are shared libraries, so that it needs nothing of the device but a kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from tilewright.artifact.header import header
from tilewright.artifact.toolchain import Compiler, find_compiler
from tilewright.codegen.llvm import to_object
from tilewright.codegen.module import emit_module
from tilewright.errors import ToolchainError
from tilewright.program import Program, spec_of
from tilewright.runtime.model import Spec

PROGRAM = "models"
_SOURCES = ("driver.c", "driver.h")
_POOL = ("pool.c", "tilewright.h")
_FLAGS = ("-std=c11", "-O2", "-g0", "-Wl,-z,noexecstack")
_THREADS = """
const struct tilewright_parallel *start_threads(int32_t count) {
  tilewright_pool *pool = tilewright_pool_create(count);
  return pool ? tilewright_pool_parallel(pool) : NULL;
}
"""
_NO_THREADS = """
const struct tilewright_parallel *start_threads(int32_t count) {
  (void)count;
  return NULL;
}
"""


@dataclass(frozen=True, slots=True)
class Unit:
    """Code that has an entry point `NAME_run`: an object file, or a library if `shared`.

    `data` is the number of the inputs it runs on: candidates for one kernel share theirs.
    """

    spec: Spec
    code: bytes
    shared: bool = False
    data: int = 0


def unit_of(program: Program, data: int = 0) -> Unit:
    """The object code of a program, as an artifact holds it."""
    code = to_object(emit_module(program.plan(), True), program.target, program.weights)
    return Unit(spec_of(program), code, False, data)


def link(
    units: Sequence[Unit], triple: str, folder: Path, threaded: bool = False
) -> tuple[Path, list[Path]]:
    """Make the program of `units` in `folder`; returns it and the shared libraries it needs. One that is `threaded`
    may run them on several threads.

    Raises `ToolchainError` without a compiler for `triple`, or if two units have the same name.
    """
    names = [u.spec.name for u in units]
    if len(set(names)) != len(names):
        raise ToolchainError("internal error: two units of one program have the same name")
    sources = resources.files("tilewright.device") / "linux"
    runtime = resources.files("tilewright.runtime")
    for source in _SOURCES:
        (folder / source).write_bytes((sources / source).read_bytes())
    (folder / "table.c").write_text(_table(units, threaded), encoding="utf-8")
    shared = any(u.shared for u in units)
    objects: list[str] = []
    if threaded:
        for source in _POOL:
            (folder / source).write_bytes((runtime / source).read_bytes())
        objects += ["pool.c", "-pthread"]
    libraries: list[Path] = []
    for u in units:
        (folder / f"{u.spec.name}.h").write_text(header(u.spec), encoding="utf-8")
        file = folder / (f"{u.spec.name}.so" if u.shared else f"{u.spec.name}.o")
        file.write_bytes(u.code)
        objects.append(file.name)
        if u.shared:
            libraries.append(file)
    how = ["-Wl,-rpath,$ORIGIN"] if shared else ["-static"]
    compiler = program_compiler(triple, static=not shared)
    compiler.run([*_FLAGS, *how, "driver.c", "table.c", *objects, "-o", PROGRAM], folder)
    return folder / PROGRAM, libraries


def program_compiler(triple: str, static: bool = True) -> Compiler:
    """A compiler for programs; zig has only musl for static ones. Raises `ToolchainError`."""
    found = find_compiler(triple)
    if found is not None and found.is_zig and static:
        found = find_compiler(triple.replace("-gnu", "-musl"))
    if found is None:
        arch = triple.partition("-")[0].replace("_", "-")
        raise ToolchainError(
            f"no C compiler for {triple} found: apt-get install gcc-{arch}-linux-gnu or "
            "`pip install 'tilewright[cross]'`"
        )
    return found


def _table(units: Sequence[Unit], threaded: bool) -> str:
    """table.c: what the driver knows of the units."""
    headers = ["driver", *(["tilewright"] if threaded else []), *(u.spec.name for u in units)]
    lines = [*(f'#include "{name}.h"' for name in headers), ""]
    rows: list[str] = []
    for k, u in enumerate(units):
        s = u.spec
        for kind, tensors in (("in", s.given), ("out", s.outputs)):
            sizes = ", ".join(str(t.nbytes) for t in tensors) or "0"
            lines.append(f"static const size_t {kind}_{k}[] = {{{sizes}}};")
        lines.append(f"static int supported_{k}(void) {{ return {s.name}_cpu_supported(); }}")
        rows.append(
            f"    {{{s.name}_run, {s.name + '_run_parallel' if threaded else 'NULL'}, supported_{k}, {u.data}, "
            f"{len(s.given)}, {len(s.outputs)}, in_{k}, out_{k}, {s.arena_size}}},"
        )
    lines += ["", "const struct model models[] = {", *rows, "};"]
    lines.append(f"const unsigned model_count = {len(units)};")
    return "\n".join(lines) + "\n" + (_THREADS if threaded else _NO_THREADS)
