"""`tilewright compile`: a model file becomes an artifact directory."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from tilewright import api
from tilewright.commands._common import (
    ModelName,
    ShapeList,
    TargetName,
    console,
    locate,
    notice,
    progress,
    size,
)
from tilewright.pipeline import build

NAME = "compile"


def command(
    model: ModelName,
    output: Annotated[Path, typer.Option("--output", "-o", help="directory for the artifact")],
    target: TargetName = "host",
    shape: ShapeList = None,
    name: Annotated[
        str | None, typer.Option(help="C name of the model (default: the file's)")
    ] = None,
    dump_ir: Annotated[
        Path | None, typer.Option(help="directory for the text of every stage")
    ] = None,
) -> None:
    """Compile a model ahead of time: object, libraries, header, manifest, C example."""
    start = time.perf_counter()
    if name is not None and not (name.isidentifier() and name.isascii()):
        raise typer.BadParameter(f"--name {name} is not a C identifier")
    path, shapes = locate(model, shape)
    with progress() as report:
        program = build(path, target, shapes, report, notice, dump_ir, name)
        report("generate code", 0.0)
        written = api.write(program, output, api.source_hash(path))
        if dump_ir is not None:
            (dump_ir / "6_assembly.s").write_text(api.assembly(program), encoding="utf-8")
    table = Table(title=f"{program.name} for {program.target.name}", title_justify="left")
    table.add_column("file")
    table.add_column("size", justify="right")
    for file, bytes_ in sorted(written.files.items()):
        table.add_row(str(output / file), size(bytes_))
    console.print(table)
    console.print(
        f"{len(program.steps)} steps, {len(program.kernels)} kernels, weights {size(program.weights_bytes)}, "
        f"arena {size(program.arena_bytes)}, compiled in {time.perf_counter() - start:.1f} s"
    )
    for note in written.notes:
        notice(note)
