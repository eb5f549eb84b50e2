"""`tilewright demo`: a real model, ahead of time, on real files, checked against a reference."""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from tilewright import api
from tilewright.artifact.write import Written
from tilewright.bench.verify import relative_error
from tilewright.commands._common import (
    TargetName,
    Threads,
    console,
    escape,
    notice,
    progress,
    size,
)
from tilewright.demo import magika
from tilewright.graph import interp
from tilewright.graph.ir import Array
from tilewright.pipeline import build
from tilewright.program import Program
from tilewright.runtime.model import Model

NAME = "demo"
TOLERANCE = 1e-4

#: Files of the package that the demo looks at when none are named, and of a checkout around it.
_PACKAGE = (
    "cli.py", "runtime/pool.c", "runtime/tilewright.h", "bench/zoo.toml", "demo/magika_v3_3.onnx",
    "demo/magika_content_types.json", "demo/LICENSE-magika.txt",
)  # fmt: skip
_CHECKOUT = ("README.md", ".ci/run", "pyproject.toml", ".gitignore", "kernels/conv2d.py")


def command(
    files: Annotated[
        list[Path] | None, typer.Argument(help="files to look at (default: our own)")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="keep the artifact here")
    ] = None,
    target: TargetName = "host",
    threads: Threads = 1,
) -> None:
    """Compile Magika ahead of time and let it say what kind of files these are; exit code 1 if a
    result departs from the reference."""
    console.print("Magika (Google, Apache-2.0) tells what a file is from 2048 of its bytes.")
    with tempfile.TemporaryDirectory(prefix="tilewright-demo-") as scratch:
        folder = output or Path(scratch)
        start = time.perf_counter()
        with progress() as report:
            program = build(
                magika.model_bytes(),
                target,
                {"bytes": (1, 2048)},
                report,
                notice,
                name="magika_v3_3",
            )
            report("generate code", 0.0)
            written = api.write(program, folder, api.source_hash(magika.model_bytes()))
        _describe(program, written, time.perf_counter() - start, output)
        model = _loaded(program, written, threads)
        chosen = list(files) if files else _own_files(folder)
        ok = _classify(program, model, chosen, threads)
    if not ok:
        raise typer.Exit(1)


def _describe(program: Program, written: Written, seconds: float, output: Path | None) -> None:
    shared = written.files.get(f"{program.name}.so")
    what = (
        f"shared library {size(shared)}"
        if shared
        else f"object {size(written.files[f'{program.name}.o'])}"
    )
    where = f" in {output}" if output else ""
    console.print(
        f"compiled ahead of time for {program.target.name} in {seconds:.1f} s: {what}{escape(where)} "
        f"(weights {size(program.weights_bytes)}), arena {size(program.arena_bytes)}",
        soft_wrap=True,
    )
    for note in written.notes:
        notice(note)


def _loaded(program: Program, written: Written, threads: int) -> Model:
    """The artifact just written; where no shared library could be linked, the same code in-process."""
    if f"{program.name}.so" in written.files:
        return api.load(written.directory, threads)
    return api.CompiledModel(program, threads)


def _own_files(artifact: Path) -> list[Path]:
    """Files every installation has: the package's, those of a checkout, and the artifact just made."""
    package = Path(str(resources.files("tilewright")))
    checkout = package.parent.parent
    found = [package / n for n in _PACKAGE]
    if (checkout / "pyproject.toml").is_file():
        found += [checkout / n for n in _CHECKOUT]
    found += sorted(p for p in artifact.iterdir() if p.suffix in (".o", ".so", ".json"))
    return [p for p in found if p.is_file()]


# ---------------------------------------------------------------- results


def _classify(program: Program, model: Model, files: Sequence[Path], threads: int) -> bool:
    """Run the model on every file; prints what it found, returns whether the reference agrees."""
    table = Table()
    for column in ("file", "what it is", "confidence"):
        table.add_column(
            column, overflow="fold", justify="right" if column == "confidence" else "left"
        )
    inputs: list[Array] = []
    results: list[Array] = []
    for path in files:
        first, last = magika.read_ends(path)
        prepared = magika.tokens(first, last)
        if prepared is None:
            found = magika.short_answer(first)
            confidence = "-"
        else:
            inputs.append(prepared)
            results.append(model(prepared)[0])
            found = magika.answer(results[-1])
            confidence = f"{found.score:.1%}"
        table.add_row(escape(path.name), escape(found.description), confidence)
    console.print(table)
    if not inputs:
        notice("no file was long enough for the model: nothing to measure or check")
        return True
    _latency(model, inputs[0], threads)
    return _check(program, inputs, results)


def _latency(model: Model, array: Array, threads: int) -> None:
    """Time the model for about half a second."""
    out = [np.empty(t.shape, t.dtype) for t in model.outputs]
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < 10 or time.perf_counter() - start < 0.5:
        begin = time.perf_counter()
        model.run_into([array], out)
        times.append(time.perf_counter() - begin)
    console.print(
        f"latency {min(times) * 1e3:.2f} ms (least of {len(times)} runs), median "
        f"{float(np.median(times)) * 1e3:.2f} ms, {threads} thread{'s' if threads > 1 else ''}"
    )


def _check(program: Program, inputs: Sequence[Array], results: Sequence[Array]) -> bool:
    """Compare with ONNX Runtime, or with our NumPy interpreter where that is not installed."""
    theirs: list[Array]
    if importlib.util.find_spec("onnxruntime") is not None:
        ort: Any = importlib.import_module("onnxruntime")
        session = ort.InferenceSession(magika.model_bytes(), providers=["CPUExecutionProvider"])
        theirs = [session.run(None, {"bytes": x})[0] for x in inputs]
        reference = "ONNX Runtime"
    else:
        graph = program.graph
        theirs = [interp.run(graph, {graph.inputs[0]: x})[graph.outputs[0]] for x in inputs]
        reference = "our NumPy interpreter in float64 (ONNX Runtime is not installed)"
    worst = max(relative_error(a, b) for a, b in zip(results, theirs, strict=True))
    agree = worst <= TOLERANCE
    verdict = "[green]agrees[/green]" if agree else "[red]departs[/red]"
    console.print(
        f"{verdict} with {reference} on {len(inputs)} files: largest error {worst:.1e} of the largest "
        f"score, tolerance {TOLERANCE:g}",
        soft_wrap=True,
    )
    return agree
