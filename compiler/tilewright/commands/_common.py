"""What several commands share: consoles, option types, progress, finding models."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.console import Console

from tilewright.bench.zoo import fetch, named
from tilewright.errors import ModelError

if TYPE_CHECKING:  # commands that find their result in the cache import no compiler
    from tilewright.graph.ir import Array
    from tilewright.pipeline import Progress as ProgressFn

Shapes = dict[str, str | tuple[int | str, ...]]

#: Columns where the output is not a terminal: wide enough that tables in logs do not fold.
_LOG_WIDTH = 140

console = Console(highlight=False, width=None if sys.stdout.isatty() else _LOG_WIDTH)
errors_console = Console(
    stderr=True, highlight=False, width=None if sys.stderr.isatty() else _LOG_WIDTH
)

ModelName = Annotated[
    str, typer.Argument(help="ONNX or TFLite model file, or a name of `tilewright models`")
]
TargetName = Annotated[
    str, typer.Option("--target", "-t", help="target name, see `tilewright targets`")
]
ShapeList = Annotated[
    list[str] | None,
    typer.Option(
        "--shape",
        help="input shape as name=1,3,224,224; name=77 fixes a symbolic dim, name=1..512 leaves it open; "
        "repeatable",
    ),
]
StateList = Annotated[
    list[str] | None,
    typer.Option(
        "--state",
        help="input=output: the output of a run is this input of the next, zeros at first; repeatable",
    ),
]
Winograd = Annotated[
    bool,
    typer.Option(
        "--winograd/--no-winograd",
        help="let convolutions be computed with fewer products where that pays and stays accurate",
    ),
]
DeviceName = Annotated[
    str | None,
    typer.Option("--device", help="ssh://user@host:port, local or emulator (default: what fits)"),
]
Threads = Annotated[int, typer.Option("--threads", min=1, max=256, help="threads to run on")]


def parse_shapes(items: Sequence[str] | None) -> Shapes:
    """`name=1,3,224,224` -> {name: (1, 3, 224, 224)}; wrong syntax is a usage error.

    A dim may be the name of an open size or a range, `tokens=1..512` is what a name stands for.
    """
    out: Shapes = {}
    for item in items or ():
        name, _, dims = item.rpartition("=")
        parts = tuple(d.strip() for d in dims.split(",") if d.strip())
        if not name or not parts or not all(_DIM.match(d) for d in parts):
            raise typer.BadParameter(
                f"--shape {item}: write name=1,3,224,224, or tokens=1..512 for a size that stays open"
            )
        if len(parts) == 1 and ".." in parts[0]:
            out[name] = parts[0]
        else:
            out[name] = tuple(int(d) if d.isdigit() else d for d in parts)
    return out


_DIM = re.compile(r"([1-9]\d*|\d+\.\.\d+(:\d+)?|[A-Za-z_][\w.]*)\Z")


def parse_states(items: Sequence[str] | None) -> dict[str, str]:
    """`input=output` -> {input: output}; wrong syntax is a usage error."""
    out: dict[str, str] = {}
    for item in items or ():
        source, _, result = item.rpartition("=")
        if not source or not result or source in out:
            raise typer.BadParameter(f"--state {item}: write input=output, each once")
        out[source] = result
    return out


def locate(name: str, shapes: Sequence[str] | None) -> tuple[Path, Shapes]:
    """The model file that `name` means and the input shapes to use.

    A path that exists is that file. Otherwise a model of the zoo is fetched if need be, and its shapes
    hold where no option says otherwise; what is neither is returned as a path, so that the importer
    says what is missing.
    """
    model, given = named(name), parse_shapes(shapes)
    if model is None:
        return Path(name), given
    return fetch(model), {**model.shapes, **given}


def known_values(name: str) -> dict[str, Any]:
    """Inputs that the zoo says a model must be given; nothing for other models."""
    model = named(name)
    return model.given if model else {}


def escape(text: str) -> str:
    """Text whose brackets are no markup."""
    return text.replace("[", r"\[")


def notice(message: str) -> None:
    """A remark for the user that is not an error."""
    errors_console.print(f"[yellow]note:[/yellow] {escape(message)}", soft_wrap=True)


@contextmanager
def progress() -> Iterator[ProgressFn]:
    """A progress bar on stderr that shows the stage at work."""
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

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


def parse_size(text: str | None, option: str) -> int | None:
    """`96K`, `2M` or bytes as a number; wrong syntax is a usage error."""
    if text is None:
        return None
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "")
    if not number.isdecimal() or unit not in _UNITS or int(number) == 0:
        raise typer.BadParameter(
            f"{option} {text}: write bytes, or 96K or 2M for multiples of 1024"
        )
    return int(number) * _UNITS[unit]


_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20}


def read_arrays(items: Sequence[str] | None) -> dict[str, Array]:
    """`name=file.npy` options as arrays by name; `name=16000` is a number, of the input's type and shape later."""
    out: dict[str, Array] = {}
    for item in items or ():
        name, _, path = item.rpartition("=")
        if not name:
            raise typer.BadParameter(f"--input {item}: write name=file.npy or name=number")
        try:
            out[name] = np.asarray(int(path) if path.lstrip("-").isdigit() else float(path))
            continue
        except ValueError:
            pass
        try:
            value: Any = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as err:
            raise ModelError(f"--input {item}: cannot read {path} ({err})") from None
        out[name] = value
    return out
