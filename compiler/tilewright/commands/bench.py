"""`tilewright bench`: ours against the peers, interleaved."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from tilewright import api
from tilewright.bench.peers import PEERS, PeerUnavailable, Runner
from tilewright.bench.runner import Timing, interleave
from tilewright.bench.verify import relative_error
from tilewright.bench.zoo import fetch, models
from tilewright.commands._common import (
    ShapeList,
    TargetName,
    Threads,
    console,
    make_inputs,
    notice,
    parse_shapes,
)
from tilewright.errors import ModelError, TilewrightError

NAME = "bench"


def command(
    model: Annotated[
        list[str] | None, typer.Argument(help="model files or names of pinned models")
    ] = None,
    suite: Annotated[str | None, typer.Option(help="`edge`: all pinned models")] = None,
    against: Annotated[
        str, typer.Option(help="peers, comma separated")
    ] = "onnxruntime,openvino,mnn",
    target: TargetName = "host",
    shape: ShapeList = None,
    threads: Threads = 1,
    repeat: Annotated[int, typer.Option(min=1, help="rounds")] = 30,
    json_file: Annotated[Path | None, typer.Option("--json", help="write all figures here")] = None,
) -> None:
    """Time models against installed peers: minimum, median, ratio to the best peer."""
    names = list(model or ())
    if suite == "edge":
        names += list(models())
    elif suite is not None:
        raise typer.BadParameter(f"--suite {suite}: the suites are edge")
    if not names:
        raise typer.BadParameter("name a model, or use --suite edge")
    peers = [p.strip() for p in against.split(",") if p.strip()]
    unknown = [p for p in peers if p not in PEERS]
    if unknown:
        raise typer.BadParameter(f"--against {unknown[0]}: the peers are {', '.join(PEERS)}")
    rows: list[dict[str, Any]] = []
    for name in names:
        try:
            rows.append(_one(name, peers, target, parse_shapes(shape), threads, repeat))
        except TilewrightError as err:
            if len(names) == 1:
                raise
            notice(f"{name}: {err}")
            continue
        if json_file is not None:
            data = {"threads": threads, "rounds": repeat, "target": target, "models": rows}
            json_file.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    _summary(rows, peers, threads, repeat)


def _path(name: str) -> tuple[Path, dict[str, tuple[int, ...]]]:
    if name in models():
        return fetch(name), models()[name].shapes
    path = Path(name)
    pinned = models().get(path.stem)
    return path, pinned.shapes if pinned else {}


def _one(
    name: str,
    peers: list[str],
    target: str,
    shapes: dict[str, tuple[int, ...]],
    threads: int,
    repeat: int,
) -> dict[str, Any]:
    path, known = _path(name)
    compiled = api.compile(path, target, {**known, **shapes}, threads, notify=notice)
    inputs = make_inputs(compiled.inputs, compiled.program.graph, 0)
    ours = compiled(*inputs)
    runners: dict[str, Runner] = {"tilewright": lambda: compiled(*inputs)}
    row: dict[str, Any] = {"model": path.stem, "error": {}, "refused": {}}
    for peer in peers:
        try:
            run = PEERS[peer](path, [t.name for t in compiled.inputs], inputs, threads)
            theirs = [np.asarray(v) for v in run()]
        except PeerUnavailable as err:
            row["refused"][peer] = str(err)
            continue
        except Exception as err:  # a peer's own failure is a result of the comparison, not ours
            row["refused"][peer] = (
                f"{type(err).__name__}: {str(err).splitlines()[0][:100] if str(err) else ''}"
            )
            continue
        errors = [
            relative_error(a, b.reshape(a.shape))
            for a, b in zip(ours, theirs, strict=False)
            if a.size == b.size
        ]
        row["error"][peer] = max(errors, default=math.inf)
        runners[peer] = run
    if not runners:
        raise ModelError(f"{name}: nothing to run")
    timings = interleave(runners, repeat)
    row["minimum"] = {k: t.minimum for k, t in timings.items()}
    row["median"] = {k: t.median for k, t in timings.items()}
    row["ratio"] = _ratio(timings)
    _print(row)
    return row


def _ratio(timings: dict[str, Timing]) -> float | None:
    peers = [t.minimum for k, t in timings.items() if k != "tilewright"]
    return min(peers) / timings["tilewright"].minimum if peers else None


def _print(row: dict[str, Any]) -> None:
    parts = [f"{k} {v * 1e3:.3f} ms" for k, v in row["minimum"].items()]
    parts += [f"{k}: {v}" for k, v in row["refused"].items()]
    ratio = f"  ratio {row['ratio']:.2f}" if row["ratio"] else ""
    console.print(f"{row['model']}: {', '.join(parts)}{ratio}".replace("[", r"\["), soft_wrap=True)


def _summary(rows: list[dict[str, Any]], peers: list[str], threads: int, repeat: int) -> None:
    table = Table(
        title=f"milliseconds, minimum / median of {repeat} rounds, {threads} thread{'s' if threads > 1 else ''}",
        title_justify="left",
    )
    table.add_column("model")
    for column in ("tilewright", *peers, "best peer / ours", "largest error"):
        table.add_column(column, justify="right")
    for row in rows:
        cells = [
            f"{row['minimum'][k] * 1e3:.3f} / {row['median'][k] * 1e3:.3f}"
            if k in row["minimum"]
            else "-"
            for k in ("tilewright", *peers)
        ]
        errors = row["error"]
        worst = ", ".join(f"{k} {v:.0e}" for k, v in errors.items() if v > 1e-4) or "< 1e-4"
        table.add_row(row["model"], *cells, f"{row['ratio']:.2f}" if row["ratio"] else "-", worst)
    console.print(table)
    ratios = [row["ratio"] for row in rows if row["ratio"]]
    if ratios:
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        console.print(
            f"best peer's time / ours: geometric mean {mean:.3f}, least {min(ratios):.3f}, {len(ratios)} models"
        )
