"""`tilewright tune`: search for faster schedules on the device, within a time budget."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Annotated

import typer
from rich.live import Live
from rich.table import Table

from tilewright.bench.roofline import Roofline
from tilewright.bench.roofline import measure as measure_roofline
from tilewright.commands._common import (
    ModelName,
    ShapeList,
    TargetName,
    console,
    errors_console,
    escape,
    locate,
    notice,
)
from tilewright.device.choose import device_for
from tilewright.frontend.models import load_model
from tilewright.pipeline import largest, resolve_target
from tilewright.tune.executors import dask_executor
from tilewright.tune.folders import user_folder
from tilewright.tune.state import Result, State, Task
from tilewright.tune.tuner import Tuner

NAME = "tune"

#: Kernels shown in the live table.
ROWS = 12


def command(
    model: ModelName,
    target: TargetName = "host",
    minutes: Annotated[float, typer.Option(min=0.05, help="how long to search")] = 5.0,
    shape: ShapeList = None,
    logs: Annotated[
        Path | None, typer.Option(help="folder of the logs (default: the user's)")
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, help="worker processes that measure at the same time")
    ] = 1,
    dask: Annotated[
        str | None, typer.Option(help="address of a Dask scheduler, tcp://host:port")
    ] = None,
    resource: Annotated[
        str, typer.Option(help="with --dask: the worker resource that a measurement takes")
    ] = "",
    device: Annotated[
        str, typer.Option(help="where candidates run: ssh://user@host, emulator (default: here)")
    ] = "",
    seed: Annotated[int | None, typer.Option(help="make the search repeatable")] = None,
) -> None:
    """Find faster schedules for a model; later compilations use them without being asked.

    Ctrl-C ends the search and keeps everything found so far; the same command goes on from there.
    """
    path, shapes = locate(model, shape)
    machine = resolve_target(target)
    graph = load_model(path, largest(path, shapes), notice)
    folder = logs or user_folder()
    if resource and dask is None:
        raise typer.BadParameter("--resource names a resource of Dask workers: give --dask too")
    if device and not machine.board and not machine.gpu:
        device_for(machine, device)  # refuses at once what cannot work
    with _executor(dask, resource) as (executor, slots), _display() as show:
        tuner = Tuner(
            graph,
            machine,
            folder,
            executor,
            slots if executor else workers,
            device,
            seed,
            show,
            resource,
        )
        if tuner.here:
            tuner.floor = _floor(measure_roofline(machine))
        result = tuner.run(60 * minutes)
    _summary(result)


def _floor(roof: Roofline) -> Callable[[int, int], float]:
    """Seconds that a kernel cannot go below on this machine."""

    def seconds(flops: int, size: int) -> float:
        return max(flops / roof.flops, size / roof.bandwidth)

    return seconds


@contextlib.contextmanager
def _executor(address: str | None, resource: str) -> Iterator[tuple[Executor | None, int]]:
    if address is None:
        yield None, 1
        return
    executor, slots, close = dask_executor(address, resource)
    try:
        yield executor, slots
    finally:
        close()


# ---------------------------------------------------------------- display


@contextlib.contextmanager
def _display() -> Iterator[Callable[[State], None]]:
    """A function that shows a state: a live table on a terminal, a line now and then in a log."""
    if not errors_console.is_terminal:
        last: dict[str, float] = {}

        def line(state: State) -> None:
            now = time.monotonic()
            if now - last.get(state.stage, -math.inf) >= 10:
                last[state.stage] = now
                errors_console.print(escape(_headline(state)), soft_wrap=True)

        yield line
        return
    with Live(console=errors_console, refresh_per_second=4, transient=True) as live:
        yield lambda state: live.update(_table(state))


def _headline(state: State) -> str:
    left = max(0.0, state.deadline - time.monotonic())
    total = state.seconds
    gain = state.expected_gain() / total if total else 0.0
    label = "" if state.source == "measured" else " (estimates)"
    return (
        f"{state.stage}{label}: {state.trials} trials, {state.failures} failed, {left:.0f} s left, "
        f"the next batch is expected to gain {gain:.2%}"
    )


def _table(state: State) -> Table:
    table = Table(title=escape(_headline(state)), title_justify="left")
    table.add_column("kernel", overflow="ellipsis", no_wrap=True, max_width=44)
    for column in ("calls", "default", "best", "gain", "roofline", "trials", "next"):
        table.add_column(column, justify="right")
    for task in sorted(state.tasks, key=lambda t: -t.progress.seconds)[:ROWS]:
        table.add_row(*_row(task))
    return table


def _row(task: Task) -> list[str]:
    p = task.progress
    default, best = p.default, p.best
    share = p.floor / best if best and p.floor else math.nan
    return [
        escape(task.name),
        str(p.calls),
        _time(default),
        _time(best),
        f"{default / best:.2f}" if default and best else "-",
        f"{share:.0%}" if math.isfinite(share) else "-",
        f"{task.trials}" + (f" ({task.failed} failed)" if task.failed else ""),
        "at work" if task.busy else f"{p.expected_gain() * 1e6:.1f} us",
    ]


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.1f} us"


def _amount(seconds: float | None, source: str) -> str:
    """A time, or the instructions that stand for one (counted as if a thousand million took a second)."""
    if source != "instructions" or seconds is None:
        return _time(seconds)
    return f"{seconds * 1e3:.3f} M instr."


def _summary(result: Result) -> None:
    state = result.state
    for note in state.notes:
        notice(note)
    how = "" if state.source == "measured" else " (by estimates, nothing was timed)"
    table = Table(title=f"kernels with a faster schedule{how}", title_justify="left")
    table.add_column("kernel")
    for column in ("calls", "default", "tuned", "gain", "trials"):
        table.add_column(column, justify="right")
    better = [t for t in state.tasks if t.gain > 1]
    for t in sorted(better, key=lambda t: -t.progress.seconds):
        assert t.winner is not None
        table.add_row(
            escape(t.name), str(t.progress.calls), _amount(t.winner.default, t.winner.source),
            _amount(t.winner.seconds, t.winner.source), f"{t.gain:.2f}", str(t.trials),
        )  # fmt: skip
    if better:
        console.print(table)
    console.print(
        f"{state.trials} trials, {state.failures} failed; {len(better)} of {len(state.tasks)} kernels have "
        f"a faster schedule; logs in {escape(str(result.folder))}",
        soft_wrap=True,
    )
    c = result.comparison
    if result.interrupted:
        console.print("interrupted: everything measured is in the logs, the same command goes on")
    elif c is not None:
        console.print(
            f"whole model, one thread, interleaved: default {c.default * 1e3:.3f} ms, tuned "
            f"{c.tuned * 1e3:.3f} ms (least), ratio {c.ratio:.3f}",
            soft_wrap=True,
        )
    elif state.source != "measured":
        console.print("the whole model was not timed: its code cannot run here")
