"""`tilewright survey`: compile many models and compare each with its reference."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from tilewright.bench.survey import Row, agreement, survey
from tilewright.bench.zoo import suite, zoo
from tilewright.commands._common import TargetName, console, escape, parse_shapes, size

NAME = "survey"

_SUFFIXES = (".onnx", ".tflite")


def command(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            help="files, folders of files, names of `tilewright models` (default: all of those)"
        ),
    ] = None,
    suite_name: Annotated[str | None, typer.Option("--suite", help="a suite of the zoo")] = None,
    target: TargetName = "host",
    shape: Annotated[
        list[str] | None,
        typer.Option(
            "--shape", help="input shape as name=1,3,224,224, for every model; repeatable"
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="number of random inputs")] = 20,
    tolerance: Annotated[
        float, typer.Option(help="largest error of floats, relative to the largest magnitude")
    ] = 1e-4,
    limit: Annotated[float, typer.Option(help="seconds a model may take")] = 1800.0,
    lines: Annotated[
        Path | None, typer.Option("--json", help="write every row as a line of JSON, as it is made")
    ] = None,
    table: Annotated[bool, typer.Option("--markdown", help="print a table for documents")] = False,
) -> None:
    """Compile models, each in a process of its own, and compare outputs with ONNX Runtime or LiteRT;
    exit code 1 if one neither agrees nor is restless (the library differs from itself)."""
    names = _names(models or [])
    if suite_name is not None:
        names += [m.name for m in suite(suite_name) if m.name not in names]
    rows: list[Row] = []
    if lines is not None:
        lines.write_text("", encoding="utf-8")
    for name in names or list(zoo()):
        rows.append(survey(name, target, parse_shapes(shape), seeds, tolerance, limit))
        if lines is not None:  # at once: all models take long
            with lines.open("a", encoding="utf-8") as out:
                out.write(json.dumps(asdict(rows[-1])) + "\n")
        if not table:
            console.print(escape(f"{name}: {agreement(rows[-1])}"), soft_wrap=True)
    if table:
        print(markdown(rows))
    else:
        _print(rows)
    if any(r.outcome not in ("agrees", "restless") for r in rows):
        raise typer.Exit(1)


def _names(given: list[str]) -> list[str]:
    """Folders stand for the models in them."""
    out: list[str] = []
    for name in given:
        path = Path(name)
        found = sorted(p for p in path.rglob("*") if p.suffix in _SUFFIXES) if path.is_dir() else []
        if path.is_dir() and not found:
            raise typer.BadParameter(f"the folder {name} has no {' or '.join(_SUFFIXES)} files")
        out += [str(p) for p in found] or [name]
    return out


def markdown(rows: list[Row]) -> str:
    """The rows as a table for documents."""
    head = (
        "model",
        "operators",
        "compiled in",
        "artifact",
        "arena",
        "against",
        "inputs",
        "agreement",
        "layers",
    )
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for r in rows:
        most = " ".join(f"{op}·{n}" if n > 1 else op for op, n in list(r.operators.items())[:5])
        rest = f" and {len(r.operators) - 5} more" if len(r.operators) > 5 else ""
        sizes = (f"{r.compile_seconds:.1f} s", size(r.artifact_bytes), size(r.arena_bytes))
        cells = (
            r.model,
            most + rest,
            *sizes,
            r.reference,
            str(r.runs),
            agreement(r),
            str(r.layers),
        )
        lines.append("| " + " | ".join(c.replace("|", "/") for c in cells) + " |")
    return "\n".join(lines)


def _print(rows: list[Row]) -> None:
    shown = Table()
    for column in ("model", "compiled in", "artifact", "arena", "agreement"):
        shown.add_column(column, overflow="fold")
    for r in rows:
        shown.add_row(
            escape(r.model), f"{r.compile_seconds:.1f} s", size(r.artifact_bytes),
            size(r.arena_bytes), escape(agreement(r)),
        )  # fmt: skip
    console.print(shown)
    good = sum(r.outcome == "agrees" for r in rows)
    console.print(f"{good} of {len(rows)} models agree with their reference")
    restless = sum(r.outcome == "restless" for r in rows)
    if restless:
        console.print(
            f"{restless} are restless: there the reference's own two settings do not agree"
        )
