"""Check an artifact without running it.

In: a directory. Out: a list of problems, empty if it is sound.
Invariant: reads only; no problem raises. What is checked: the hash of every file; that objects need
nothing but the C library's memory functions and hold no writable data; that the library exports only
what it should, needs only the C library, runs nothing when it is loaded, and asks for neither an
executable stack nor writable code.
Standard library and NumPy only.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tilewright.artifact import archive
from tilewright.artifact import manifest as manifests
from tilewright.artifact.cuda.text import exports
from tilewright.artifact.elf import (
    DF_TEXTREL,
    DT_FLAGS,
    DT_NEEDED,
    DT_RPATH,
    DT_RUNPATH,
    DT_SONAME,
    DT_STARTUP,
    DT_TEXTREL,
    ET_DYN,
    ET_REL,
    MACHINES,
    PF_W,
    PF_X,
    PT_GNU_RELRO,
    PT_GNU_STACK,
    PT_LOAD,
    SHF_ALLOC,
    SHF_EXECINSTR,
    SHF_WRITE,
    SHT_DYNSYM,
    STT_IFUNC,
    Elf,
)
from tilewright.artifact.manifest import Manifest
from tilewright.artifact.symbols import MEMORY, may_call
from tilewright.artifact.symbols import entry_points as entry_points_of
from tilewright.errors import ArtifactError

#: What the thread pool needs of the C library.
_POOL_NEEDS = frozenset({
    "aligned_alloc", "free", "clock_gettime", "syscall", "sysconf", "sched_getaffinity",
    "__sched_cpucount", "pthread_create", "pthread_join", "pthread_sigmask", "sigfillset",
    "pthread_attr_init", "pthread_attr_destroy", "pthread_attr_setstacksize", "pthread_mutex_init",
    "pthread_mutex_lock", "pthread_mutex_unlock", "pthread_mutex_destroy", "pthread_cond_init",
    "pthread_cond_wait", "pthread_cond_broadcast", "pthread_cond_destroy", "__stack_chk_fail",
    "__memset_chk", "__memcpy_chk",
})  # fmt: skip
#: What the host code of a GPU's model needs.
_HOST_NEEDS = frozenset({
    "dlopen", "dlsym", "dlclose", "calloc", "free", "vsnprintf", "__vsnprintf_chk", "__tls_get_addr",
    "__stack_chk_fail", "__memcpy_chk",
})  # fmt: skip
#: Sections of a library that the loader writes to, and that are read-only (or a thread's own) afterwards.
_RELOCATED = (".dynamic", ".got", ".data.rel.ro", ".relro_padding", ".tbss")
_LIBRARIES = ("libc.", "libdl.", "libpthread.", "ld-linux", "ld-musl")


def verify_artifact(directory: str | Path) -> list[str]:
    """Every problem of the artifact in `directory`, one sentence each."""
    directory = Path(directory)
    try:
        manifest = manifests.read(directory)
    except ArtifactError as err:
        return [str(err)]
    problems = _hashes(directory, manifest)
    name = manifest.spec.name
    ends = (".ptx", ".weights", ".c", "_data.S", ".h") if manifest.is_cuda else (".o", ".a", ".h")
    for file in (f"{name}{end}" for end in ends):
        if file not in manifest.files:
            problems.append(f"the manifest does not list {file}")
    problems += _host_code(directory, manifest) if manifest.is_cuda else _code(directory, manifest)
    return problems


def _hashes(directory: Path, manifest: Manifest) -> list[str]:
    problems: list[str] = []
    for name, recorded in sorted(manifest.files.items()):
        try:
            found = manifests.hash_file(directory / name)
        except OSError as err:
            problems.append(f"{name} cannot be read: {err.strerror or err}")
            continue
        if found != recorded:
            problems.append(f"{name} does not match its hash in the manifest")
    return problems


def _code(directory: Path, manifest: Manifest) -> list[str]:
    """Problems of the files with code in them that can be read."""
    problems: list[str] = []
    name = manifest.spec.name
    data: dict[str, bytes] = {}
    for suffix in ("o", "a", "so"):
        try:
            data[suffix] = (directory / f"{name}.{suffix}").read_bytes()
        except OSError:
            continue  # reported with the hashes, if it should be there
    try:
        if "o" in data:
            problems += check_object(Elf(data["o"], f"{name}.o"), manifest)
        if "a" in data:
            problems += _check_archive(data["a"], data.get("o"), manifest)
        if "so" in data:
            problems += check_library(Elf(data["so"], f"{name}.so"), manifest)
    except ArtifactError as err:
        problems.append(str(err))
    return problems


def _host_code(directory: Path, manifest: Manifest) -> list[str]:
    """Problems of the library that drives a GPU."""
    path = directory / f"{manifest.spec.name}.so"
    if path.name not in manifest.files or not path.is_file():
        return []  # without a C compiler there is none; a missing one is reported with the hashes
    entries = set(exports(manifest.spec))
    try:
        elf = Elf(path.read_bytes(), path.name)
        exported = {s.name for s in elf.symbols(SHT_DYNSYM) if s.is_exported}
        problems = _needs(elf, MEMORY | _HOST_NEEDS)
        if elf.machine != MACHINES.get(manifest.machine, elf.machine):
            problems.append(f"{path.name} is not for {manifest.machine}")
        problems += [f"{path.name} does not export {e}" for e in sorted(entries - exported)]
        problems += [
            f"{path.name} exports {e}, which is not part of its interface"
            for e in sorted(exported - entries)
        ]
        starts = _starts(manifest)
        return problems + _hardening(elf, starts) + _dynamic(elf, manifest.spec.name, starts)
    except (ArtifactError, OSError) as err:
        return [str(err)]


def check_object(
    elf: Elf, manifest: Manifest, may_need: frozenset[str] | None = None, entry_points: bool = True
) -> list[str]:
    """Problems of an object file: the model's own, or (without entry points) the pool's."""
    problems = _machine(elf, manifest, ET_REL)
    symbols = elf.symbols()
    needed = sorted(
        {s.name for s in symbols if s.section == 0 and not s.is_local and not s.is_weak}
    )
    allowed = may_call(manifest.spec) if may_need is None else may_need
    problems += [f"{elf.what} needs the symbol {n}" for n in needed if not _allowed(n, allowed)]
    if entry_points:
        exported = {s.name for s in symbols if s.is_exported}
        name = manifest.spec.name
        for entry in entry_points_of(manifest.spec):
            if entry not in exported:
                problems.append(f"{elf.what} does not define {entry}")
        problems += [
            f"{elf.what} defines {s}, which does not begin with the model's name"
            for s in sorted(exported)
            if not s.startswith(f"{name}_")
        ]
    for s in elf.sections:
        if (
            s.flags & SHF_ALLOC
            and s.flags & SHF_WRITE
            and s.size
            and not s.name.startswith(".data.rel.ro")
        ):
            problems.append(f"{elf.what} has writable data in section {s.name}")
        if s.flags & SHF_WRITE and s.flags & SHF_EXECINSTR:
            problems.append(f"{elf.what} has writable code in section {s.name}")
    stack = [s for s in elf.sections if s.name == ".note.GNU-stack"]
    if not stack or any(s.flags & SHF_EXECINSTR for s in stack):
        problems.append(f"{elf.what} asks for an executable stack")
    return problems


def _check_archive(data: bytes, code: bytes | None, manifest: Manifest) -> list[str]:
    name = manifest.spec.name
    what = f"{name}.a"
    problems: list[str] = []
    found = False
    for member, body in archive.unpack(data, what):
        if member == f"{name}.o":
            found = True
            if code is not None and body != code:
                problems.append(f"{what} holds another {name}.o than the one beside it")
        else:
            elf = Elf(body, f"{what}({member})")
            problems += check_object(elf, manifest, MEMORY | _POOL_NEEDS, entry_points=False)
    if not found:
        problems.append(f"{what} does not hold {name}.o")
    return problems


def check_library(elf: Elf, manifest: Manifest) -> list[str]:
    """Problems of a shared library."""
    problems = _machine(elf, manifest, ET_DYN)
    name, what = manifest.spec.name, elf.what
    symbols = elf.symbols(SHT_DYNSYM)
    problems += _needs(elf, MEMORY | _POOL_NEEDS)
    exported = {s.name for s in symbols if s.is_exported}
    entries = {f"{name}_run", f"{name}_run_parallel"}
    problems += [f"{what} does not export {e}" for e in sorted(entries - exported)]
    problems += [
        f"{what} exports {s}, which is not part of its interface"
        for s in sorted(exported - entries)
        if not s.startswith("tilewright_pool_")
    ]
    return problems + _hardening(elf, _starts(manifest)) + _dynamic(elf, name, _starts(manifest))


def _needs(elf: Elf, allowed: frozenset[str]) -> list[str]:
    """Symbols of a library that come from nowhere."""
    symbols = elf.symbols(SHT_DYNSYM)
    needed = {s.name for s in symbols if s.section == 0 and not s.is_weak}
    return [f"{elf.what} needs the symbol {n}" for n in sorted(needed) if not _allowed(n, allowed)]


def _starts(manifest: Manifest) -> bool:
    """Whether the C library's own start-up code is expected: zig links it in, asked or not."""
    tools = manifest.facts.get("tools")
    return isinstance(tools, Mapping) and str(tools.get("c_compiler", "")).startswith("zig ")


