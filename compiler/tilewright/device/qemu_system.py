"""Run a program for a microcontroller on a board that QEMU emulates, and count its instructions.

In: a `Program` for a target with a `[board]`, inputs. Out: outputs, instructions of the whole model and
of every step, the stack it used; on request everything in memory after every step.
Invariant: the object code is the one that an artifact holds, linked with our own start-up code and no C
library. QEMU runs with `-icount shift=0`: the counts are exact to a tick of the board's clock (40
instructions at 25 MHz) and the same in every run. A known loop is counted along; if it does not come out
right, the run is an error.

    outputs = run_on_board(build("model.onnx", "cortex-m4"), inputs).outputs
"""

from __future__ import annotations

import shutil
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import numpy as np

from tilewright.artifact.toolchain import find_bare_compiler
from tilewright.codegen.llvm import to_object
from tilewright.codegen.module import emit_module
from tilewright.device.machines import Machine, machine
from tilewright.errors import TargetError, ToolchainError
from tilewright.graph.ir import Array
from tilewright.program import Program, Tensor, spec_of
from tilewright.runtime.spec import FIRST_FAULT
from tilewright.schedule.target import Board

EMULATOR = "qemu-system-arm"
#: Stack of the emulated board; what the model really uses is measured.
STACK_BYTES = 64 << 10
TIMEOUT_SECONDS = 600

_MAGIC = 0x54574252
_LOOP_INSTRUCTIONS = 2_000_000
_EMPTY_CALLS = 1000
_REPORT = struct.Struct("<IIIIQQQ")
_FAULT = 99
_SOURCES = ("board.h", "start.c", "runner.c")


@dataclass(frozen=True, slots=True)
class BoardRun:
    """One run. `instructions` of the whole model, `steps` of each step, `stack_bytes` below the caller.

    `snapshots[i]` is (arena, outputs) after step i as bytes; empty unless asked for.
    """

    outputs: list[Array]
    instructions: int
    steps: tuple[int, ...]
    stack_bytes: int
    snapshots: list[tuple[bytes, bytes]] = field(default_factory=list[tuple[bytes, bytes]])


def run_on_board(program: Program, inputs: Sequence[Array], snapshots: bool = False) -> BoardRun:
    """Link `program` for its target's board, run it in QEMU on `inputs` and read what it computed.

    Raises `TargetError` if the target has no board that QEMU emulates, `ToolchainError` without an
    emulator or a linker, or if the emulated program fails.
    """
    with BoardImage(program) as image:
        return image.run(inputs, snapshots)


class BoardImage:
    """A program linked for its board; `run` it as often as wanted, `close` it at the end."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.machine = _machine(program)
        self._folder = tempfile.TemporaryDirectory(prefix="tilewright-board-")
        self._path = Path(self._folder.name)
        try:
            _link(program, self.machine, self._path)
        except BaseException:
            self._folder.cleanup()
            raise

    def __enter__(self) -> BoardImage:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Delete the image."""
        self._folder.cleanup()

    def run(self, inputs: Sequence[Array], snapshots: bool = False) -> BoardRun:
        """One run on `inputs`, in the model's order; `ValueError` if they are not what it takes."""
        parts: list[bytes] = []
        for t, a in zip(self.program.inputs, inputs, strict=True):
            if a.shape != t.type.shape or a.dtype != t.type.dtype.numpy:
                raise ValueError(
                    f"input {t.name}: {t.type} is wanted, got {a.dtype}{list(a.shape)}"
                )
            parts.append(np.ascontiguousarray(a).tobytes())
        (self._path / "inputs.bin").write_bytes(b"".join(parts))
        trail, results = self._path / "snapshots.bin", self._path / "results.bin"
        trail.unlink(missing_ok=True)
        results.unlink(missing_ok=True)
        if snapshots:
            trail.write_bytes(b"")
        _emulate(self.machine, self._path)
        run = self._results(results.read_bytes())
        if snapshots:
            run.snapshots.extend(self._snapshots(trail.read_bytes()))
        return run

    def _results(self, data: bytes) -> BoardRun:
        program, per_tick = self.program, self.machine.instructions_per_tick
        magic, status, stack, steps, loop, empty, whole = _REPORT.unpack_from(data)
        if magic != _MAGIC or steps != len(program.steps) or status:
            why = {1: "the arena is misaligned", 2: "a second run gave other outputs"}
            if status >= FIRST_FAULT and program.faults:
                raise spec_of(program).failed(status)
            raise ToolchainError(
                f"{program.name} on {self.machine.name}: {why.get(status, 'bad results')}"
            )
        if abs(loop * per_tick / _LOOP_INSTRUCTIONS - 1) > 0.001:
            raise ToolchainError(
                f"{EMULATOR} does not count instructions: a loop of {_LOOP_INSTRUCTIONS} took "
                f"{loop * per_tick:.0f}; another version may"
            )
        at = _REPORT.size + 8 * steps
        ticks = struct.unpack_from(f"<{steps}Q", data, _REPORT.size)
        overhead = empty / _EMPTY_CALLS
        outputs = []
        for t in program.outputs:
            raw = data[at : at + t.type.bytes]
            outputs.append(np.frombuffer(raw, t.type.dtype.numpy).reshape(t.type.shape).copy())
            at += t.type.bytes
        counts = tuple(max(0, round((n - overhead) * per_tick)) for n in ticks)
        return BoardRun(outputs, round(whole * per_tick), counts, stack)

    def _snapshots(self, data: bytes) -> list[tuple[bytes, bytes]]:
        arena = _arena_bytes(self.program)
        _, size = _layout(self.program.outputs)
        each = arena + size
        return [
            (data[i : i + arena], data[i + arena : i + each])
            for i in range(0, each * len(self.program.steps), each)
        ]


