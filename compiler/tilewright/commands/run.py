"""`tilewright run`: compile (or load) a model, run it once or many times, profile it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.table import Table

from tilewright import api
from tilewright.bench.boards import macs
from tilewright.bench.inputs import make_inputs
from tilewright.bench.roofline import measure
from tilewright.commands._common import (
    DeviceName,
    ShapeList,
    StateList,
    TargetName,
    Threads,
    Winograd,
    console,
    escape,
    locate,
    notice,
    parse_states,
    progress,
    read_arrays,
)
from tilewright.device.board_model import BoardModel
from tilewright.device.gpu_model import GpuModel
from tilewright.device.linux_model import RemoteModel
from tilewright.errors import ModelError
from tilewright.graph.bands import layer_of
from tilewright.program import Step
from tilewright.runtime.binding import woven
from tilewright.runtime.model import Array, Model

NAME = "run"


def command(
    model: Annotated[
        str,
        typer.Argument(help="ONNX model file, name of `tilewright models`, or artifact directory"),
    ],
    target: TargetName = "host",
    shape: ShapeList = None,
    state: StateList = None,
    input: Annotated[
        list[str] | None, typer.Option(help="name=file.npy, or name=16000 for numbers; repeatable")
    ] = None,
    random: Annotated[int, typer.Option(help="seed for inputs that are not given")] = 0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="directory for outputs, NUMBER_NAME.npy")
    ] = None,
    profile: Annotated[bool, typer.Option("--profile", help="time of every kernel")] = False,
    threads: Threads = 1,
    repeat: Annotated[int, typer.Option(min=1, help="runs to time")] = 10,
    device: DeviceName = None,
    checked: Annotated[
        bool, typer.Option("--checked", help="check every index before an access (slow)")
    ] = False,
    winograd: Winograd = True,
) -> None:
    """Run a model on given or random inputs and print its outputs and latency."""
    path, shapes = locate(model, shape)
    if path.is_dir() or path.suffix == ".so":
        if profile:
            raise typer.BadParameter("--profile needs the model file, not an artifact")
        if checked or state:
            which = "--checked" if checked else "--state"
            raise typer.BadParameter(f"{which} needs the model file: an artifact is what it is")
        compiled: Model = api.load(path, threads, device)
        graph = None
    else:
        with progress() as report:
            made = api.compile(
                path, target, shapes, threads, states=parse_states(state), device=device, checked=checked,
                winograd=winograd, progress=report, notify=notice,
            )  # fmt: skip
        compiled, graph = made, made.program.graph
    given = read_arrays(input)
    unknown = sorted(set(given) - {t.name for t in compiled.inputs})
    if unknown:
        names = ", ".join(t.name for t in compiled.inputs)
        raise ModelError(f"--input names `{unknown[0]}`, but the inputs are {names}")
    arrays = make_inputs(compiled.inputs, graph, random, given)
    try:
        results = compiled(*arrays)
    except ValueError as err:
        raise ModelError(str(err)) from None
    _show(compiled, results, output)
    console.print(f"{compiled.name}: {_cost(compiled, arrays, repeat, threads)}", soft_wrap=True)
    if profile and isinstance(compiled, api.CompiledModel):
        _profile(compiled, arrays)
    if profile and isinstance(compiled, BoardModel):
        _profile_board(compiled, arrays)


def _cost(compiled: Model, arrays: list[Array], repeat: int, threads: int) -> str:
    """How long a run takes; under emulation, whose time says nothing, how many instructions."""
    if isinstance(compiled, BoardModel):
        return f"{compiled.profile(arrays).instructions} instructions (emulated)"
    if isinstance(compiled, GpuModel):
        return "run in the interpreter of a GPU's threads, whose time says nothing"
    where = f"{threads} thread{'s' if threads > 1 else ''}"
    if isinstance(compiled, RemoteModel):
        where = f"{where}, {escape(compiled.device.describe())}"
        if compiled.device.emulated:
            count = compiled.instructions(arrays)
            where = escape(compiled.device.describe()) + (", one thread" if threads > 1 else "")
            return f"{count if count is not None else 'unknown number of'} instructions on {where}"
        run = compiled.measure(arrays, repeat)
        least, median = run.least, run.median
    else:
        times: list[float] = []
        for _ in range(repeat):
            start = time.perf_counter()
            compiled(*arrays)
            times.append(time.perf_counter() - start)
        least, median = min(times), float(np.median(times))
    return f"{least * 1e3:.3f} ms (least of {repeat}), median {median * 1e3:.3f} ms, {where}"


def _show(compiled: Model, results: list[Array], output: Path | None) -> None:
    table = Table()
    for column in ("output", "type", "min", "max", "first values"):
        table.add_column(column)
    for t, a in zip(compiled.outputs, results, strict=True):
        flat = a.reshape(-1)
        first = ", ".join(f"{v:.5g}" for v in flat[:4])
        low, high = (f"{flat.min():.5g}", f"{flat.max():.5g}") if flat.size else ("", "")
        table.add_row(t.name, f"{t.dtype}{list(t.shape)}".replace("[", r"\["), low, high, first)
    console.print(table)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        for i, (t, a) in enumerate(zip(compiled.outputs, results, strict=True)):
            name = "".join(c if c.isalnum() or c in "._-" else "_" for c in t.name)
            np.save(output / f"{i}_{name}.npy", a)


def _profile(compiled: api.CompiledModel, arrays: list[Array]) -> None:
    """Least time of every step on one thread, against the machine's measured roofline."""
    session = compiled.session()
    spec = compiled.spec
    first = {s.input: a for s, a in zip(spec.states, spec.initial(), strict=True)}
    session.set_inputs(woven(arrays, first))
    session.run()
    steps = compiled.program.steps
    times = [float("inf")] * len(steps)
    for _ in range(5):
        for i in range(len(steps)):
            times[i] = min(times[i], session.time_step(i, 2))
    roof = measure(compiled.program.target)
    total = sum(times)
    table = Table(title="kernels by time, one thread", title_justify="left")
    for column in ("time", "share", "GFLOP/s", "GB/s", "roofline", "operators", "first node"):
        table.add_column(
            column, justify="right" if column not in ("operators", "first node") else "left"
        )
    for t, flops, size, label, node in sorted(_rows(times, steps), reverse=True):
        best = max(flops / roof.flops, size / roof.bandwidth)
        table.add_row(
            f"{t * 1e6:.1f} us", f"{t / total:.1%}", f"{flops / t / 1e9:.1f}", f"{size / t / 1e9:.1f}",
            f"{min(best / t, 9.99):.0%}", label, escape(node),
        )  # fmt: skip
    console.print(table)
    console.print(
        f"sum of kernels {total * 1e3:.3f} ms; roofline: {roof.flops / 1e9:.0f} GFLOP/s, "
        f"{roof.bandwidth / 1e9:.0f} GB/s (cache resident), measured just now"
    )


