"""Ratios of a benchmark as a picture.

In: the best peer's time over ours by model. Out: a PNG and an SVG file. Invariant: the same figures give the
same SVG; matplotlib (the extra `plot`) is imported only when a picture is wanted, and needs no display.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tilewright.errors import ToolchainError


@dataclass(frozen=True, slots=True)
class Bar:
    """A model: the least time of its fastest peer over ours, which peer that is, and whether it computes
    something else than we do."""

    model: str
    ratio: float
    peer: str
    differs: bool = False


def geometric_mean(values: Sequence[float]) -> float:
    """The mean that ratios have; 1 for none."""
    return math.exp(sum(map(math.log, values)) / len(values)) if values else 1.0


def require_plot() -> Any:
    """matplotlib; `ToolchainError` if it is not installed."""
    try:
        matplotlib = importlib.import_module("matplotlib")
    except ImportError:
        raise ToolchainError(
            "--plot needs matplotlib, which is not installed: `pip install 'tilewright[plot]'`"
        ) from None
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "tilewright"
    return matplotlib


def plot(path: Path, bars: Sequence[Bar], title: str) -> list[Path]:
    """Write PATH.png and PATH.svg (a suffix .png or .svg of `path` is dropped), the slowest model first.

    Raises `ToolchainError` where there is no matplotlib or the files cannot be written.
    """
    matplotlib = require_plot()
    figure_of = importlib.import_module("matplotlib.figure").Figure
    rows = sorted(bars, key=lambda b: (-b.ratio, b.model))
    mean = geometric_mean([b.ratio for b in rows])
    figure = figure_of(figsize=(9, 1.4 + 0.3 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    colours = ["#2b7a4b" if b.ratio >= 1 else "#b5482f" for b in rows]
    axes.barh([b.model for b in rows], [b.ratio - 1 for b in rows], left=1, color=colours)
    for b in rows:
        words = f"{b.ratio:.2f} {b.peer}{'*' if b.differs else ''}"
        axes.annotate(
            words, (max(b.ratio, 1), b.model), (4, 0), textcoords="offset points", va="center", fontsize=8
        )  # fmt: skip
    axes.axvline(1, color="black", linewidth=1)
    axes.axvline(mean, color="gray", linewidth=1, linestyle="--")
    low, high = min([b.ratio for b in rows], default=1), max([b.ratio for b in rows], default=1)
    left = min(0.9, low - 0.1)
    axes.set_xlim(
        left, max(1.3, high + 0.3 * (high - left))
    )  # with room for words at the longest bar
    axes.set_xlabel(f"time of the fastest peer / ours (geometric mean {mean:.3f}, dashed)")
    axes.set_title(title, loc="left", fontsize=10)
    axes.tick_params(axis="y", labelsize=8)
    stem = path.with_suffix("") if path.suffix.lower() in (".png", ".svg") else path
    made = [stem.with_name(f"{stem.name}{suffix}") for suffix in (".png", ".svg")]
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        for file in made:
            metadata = {"Date": None} if file.suffix == ".svg" else {"Software": None}
            try:
                figure.savefig(file, dpi=144, metadata=metadata)
            except OSError as err:
                raise ToolchainError(f"cannot write {file}: {err.strerror or err}") from None
    return made
