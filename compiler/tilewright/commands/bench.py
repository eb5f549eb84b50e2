"""`tilewright bench`: ours against the peers, interleaved."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from tilewright import api
from tilewright.bench.inputs import make_inputs
from tilewright.bench.peers import DEFAULT_TRIALS, PEERS, Case, PeerUnavailable, Runner, version
from tilewright.bench.plot import Bar, geometric_mean, plot, require_plot
from tilewright.bench.runner import interleave
from tilewright.bench.verify import relative_error
from tilewright.bench.zoo import suite as zoo_suite
from tilewright.commands._common import (
    ShapeList,
    TargetName,
    Threads,
    console,
    escape,
    known_values,
    locate,
    notice,
    progress,
)
from tilewright.errors import TilewrightError
from tilewright.graph.ir import Array

NAME = "bench"
OURS = "tilewright"

#: A peer whose outputs are further off than this is marked. It stays in the comparison: leaving it out
#: could only flatter us, and models with made-up weights can amplify rounding without limit.
SAME_RESULT = 1e-2


@dataclass(slots=True)
class Row:
    """Figures of one model: seconds by runner, largest relative difference and refusals by peer."""

    model: str
    minimum: dict[str, float] = field(default_factory=dict[str, float])
    median: dict[str, float] = field(default_factory=dict[str, float])
    error: dict[str, float] = field(default_factory=dict[str, float])
    refused: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def best_peer(self) -> str | None:
        """The peer with the least minimum."""
        peers = [p for p in self.minimum if p != OURS]
        return min(peers, key=lambda p: self.minimum[p]) if peers else None

    @property
    def ratio(self) -> float | None:
        """Best peer's minimum over ours: above 1 we are faster."""
        best = self.best_peer
        return None if best is None else self.minimum[best] / self.minimum[OURS]


def command(
    model: Annotated[
        list[str] | None, typer.Argument(help="model files, or names of `tilewright models`")
    ] = None,
    suite: Annotated[
        str | None, typer.Option(help="a suite of the zoo: edge, tiny, int8, tflite")
    ] = None,
    against: Annotated[
        str, typer.Option(help="peers, comma separated")
    ] = "onnxruntime,openvino,mnn,litert",
    target: TargetName = "host",
    shape: ShapeList = None,
    threads: Threads = 1,
    repeat: Annotated[int, typer.Option(min=1, help="rounds")] = 30,
    json_file: Annotated[Path | None, typer.Option("--json", help="write all figures here")] = None,
    picture: Annotated[
        Path | None,
        typer.Option("--plot", help="draw the ratios: FILE.png and FILE.svg (needs matplotlib)"),
    ] = None,
    tvm_trials: Annotated[
        int, typer.Option(min=1, help="what `tvm-tuned` may measure per model, in all")
    ] = DEFAULT_TRIALS,
) -> None:
    """Time models against installed peers, interleaved: minimum, median, ratio to the best peer.

    A model that cannot be had or compiled is reported, and the exit code is 1 at the end.
    """
    names = list(model or ()) + [m.name for m in zoo_suite(suite)] if suite else list(model or ())
    peers = [p.strip() for p in against.split(",") if p.strip()]
    unknown = [p for p in peers if p not in PEERS]
    if unknown:
        raise typer.BadParameter(f"--against {unknown[0]}: the peers are {', '.join(PEERS)}")
    if not names:
        raise typer.BadParameter("name a model, or use --suite edge")
    if picture is not None:
        require_plot()  # before an hour of measuring
    rows: list[Row] = []
    failed = False
    for name in names:
        try:
            row = _one(name, peers, target, shape, threads, repeat, tvm_trials)
        except TilewrightError as err:
            notice(f"{name}: {err}")
            failed = True
            continue
        rows.append(row)
        _print(row)
        if json_file is not None:
            _write(json_file, rows, peers, target, threads, repeat)
    if rows:
        _summary(rows, peers, threads, repeat)
        if picture is not None:
            _draw(picture, rows, threads, repeat)
    if failed:
        raise typer.Exit(1)


def _one(
    name: str,
    peers: list[str],
    target: str,
    shape: list[str] | None,
    threads: int,
    repeat: int,
    tvm_trials: int,
) -> Row:
    """Prepare all runners of one model, check the peers' outputs against ours, time."""
    path, shapes = locate(name, shape)
    with progress() as report:
        compiled = api.compile(path, target, shapes, threads, progress=report, notify=notice)
        inputs = make_inputs(compiled.inputs, compiled.program.graph, 0, known_values(name))
        by_name = {t.name: a for t, a in zip(compiled.inputs, inputs, strict=True)}
        case = Case(path, by_name, [t.name for t in compiled.outputs], threads, tvm_trials)
        expected = compiled(*inputs)
        outputs = [np.empty_like(a) for a in expected]

        def ours() -> list[Array]:
            compiled.run_into(inputs, outputs)
            return outputs

        runners: dict[str, Runner] = {OURS: ours}
        row = Row(path.stem)
        for peer in peers:
            report(f"{row.model}: prepare {peer}", 0.0)
            _admit(peer, case, expected, runners, row)
        timings = interleave(runners, repeat, lambda done: report(f"{row.model}: time", done))
    row.minimum = {k: t.minimum for k, t in timings.items()}
    row.median = {k: t.median for k, t in timings.items()}
    return row