def _rows(
    times: Sequence[float], steps: Sequence[Step]
) -> Iterator[tuple[float, int, int, str, str]]:
    """Time, operations, bytes, operators and first node of every step; bands of a layer are one row."""
    layers: dict[tuple[str, str], list[tuple[float, Step]]] = {}
    for i, (t, s) in enumerate(zip(times, steps, strict=True)):
        layer, banded = layer_of(s.nodes[0]) if s.nodes else ("", False)
        layers.setdefault((s.label, layer) if banded else ("", str(i)), []).append((t, s))
    for (_, layer), made in layers.items():
        step = made[0][1]
        first = step.nodes[0] if step.nodes else ""
        shown = f"{layer} ({len(made)} bands)" if len(made) > 1 else first
        flops, size = sum(s.flops for _, s in made), sum(s.bytes for _, s in made)
        yield sum(t for t, _ in made), flops, size, step.label, shown


def _profile_board(compiled: BoardModel, arrays: list[Array]) -> None:
    """Instructions of every step on the emulated board, in the model's order."""
    run = compiled.profile(arrays)
    total = max(1, sum(run.steps))
    machine = compiled.image.machine
    table = Table(title=f"instructions on {machine.name}", title_justify="left")
    for column in ("instructions", "share", "MACs", "per MAC"):
        table.add_column(column, justify="right")
    table.add_column("operators")
    table.add_column("first node")
    steps = compiled.program.steps
    products = [macs(compiled.program, s) for s in steps]
    for n, s, m in zip(run.steps, steps, products, strict=True):
        table.add_row(
            f"{n}", f"{n / total:.1%}", f"{m}" if m else "", f"{n / m:.2f}" if m else "",
            s.label, escape(s.nodes[0]) if s.nodes else "",
        )  # fmt: skip
    console.print(table)
    console.print(
        f"{run.instructions} instructions, {run.instructions / max(1, sum(products)):.2f} per multiply-accumulate, "
        f"stack {run.stack_bytes} bytes; counts are exact to {machine.instructions_per_tick:g} instructions "
        "per step"
    )