def _hardening(elf: Elf, starts: bool) -> list[str]:
    problems: list[str] = []
    what = elf.what
    for s in elf.sections:
        writable = s.flags & SHF_ALLOC and s.flags & SHF_WRITE and s.size
        if writable and not starts and not s.name.startswith(_RELOCATED):
            problems.append(f"{what} has writable data in section {s.name}")
    for symbol in elf.symbols(SHT_DYNSYM):
        if symbol.kind == STT_IFUNC:
            problems.append(f"{what} runs code when it is loaded, to find {symbol.name}")
    stack = [s for s in elf.segments if s.kind == PT_GNU_STACK]
    if not stack or any(s.flags & PF_X for s in stack):
        problems.append(f"{what} asks for an executable stack")
    if any(s.kind == PT_LOAD and s.flags & PF_X and s.flags & PF_W for s in elf.segments):
        problems.append(f"{what} has a segment that is both writable and executable")
    if not any(s.kind == PT_GNU_RELRO for s in elf.segments):
        problems.append(f"{what} was linked without relro")
    return problems


def _dynamic(elf: Elf, name: str, starts: bool) -> list[str]:
    problems: list[str] = []
    soname = None
    for tag, value in elf.dynamic():
        if tag == DT_TEXTREL or (tag == DT_FLAGS and value & DF_TEXTREL):
            problems.append(f"{elf.what} has relocations in its code")
        elif tag in DT_STARTUP and not starts:
            problems.append(f"{elf.what} runs code when it is loaded ({DT_STARTUP[tag]})")
        elif tag in (DT_RPATH, DT_RUNPATH):
            problems.append(f"{elf.what} has a library search path of its own")
        elif tag == DT_SONAME:
            soname = elf.dynamic_string(value)
        elif tag == DT_NEEDED and not elf.dynamic_string(value).startswith(_LIBRARIES):
            problems.append(f"{elf.what} needs the library {elf.dynamic_string(value)}")
    if soname != f"{name}.so":
        problems.append(f"{elf.what} calls itself {soname}")
    return problems


def _machine(elf: Elf, manifest: Manifest, kind: int) -> list[str]:
    problems = []
    wanted = MACHINES.get(manifest.triple.partition("-")[0])
    if wanted is not None and elf.machine != wanted:
        problems.append(f"{elf.what} is not for {manifest.triple}")
    if elf.kind != kind:
        problems.append(
            f"{elf.what} is not {'an object' if kind == ET_REL else 'a shared library'}"
        )
    return problems


def _allowed(symbol: str, allowed: frozenset[str]) -> bool:
    return symbol in allowed or symbol == "_GLOBAL_OFFSET_TABLE_"
