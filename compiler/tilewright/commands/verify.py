"""`tilewright verify`: is the compiled model right, as a whole and layer by layer? Is an artifact sound?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.table import Table

from tilewright import api
from tilewright.artifact import manifest as manifests
from tilewright.artifact.verify import verify_artifact
from tilewright.bench.inputs import make_inputs
from tilewright.bench.sensitivity import STEP
from tilewright.bench.verify import STATEFUL_RUNS, Report, Verifier
from tilewright.commands._common import (
    DeviceName,
    ShapeList,
    StateList,
    TargetName,
    Winograd,
    console,
    escape,
    known_values,
    locate,
    notice,
    parse_states,
    progress,
    read_arrays,
)
from tilewright.device.linux_model import LinuxModel
from tilewright.errors import ModelError
from tilewright.graph.ir import Array
from tilewright.rebuild import check_rebuilt
from tilewright.runtime.model import Spec, TensorSpec
from tilewright.testing.opinions import opinions

NAME = "verify"


def command(
    model: Annotated[
        str,
        typer.Argument(
            help="ONNX or TFLite file, name of `tilewright models`, or artifact directory"
        ),
    ],
    target: TargetName = "host",
    shape: ShapeList = None,
    state: StateList = None,
    input: Annotated[
        list[str] | None, typer.Option(help="name=file.npy, or name=16000 for numbers; repeatable")
    ] = None,
    random: Annotated[int, typer.Option(help="first seed for the inputs")] = 0,
    seeds: Annotated[int, typer.Option(min=1, help="number of random inputs")] = 3,
    tolerance: Annotated[
        float, typer.Option(help="largest error, relative to the largest magnitude")
    ] = 1e-4,
    device: DeviceName = None,
    winograd: Winograd = True,
    opinion: Annotated[
        bool,
        typer.Option(
            "--opinions",
            help="ask everybody installed, not only where outputs differ, who is alone",
        ),
    ] = False,
    rebuild: Annotated[
        Path | None,
        typer.Option(
            help="with an artifact directory: compile this model again and compare every byte"
        ),
    ] = None,
) -> None:
    """Compare with ONNX Runtime or LiteRT (our NumPy interpreter where it is not installed); exit code 1
    and the first layer that departs if they differ.

    Of an artifact directory, check without running anything: hashes, symbols that are missing or too many,
    writable data, executable stack, relocations in code; with --rebuild MODEL also that it is what the
    model compiles to.
    """
    path, shapes = locate(model, shape)
    if path.is_dir():
        _artifact(path, rebuild, target)
        return
    if rebuild is not None:
        raise typer.BadParameter(f"--rebuild is for artifact directories, which {model} is not")
    with progress() as report:
        compiled = api.compile(
            path,
            target,
            shapes,
            states=parse_states(state),
            device=device,
            winograd=winograd,
            progress=report,
            notify=notice,
        )
    given = {**known_values(model), **read_arrays(input)}
    unknown = sorted(set(given) - {t.name for t in compiled.spec.inputs})
    if unknown:
        names = ", ".join(t.name for t in compiled.spec.inputs)
        raise ModelError(f"--input names `{unknown[0]}`, but the inputs are {names}")
    verifier = Verifier(path, compiled, tolerance)
    failed = asked = False
    if compiled.spec.states:  # one run after the other, each from where the last one left
        seeds = max(seeds, STATEFUL_RUNS)
    for seed in range(random, random + seeds):
        specs, where = _inputs_of(compiled.spec, seed - random, seed)
        inputs = make_inputs(specs, compiled.program.graph, seed, given)
        result = verifier.verify(inputs)
        if result.layers or not result.passed or seed == random + seeds - 1:
            _print(result, f"seed {seed}{where}")
        failed |= not result.passed
        if (opinion or not result.passed) and not compiled.spec.states and not asked:
            asked = True
            if not result.passed:
                _amplification(verifier.amplification(inputs), result)
            named = dict(zip((t.name for t in specs), inputs, strict=True))
            _opinions(path, named, list(compiled.explicit(*inputs)), tolerance)
    if failed:
        raise typer.Exit(1)
    console.print(
        f"[green]{compiled.name}: verified[/green] on {seeds} inputs, tolerance {tolerance:g}"
        + (f", on {escape(compiled.device.describe())}" if isinstance(compiled, LinuxModel) else "")
    )


def _inputs_of(spec: Spec, turn: int, seed: int) -> tuple[tuple[TensorSpec, ...], str]:
    """The inputs of a turn: with open sizes at the least, then at the largest, then anywhere between."""
    if not spec.sizes:
        return spec.inputs, ""
    rng = np.random.default_rng(seed)
    values = [
        s.low if turn == 0 else s.high if turn == 1 else s.step * int(rng.integers(s.low // s.step, s.high // s.step + 1))
        for s in spec.sizes
    ]  # fmt: skip
    shown = ", ".join(f"{s.name}={v}" for s, v in zip(spec.sizes, values, strict=True))
    return spec.inputs_at(values), f", {shown}"


def _artifact(directory: Path, rebuild: Path | None, target: str) -> None:
    problems = verify_artifact(directory)
    if not problems and rebuild is not None:
        with progress() as report:
            report(f"compile {rebuild.name} again", 0.0)
            problems = check_rebuilt(directory, rebuild, None if target == "host" else target)
    for problem in problems:
        console.print(f"[red]problem:[/red] {escape(problem)}", soft_wrap=True)
    if problems:
        raise typer.Exit(1)
    files = manifests.read(directory).files
    code = [n for n in sorted(files) if n.endswith((".o", ".a", ".so"))]
    console.print(
        f"[green]{escape(str(directory))}: sound[/green]: the hashes of {len(files)} files, and symbols, "
        f"sections and segments of {', '.join(code)}"
        + (f"; the same bytes as {escape(str(rebuild))} compiled again" if rebuild else ""),
        soft_wrap=True,
    )


def _amplification(moves: float, result: Report) -> None:
    """Whether the reference agrees with itself when inputs move by roundings: it excuses nothing, it explains."""
    worst = max((o.error for o in result.outputs), default=0.0)
    said = (
        f"{result.reference} by itself moves by {moves:.1e} of the largest magnitude when every input moves by at "
        f"most {STEP:.0e} of itself"
    )
    if moves >= worst / 10 > 0:
        said += ": the model amplifies roundings, no two implementations agree on these inputs"
    console.print(said, soft_wrap=True)


def _opinions(
    path: Path, inputs: Mapping[str, Array], ours: Sequence[Array], tolerance: float
) -> None:
    """Who is alone about each output."""
    found = opinions(path, inputs, ours)
    for v in found.verdicts(tolerance):
        if v.apart <= tolerance:
            said = f"all agree within {v.apart:.1e}"
        elif v.alone:
            said = f"[red]{v.alone} is alone[/red]: {v.apart:.1e} off, others within {v.others_apart:.1e}"
        else:
            said = f"[red]they are {v.apart:.1e} apart[/red], and nobody is alone"
        console.print(f"{escape(v.output)}: {said}", soft_wrap=True)
    console.print(f"asked: {', '.join(found.outputs)}", soft_wrap=True)
    for who, reason in found.silent.items():
        console.print(f"no opinion of {who}: {escape(reason)}", soft_wrap=True)


def _print(result: Report, what: str) -> None:
    table = Table(title=f"{escape(what)}, against {result.reference}", title_justify="left")
    for column in ("output", "largest magnitude", "error / magnitude", "float64 says", "ok"):
        table.add_column(column)
    for o in result.outputs:
        arbiter = f"ours {o.ours_vs_exact:.1e}, theirs {o.theirs_vs_exact:.1e}"
        table.add_row(
            o.name,
            f"{o.magnitude:.4g}",
            f"{o.error:.1e}",
            arbiter,
            "yes" if o.ok else "[red]no[/red]",
        )
    console.print(table)
    if result.layers:
        _print_layers(result)
    if result.restless[1]:
        moves, name = result.restless
        console.print(
            f"roundings explain a difference at `{escape(name)}`: in float64, it moves by {moves:.1e} when its "
            "operands move by roundings",
            soft_wrap=True,
        )
    if result.first_departure:
        console.print(
            f"[red]first layer that departs:[/red] {escape(result.first_departure)}", soft_wrap=True
        )


def _print_layers(result: Report) -> None:
    console.print(
        f"{result.layers} layers recomputed one by one in float64: worst {result.worst_layer:.1e}; "
        f"{result.shared} of them compared with {result.reference}: worst {result.worst_shared:.1e}"
        if result.shared
        else f"{result.layers} layers recomputed one by one in float64: worst {result.worst_layer:.1e}",
        soft_wrap=True,
    )
