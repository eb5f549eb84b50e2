"""Run programs on a Linux device: this machine, one that QEMU emulates, or one behind ssh.

In: programs for one target, their inputs, how to reach the device. Out: outputs and times of each.
Invariant: nothing of ours runs on the device but one self-contained, statically linked program, which
holds all the models and a small driver; it leaves no files behind.

A device is named by
    nothing                     this machine, or the emulator of the target file
    ssh://[user@]host[:port]    a machine that the `ssh` command reaches without asking (TILEWRIGHT_SSH, with
                                options if need be, stands in for `ssh`)
"""

from __future__ import annotations

import io
import os
import shlex
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from tilewright.artifact.toolchain import Compiler, find_compiler
from tilewright.codegen.llvm import runs_here, to_object
from tilewright.codegen.module import emit_module
from tilewright.errors import TargetError, ToolchainError
from tilewright.graph.ir import Array
from tilewright.program import Program
from tilewright.schedule.target import Target

TIMEOUT_SECONDS = 600
_PROGRAM = "models"
_SOURCES = ("driver.c", "driver.h")
#: On the device: unpack into a fresh directory, run, pack what was made, leave nothing.
_REMOTE = (
    'd=$(mktemp -d) && cd "$d" && tar -xf - && ./{program} {rounds} > report 2> errors; echo $? > status; '
    'tar -cf - report errors status $(ls out_* 2>/dev/null); cd / && rm -rf "$d"'
)


@dataclass(frozen=True, slots=True)
class LinuxRun:
    """One program's outputs, and the least and median time of its rounds in seconds (0 without rounds)."""

    outputs: list[Array]
    least: float
    median: float


def run_on_linux(
    program: Program, inputs: Sequence[Array], device: str | None = None, rounds: int = 0
) -> LinuxRun:
    """Run one program once, and `rounds` more times for its time; see `run_many`."""
    return run_many([program], [inputs], device, rounds)[0]


def run_many(
    programs: Sequence[Program],
    inputs: Sequence[Sequence[Array]],
    device: str | None = None,
    rounds: int = 0,
    timeout: float = TIMEOUT_SECONDS,
) -> list[LinuxRun]:
    """Run programs for one target (of different names), linked into one executable.

    Raises `ToolchainError` without a compiler for the target, `TargetError` if the device cannot be
    reached or the program fails on it.
    """
    target = programs[0].target
    runner = _runner(target, device)
    with tempfile.TemporaryDirectory(prefix="tilewright-device-") as name:
        folder = Path(name)
        _link(programs, target, folder)
        for k, arrays in enumerate(inputs):
            data = b"".join(
                np.ascontiguousarray(a, t.type.dtype.numpy).tobytes()
                for a, t in zip(arrays, programs[k].inputs, strict=True)
            )
            (folder / f"in_{k}").write_bytes(data)
        report = runner(folder, rounds, timeout)
        return [_result(p, k, report, folder) for k, p in enumerate(programs)]


def describe(target: Target, device: str | None) -> str:
    """Where programs run, for people."""
    if device is not None:
        return device
    return "this machine" if runs_here(target) else f"{target.emulator[0]} (emulated)"


# ---------------------------------------------------------------- making the program


def _link(programs: Sequence[Program], target: Target, folder: Path) -> None:
    root = resources.files("tilewright.device")
    for source in _SOURCES:
        (folder / source).write_text((root / source).read_text(encoding="utf-8"), encoding="utf-8")
    objects: list[str] = []
    for k, p in enumerate(programs):
        code = to_object(emit_module(p.plan(), with_weights=True), target, p.weights)
        objects.append(f"model_{k}.o")
        (folder / objects[-1]).write_bytes(code)
    (folder / "table.c").write_text(_table(programs), encoding="utf-8")
    compiler = _static_compiler(target)
    flags = ["-std=c11", "-O2", "-g0", "-static", "-Wl,-z,noexecstack"]
    compiler.run([*flags, "driver.c", "table.c", *objects, "-o", _PROGRAM], folder)


def _static_compiler(target: Target) -> Compiler:
    """A compiler for static programs: zig has only musl for those."""
    found = find_compiler(target.triple)
    if found is not None and found.is_zig:
        found = find_compiler(target.triple.replace("-gnu", "-musl"))
    if found is None:
        raise ToolchainError(
            f"running code for {target.name} needs a C compiler for {target.triple}: install "
            f"gcc-{target.triple.split('-')[0].replace('_', '-')}-linux-gnu or "
            "`pip install 'tilewright[cross]'`"
        )
    return found


def _table(programs: Sequence[Program]) -> str:
    lines = ['#include "driver.h"', ""]
    rows: list[str] = []
    for k, p in enumerate(programs):
        lines.append(
            f"int32_t {p.name}_run(const void* const* inputs, void* const* outputs, void* arena);"
        )
        for kind, tensors in (("in", p.inputs), ("out", p.outputs)):
            sizes = ", ".join(str(t.type.bytes) for t in tensors) or "0"
            lines.append(f"static const size_t {kind}_{k}[] = {{{sizes}}};")
        rows.append(
            f"    {{{p.name}_run, {len(p.inputs)}, {len(p.outputs)}, in_{k}, out_{k}, "
            f"{max(p.arena_bytes, 1)}}},"
        )
    lines += ["", "const struct model models[] = {", *rows, "};"]
    lines.append(f"const unsigned model_count = {len(programs)};")
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------- reaching the device


