"""What several commands share: consoles, option types, progress, input making."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from tilewright.errors import ModelError
from tilewright.graph.ir import Array, Graph
from tilewright.pipeline import Progress as ProgressFn
from tilewright.runtime.model import TensorSpec

console = Console(highlight=False)
errors_console = Console(stderr=True, highlight=False)

ModelPath = Annotated[Path, typer.Argument(help="ONNX model file")]
TargetName = Annotated[
    str, typer.Option("--target", "-t", help="target name, see `tilewright targets`")
]
ShapeList = Annotated[
    list[str] | None, typer.Option("--shape", help="input shape as name=1,3,224,224; repeatable")
]
Threads = Annotated[int, typer.Option("--threads", min=1, max=256, help="threads to run on")]


def parse_shapes(items: Sequence[str] | None) -> dict[str, tuple[int, ...]]:
    """`name=1,3,224,224` -> {name: (1, 3, 224, 224)}; wrong syntax is a usage error."""
    out: dict[str, tuple[int, ...]] = {}
    for item in items or ():
        name, _, dims = item.rpartition("=")
        try:
            out[name] = tuple(int(d) for d in dims.split(",") if d.strip())
            ok = bool(name) and all(d > 0 for d in out[name])
        except ValueError:
            ok = False
        if not ok:
            raise typer.BadParameter(f"--shape {item}: write name=1,3,224,224")
    return out


def escape(text: str) -> str:
    """Text whose brackets are no markup."""
    return text.replace("[", r"\[")


def notice(message: str) -> None:
    """A remark for the user that is not an error."""
    errors_console.print(f"[yellow]note:[/yellow] {escape(message)}", soft_wrap=True)


@contextmanager
def progress() -> Iterator[ProgressFn]:
    """A progress bar on stderr that shows the stage at work."""
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(),
        console=errors_console, transient=True,
    ) as bar:  # fmt: skip
        task = bar.add_task("start", total=1.0)

        def report(stage: str, fraction: float) -> None:
            bar.update(task, description=stage, completed=fraction)

        yield report


def size(n: int) -> str:
    """Bytes for people."""
    if n < 1000:
        return f"{n} B"
    value, unit = n / 1e3, "KB"
    for larger in ("MB", "GB"):
        if value >= 1000:
            value, unit = value / 1e3, larger
    return f"{value:.2f} {unit}"


def make_inputs(
    specs: Sequence[TensorSpec],
    graph: Graph | None,
    seed: int,
    given: Mapping[str, Array] | None = None,
) -> list[Array]:
    """Plausible inputs: scaled pixels in [0, 1) where there are four dims, other floats normally
    distributed, whole numbers within what the model does with them (rows of a table, classes of a
    one-hot code), masks of ones. `given` replaces some by name. Without a graph (an artifact) whole
    numbers are 0 or 1, which every table has."""
    rng = np.random.default_rng(seed)
    out: list[Array] = []
    for t in specs:
        dtype = np.dtype(t.dtype)
        if given and t.name in given:
            out.append(given[t.name])
        elif dtype.kind == "f":
            values = rng.random(t.shape) if len(t.shape) == 4 else rng.standard_normal(t.shape)
            out.append(np.asarray(values, dtype))
        elif "mask" in t.name.lower() or dtype.kind == "b":
            out.append(np.ones(t.shape, dtype))
        else:
            bound = _value_bound(graph, t.name) if graph is not None else 2
            out.append(rng.integers(0, bound, t.shape).astype(dtype))
    return out


#: Operators that pass whole numbers on unchanged, so that their consumers tell the range too.
_CARRIERS = (
    "cast",
    "copy",
    "reshape",
    "transpose",
    "expand",
    "slice",
    "concat",
    "gather",
    "pad",
    "tile",
)


def _value_bound(graph: Graph, name: str) -> int:
    """One more than the largest sensible value of an integer input; 128 where nothing tells.

    A value that picks rows of a table must be below its number of rows; one that is compared with a
    constant is a class number of that constant's range.
    """
    consumers = graph.consumers()
    bounds: list[int] = []
    todo, seen = [name], set[str]()
    while todo:
        v = todo.pop()
        seen.add(v)
        for node in consumers.get(v, []):
            if node.op == "gather" and len(node.inputs) > 1 and node.inputs[1] == v:
                axis = node.attrs["axis"]
                assert isinstance(axis, int)
                bounds.append(graph.types[node.inputs[0]].shape[axis])
            elif node.op == "eq":
                constants = [graph.constants[i] for i in node.inputs if i in graph.constants]
                bounds += [int(c.max()) + 1 for c in constants if c.size > 1]
            elif node.op in _CARRIERS:
                todo += [o for o in node.outputs if o not in seen]
    return max(1, min(bounds, default=128))


def read_arrays(items: Sequence[str] | None) -> dict[str, Array]:
    """`name=file.npy` options as arrays by name."""
    out: dict[str, Array] = {}
    for item in items or ():
        name, _, path = item.rpartition("=")
        if not name:
            raise typer.BadParameter(f"--input {item}: write name=file.npy")
        try:
            value: Any = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as err:
            raise ModelError(f"--input {item}: cannot read {path} ({err})") from None
        out[name] = value
    return out