def snapshot_outputs(program: Program, outputs: bytes) -> list[Array]:
    """The outputs of a program from the bytes of a snapshot."""
    offsets, _ = _layout(program.outputs)
    return [
        np.frombuffer(outputs[at : at + t.type.bytes], t.type.dtype.numpy).reshape(t.type.shape)
        for at, t in zip(offsets, program.outputs, strict=True)
    ]


# ---------------------------------------------------------------- building


def _machine(program: Program) -> Machine:
    board: Board | None = program.target.board
    if board is None or not board.machine:
        raise TargetError(f"{program.target.name} is not a board that QEMU emulates")
    return machine(board.machine)


def _arena_bytes(program: Program) -> int:
    return max(program.arena_bytes, program.target.align)


def _layout(tensors: Sequence[Tensor]) -> tuple[list[int], int]:
    """Offsets of tensors one after the other, each aligned to 16 bytes, and their total size."""
    offsets: list[int] = []
    at = 0
    for t in tensors:
        offsets.append(at)
        at += -(-t.type.bytes // 16) * 16
    return offsets, max(at, 16)


def _link(program: Program, board: Machine, folder: Path) -> None:
    """Make firmware.elf in `folder`."""
    compiler = find_bare_compiler(program.target.cpu)
    sources = resources.files("tilewright.device") / "board"
    for name in _SOURCES:
        (folder / name).write_bytes((sources / name).read_bytes())
    (folder / "runner.h").write_text(_header(program), encoding="utf-8")
    script = (sources / "board.ld").read_text(encoding="utf-8")
    (folder / "board.ld").write_text(link_script(script, board), encoding="utf-8")
    code = to_object(emit_module(program.plan(), True), program.target, program.weights)
    (folder / "model.o").write_bytes(code)
    compiler.run(
        ["start.c", "runner.c", "model.o", "-Wl,-T,board.ld", "-o", "firmware.elf"], folder
    )


def link_script(template: str, board: Machine, stack_bytes: int = STACK_BYTES) -> str:
    """The linker script for a board."""
    values = {
        "VECTORS": f"{board.vectors:#x}", "FLASH": f"{board.flash:#x}", "RAM": f"{board.ram:#x}",
        "FLASH_BYTES": str(board.flash_bytes), "RAM_BYTES": str(board.ram_bytes),
        "STACK_BYTES": str(stack_bytes),
    }  # fmt: skip
    for key, value in values.items():
        template = template.replace(f"@{key}@", value)
    return template


def _header(program: Program) -> str:
    """runner.h: the model as constants, for runner.c."""
    n = program.name
    ins, in_bytes = _layout(program.inputs)
    outs, out_bytes = _layout(program.outputs)
    lines = [
        '#include "board.h"',
        "typedef void (*model_step)(void *context, uint32_t begin, uint32_t end);",
        "typedef struct { uint32_t offset, bytes; } model_tensor;",
        "typedef struct { model_step call; uint32_t count; } model_call;",
        f"#define MODEL_STEPS {len(program.steps)}",
        f"#define MODEL_INPUTS {len(program.inputs)}",
        f"#define MODEL_OUTPUTS {len(program.outputs)}",
        f"#define MODEL_ARENA_BYTES {_arena_bytes(program)}",
        f"#define MODEL_OUTPUT_BYTES {out_bytes}",
        f"#define model_run {n}_run",
        f"#define model_weights {n}_weights",
        f"int32_t {n}_run(const void *const *inputs, void *const *outputs, void *arena);",
        f"extern const uint8_t {n}_weights[];",
        f"static _Alignas(16) uint8_t model_arena[MODEL_ARENA_BYTES], model_inputs[{in_bytes}], "
        "model_outputs[MODEL_OUTPUT_BYTES];",
        _tensors("input", program.inputs, ins),
        _tensors("output", program.outputs, outs),
    ]
    lines += [f"void {n}_step{i}(void *, uint32_t, uint32_t);" for i in range(len(program.steps))]
    calls = ", ".join(f"{{{n}_step{i}, {s.count}}}" for i, s in enumerate(program.steps))
    lines.append(f"static const model_call model_steps[] = {{{calls or '{0, 0}'}}};")
    return "\n".join(lines) + "\n"


def _tensors(kind: str, tensors: Sequence[Tensor], offsets: Sequence[int]) -> str:
    rows = [f"{{{at}, {t.type.bytes}}}" for t, at in zip(tensors, offsets, strict=True)]
    return f"static const model_tensor model_{kind}_tensors[] = {{{', '.join(rows) or '{0, 0}'}}};"


# ---------------------------------------------------------------- running


def _emulate(board: Machine, folder: Path) -> None:
    if shutil.which(EMULATOR) is None:
        raise ToolchainError(f"{EMULATOR} is not installed: apt-get install qemu-system-arm")
    command = [
        EMULATOR, "-M", board.name, "-display", "none", "-monitor", "none", "-serial", "none",
        "-icount", "shift=0", "-semihosting-config", "enable=on,target=native", "-kernel", "firmware.elf",
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, stdin=subprocess.DEVNULL, check=False,
            timeout=TIMEOUT_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise ToolchainError(
            f"{board.name} did not finish within {TIMEOUT_SECONDS} s of real time"
        ) from None
    if done.returncode:
        why = {_FAULT: "the processor took a fault", 1: "it could not read its inputs"}
        text = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise ToolchainError(
            f"the program on {board.name} failed: "
            f"{why.get(done.returncode, f'exit code {done.returncode}')}"
            + (f" ({text[-1]})" if text else "")
        )