class _Command:
    """Runs the program by a command on this machine."""

    def __init__(self, prefix: Sequence[str]) -> None:
        self.prefix = list(prefix)

    def __call__(self, folder: Path, rounds: int, timeout: float) -> str:
        command = [*self.prefix, str(folder / _PROGRAM), str(rounds)]
        try:
            done = subprocess.run(
                command, cwd=folder, capture_output=True, stdin=subprocess.DEVNULL, check=False,
                timeout=timeout, text=True,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as err:
            raise TargetError(f"`{shlex.join(self.prefix or command[:1])}` failed: {err}") from None
        if done.returncode:
            raise TargetError(_failure("the program", done.returncode, done.stderr))
        return done.stdout


class _Ssh:
    """Sends the program and its inputs as one archive over ssh, and gets another one back."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme != "ssh" or not parts.hostname or parts.path not in ("", "/"):
            raise TargetError(f"device `{url}` is not known: write ssh://user@host:port")
        self.url = url
        command = shlex.split(os.environ.get("TILEWRIGHT_SSH", "ssh"))
        if not shutil.which(command[0]):
            raise ToolchainError(f"`{command[0]}` is not installed: it is needed to reach {url}")
        where = f"{parts.username}@{parts.hostname}" if parts.username else parts.hostname
        port = ["-p", str(parts.port)] if parts.port else []
        self.command = [*command, "-o", "BatchMode=yes", "-o", "ConnectTimeout=15", *port, where]

    def __call__(self, folder: Path, rounds: int, timeout: float) -> str:
        names = [_PROGRAM, *sorted(p.name for p in folder.glob("in_*"))]
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            for name in names:
                tar.add(folder / name, name)
        script = _REMOTE.format(program=_PROGRAM, rounds=rounds)
        try:
            done = subprocess.run(
                [*self.command, script], input=packed.getvalue(), capture_output=True, check=False,
                timeout=timeout,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as err:
            raise TargetError(f"{self.url} cannot be reached: {err}") from None
        made = self._unpack(done.stdout)
        if made is None or done.returncode:
            text = done.stderr.decode("utf-8", "replace").strip().splitlines()
            raise TargetError(f"{self.url} cannot be used: {text[-1] if text else 'no answer'}")
        status = int(made["status"].decode() or "1")
        if status:
            why = _failure(
                f"the program on {self.url}", status, made["errors"].decode("utf-8", "replace")
            )
            raise TargetError(why)
        for name, data in made.items():
            if name.startswith("out_") and name[4:].isdigit():
                (folder / name).write_bytes(data)
        return made["report"].decode()

    @staticmethod
    def _unpack(data: bytes) -> dict[str, bytes] | None:
        """Plain files of an archive that a device sent; None if it is none."""
        try:
            with tarfile.open(fileobj=io.BytesIO(data)) as tar:
                files = {m.name: tar.extractfile(m) for m in tar.getmembers() if m.isfile()}
                made = {n: f.read() for n, f in files.items() if f is not None}
        except tarfile.TarError:
            return None
        return made if {"report", "errors", "status"} <= made.keys() else None


def _failure(what: str, code: int, text: str) -> str:
    last = (text.strip().splitlines() or ["no message"])[-1]
    hint = (
        " (an instruction that the CPU lacks: is it the right target?)" if code in (-4, 132) else ""
    )
    return f"{what} stopped with code {code}{hint}: {last}"


def _runner(target: Target, device: str | None) -> _Command | _Ssh:
    if target.family != "simd":
        raise TargetError(f"{target.name} is no Linux machine: programs for it run elsewhere")
    if device is not None:
        return _Ssh(device)
    if runs_here(target):
        return _Command(())
    if not target.emulator:
        raise TargetError(
            f"code for {target.name} cannot run here and its target file names no emulator: name a "
            "device with --device ssh://user@host"
        )
    if not shutil.which(target.emulator[0]):
        raise ToolchainError(
            f"`{target.emulator[0]}` is not installed: install qemu-user, or name a device with "
            "--device ssh://user@host"
        )
    return _Command(target.emulator)


def _result(program: Program, k: int, report: str, folder: Path) -> LinuxRun:
    lines = [s.split() for s in report.splitlines()]
    found = next((s for s in lines if len(s) == 4 and s[0] == str(k)), None)
    if found is None or found[1] != "0":
        raise TargetError(f"{program.name} failed on the device: {found or 'it reported nothing'}")
    data = (folder / f"out_{k}").read_bytes()
    outputs: list[Array] = []
    at = 0
    for t in program.outputs:
        flat = np.frombuffer(data[at : at + t.type.bytes], t.type.dtype.numpy)
        outputs.append(flat.reshape(t.type.shape).copy())
        at += t.type.bytes
    return LinuxRun(outputs, int(found[2]) * 1e-9, int(found[3]) * 1e-9)
