"""`tilewright targets`: the devices that tilewright knows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Annotated, Any

import typer
from rich.table import Table

from tilewright.commands._common import console, escape
from tilewright.errors import TilewrightError
from tilewright.pipeline import resolve_target
from tilewright.schedule.target import Board, Gpu, Target, load_target, target_names

NAME = "targets"

#: What every field means, in one line; a test holds it complete.
EXPLAINED: Mapping[type, Mapping[str, str]] = {
    Target: {
        "name": "name of the target file",
        "description": "the device",
        "triple": "LLVM's name of architecture, system and calling convention",
        "cpu": "the core whose timing LLVM schedules instructions for",
        "features": "features that LLVM may use or must not, beyond the core's",
        "required": "CPU features that are checked before the code runs",
        "vector_bytes": "widest vector register worth using",
        "registers": "vector registers, which bound the tiles of contractions",
        "masked": "whether the ends of rows may use masked loads and stores",
        "fma_per_cycle": "vector multiply-adds that one core starts per cycle",
        "fma_latency": "cycles until a multiply-add's result can be used",
        "loads_per_cycle": "vector loads that one core starts per cycle",
        "cores": "cores (of a GPU: multiprocessors)",
        "l1_bytes": "first-level data cache of a core, which bounds a tile's operands",
        "l2_bytes": "second-level cache of a core, which bounds what a block of tiles shares",
        "l3_bytes": "last-level cache that a core can use",
        "line_bytes": "cache line",
        "pointer_bytes": "size of an address",
        "prefetch": "whether products ask for the weights of their next block ahead of time",
        "l2_rate": "bytes per cycle that one core streams from the second-level cache",
        "l3_rate": "bytes per cycle that one core streams from the last-level cache",
        "memory_rate": "bytes per cycle that one core streams from memory",
        "dot": "integer dot products that code may use",
        "logs": "another target whose tuning logs hold for this one too",
        "emulator": "command that runs a program for this device elsewhere",
        "abi": "float calling convention where it is not the triple's",
        "board": "memory of a microcontroller",
        "gpu": "what bounds a CUDA kernel",
    },
    Board: {
        "flash_bytes": "flash for code and weights",
        "ram_bytes": "RAM for arena, inputs, outputs and stack",
        "machine": "machine of qemu-system-arm that stands in for the board",
        "stack_bytes": "most that one run may take of the stack",
    },
    Gpu: {
        "sm": "compute capability, as in sm_80",
        "ptx": "version of the PTX that is generated, times 10",
        "multiprocessors": "multiprocessors that run blocks at the same time",
        "shared_block": "shared memory that a block may use without opting in",
        "shared_sm": "shared memory of a multiprocessor",
        "registers_sm": "32-bit registers of a multiprocessor",
        "registers_thread": "32-bit registers that a thread may use",
        "threads_block": "threads that a block may have",
        "threads_sm": "threads resident on a multiprocessor",
        "blocks_sm": "blocks resident on a multiprocessor",
        "warp": "threads that run in step",
        "bandwidth": "device memory, of the data sheet: for estimates only",
        "flops_f32": "float32 arithmetic, of the data sheet: for estimates only",
        "flops_mma": "half precision on tensor cores, of the data sheet: for estimates only",
        "mma": "operands that tensor cores multiply; tf32 rounds f32: only as NAME+tf32",
    },
}
_FAMILIES = {"simd": "CPU", "mcu": "microcontroller", "cuda": "GPU"}
_BYTES = frozenset({"shared_block", "shared_sm"})


def command(
    name: Annotated[str | None, typer.Argument(help="show this target's fields")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """List targets with their families, or show every field of one."""
    if name is not None:
        target = resolve_target(name)
        if as_json:
            print(json.dumps({"family": target.family, **asdict(target)}, indent=1))
        else:
            _show(target)
        return
    known = [load_target(n) for n in target_names()]
    if as_json:
        rows = [{k: getattr(t, k) for k in ("name", "family", "description")} for t in known]
        print(json.dumps(rows, indent=1))
    else:
        _list(known)


def _list(known: list[Target]) -> None:
    try:
        host = resolve_target("host").name
    except TilewrightError:
        host = ""
    table = Table()
    for column in ("target", "family", "description", "vector", "integer dot products", "triple"):
        table.add_column(column, overflow="fold")
    for t in sorted(known, key=lambda t: (list(_FAMILIES).index(t.family), t.name)):
        label = f"{t.name} (host)" if t.name == host else t.name
        vector = f"{t.vector_bytes * 8} bit" if t.vector_bytes > 4 else "none"
        if t.gpu:
            vector = f"{t.gpu.warp} threads"
        table.add_row(label, _FAMILIES[t.family], t.description, vector, ", ".join(t.dot), t.triple)
    console.print(table)


def _show(target: Target) -> None:
    table = Table(
        title=f"{target.name} ({_FAMILIES[target.family]})", title_justify="left", show_header=False
    )
    for _ in range(3):
        table.add_column(overflow="fold")
    _rows(table, target)
    console.print(table)


def _rows(table: Table, record: Any, prefix: str = "") -> None:
    """A row per field: name, value in units for people, meaning."""
    for f in fields(record):
        value = getattr(record, f.name)
        meaning = EXPLAINED[type(record)][f.name]
        if isinstance(value, Board | Gpu):
            table.add_section()
            table.add_row(escape(f"[{f.name}]"), "", meaning)
            _rows(table, value, f"{f.name}.")
            table.add_section()
        elif value is not None:
            table.add_row(prefix + f.name, escape(readable(f.name, value)), meaning)


def readable(name: str, value: Any) -> str:
    """A field's value with its unit; sizes in binary multiples where they come out even."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    if name == "bandwidth":
        return f"{value / 1e9:g} GB/s"
    if name.startswith("flops"):
        return f"{value / 1e12:g} TFLOP/s"
    if isinstance(value, int) and (name.endswith("_bytes") or name in _BYTES):
        for unit, text in ((1 << 20, "MiB"), (1 << 10, "KiB")):
            if value >= unit and value % unit == 0:
                return f"{value // unit} {text}"
        return f"{value} bytes"
    return str(value) or "none"