def _admit(
    peer: str, case: Case, expected: list[Array], runners: dict[str, Runner], row: Row
) -> None:
    """Add a peer's runner, or say in `row` why it is left out."""
    try:
        run = PEERS[peer](case)
        theirs = [np.asarray(v) for v in run()]
    except PeerUnavailable as err:
        row.refused[peer] = str(err)
        return
    except Exception as err:  # whatever a peer raises is a result of the comparison, not our bug
        said = [s for s in str(err).splitlines() if s and not s.startswith("Exception from")]
        first = (said or [""])[0]
        row.refused[peer] = f"{type(err).__name__}: {first[:100]}"
        return
    row.error[peer] = _difference(expected, theirs)
    runners[peer] = run


def _difference(ours: list[Array], theirs: list[Array]) -> float:
    """Largest relative error over all outputs; infinite where they do not correspond."""
    if len(ours) != len(theirs):
        return math.inf
    return max(
        relative_error(a, b.reshape(a.shape).astype(a.dtype)) if a.size == b.size else math.inf
        for a, b in zip(ours, theirs, strict=True)
    )


# ---------------------------------------------------------------- reports


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3f}" if seconds < 0.01 else f"{seconds * 1e3:.2f}"


def _print(row: Row) -> None:
    parts = [f"{k} {_milliseconds(v)} ms" for k, v in row.minimum.items()]
    if row.ratio is not None:
        parts.append(f"best peer / ours {row.ratio:.2f}")
    console.print(escape(f"{row.model}: {', '.join(parts)}"), soft_wrap=True)
    for peer, why in row.refused.items():
        if version(peer):
            notice(f"{row.model}: {peer} left out: {why}")
    for peer, error in row.error.items():
        if error > SAME_RESULT:
            notice(f"{row.model}: the outputs of {peer} differ from ours by {error:.1e}")
    if row.error and min(row.error.values()) > SAME_RESULT:
        notice(f"{row.model}: no peer agrees with our outputs, run `tilewright verify` on it")


def _summary(rows: list[Row], peers: list[str], threads: int, repeat: int) -> None:
    here = [p for p in peers if version(p)]
    plural = "s" if threads > 1 else ""
    title = f"ms, minimum / median of {repeat} rounds, {threads} thread{plural}"
    table = Table(title=title, title_justify="left")
    table.add_column("model", overflow="fold")
    for column in (OURS, *here, "best peer / ours", "max error"):
        table.add_column(column, justify="right")
    for row in rows:
        cells = [_cell(row, k) for k in (OURS, *here)]
        ratio = f"{row.ratio:.2f}" if row.ratio is not None else "-"
        worst = f"{max(row.error.values()):.0e}" if row.error else "-"
        table.add_row(row.model, *cells, ratio, worst)
    console.print(table)
    if any(e > SAME_RESULT for row in rows for e in row.error.values()):
        console.print(
            f"* outputs differ from ours by more than {SAME_RESULT:g} of the largest magnitude"
        )
    absent = [p for p in peers if p not in here]
    if absent:
        notice(f"not installed, so not measured: {', '.join(absent)}")
    ratios = [r.ratio for r in rows if r.ratio is not None]
    if ratios:
        console.print(
            f"best peer's time / ours: geometric mean {geometric_mean(ratios):.3f}, "
            f"least {min(ratios):.3f}, {len(ratios)} models",
            soft_wrap=True,
        )


def _draw(path: Path, rows: list[Row], threads: int, repeat: int) -> None:
    """The ratios as a picture."""
    bars = [
        Bar(r.model, r.ratio, r.best_peer, r.error.get(r.best_peer, 0.0) > SAME_RESULT)
        for r in rows
        if r.ratio is not None and r.best_peer is not None
    ]
    title = f"{_machine()['cpu']}, {threads} thread{'s' if threads > 1 else ''}, least of {repeat} interleaved rounds"
    made = plot(path, bars, title)
    console.print(f"drawn: {', '.join(map(str, made))}", soft_wrap=True)


def _cell(row: Row, runner: str) -> str:
    """`minimum / median`, marked where the outputs differ from ours, empty where left out."""
    if runner not in row.minimum:
        return "-"
    mark = "*" if row.error.get(runner, 0.0) > SAME_RESULT else ""
    return f"{_milliseconds(row.minimum[runner])} / {_milliseconds(row.median[runner])}{mark}"


def _write(
    path: Path, rows: list[Row], peers: list[str], target: str, threads: int, repeat: int
) -> None:
    """All figures so far, with what they were measured on."""
    ratios = [r.ratio for r in rows if r.ratio is not None]
    data: dict[str, Any] = {
        "machine": _machine(),
        "versions": {OURS: metadata.version(OURS), **{p: version(p) for p in peers if version(p)}},
        "settings": {"target": target, "threads": threads, "rounds": repeat},
        "models": [
            {**asdict(r), "error": _finite(r.error), "best_peer": r.best_peer, "ratio": r.ratio}
            for r in rows
        ],
        "geometric_mean": geometric_mean(ratios) if ratios else None,
    }
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    """JSON has no infinity."""
    return {k: v if math.isfinite(v) else None for k, v in values.items()}


def _machine() -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [s.split(":", 1)[1].strip() for s in lines if s.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cpus": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }
