"""What became of a candidate, and what counts as faster.

In: times of a candidate and of the default. Out: verdicts, as the log keeps them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tilewright.tune.records import Source, Verdict

#: Faster or slower by less than this is called the same.
MARGIN = 0.01


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a candidate; fields as in `records.Record`."""

    verdict: Verdict
    seconds: float | None = None
    default: float | None = None
    ratio: float | None = None
    error: float | None = None
    rounds: int = 0
    note: str = ""
    source: Source = "measured"


def verdict_of(ratio: float, error: float) -> Verdict:
    """Beyond the margin and twice the standard error, or the same."""
    if ratio + 2 * error < 1 - MARGIN:
        return "faster"
    return "slower" if ratio - 2 * error > 1 + MARGIN else "same"


def paired_ratio(mine: Sequence[float], base: Sequence[float]) -> tuple[float, float]:
    """mine / base from rounds in which both ran one after the other, and its standard error.

    The middle of the shortest interval that holds half of the rounds' ratios: a neighbour that comes and
    goes slows down one side of some rounds, either one, and those lie outside.
    """
    ratios = np.sort(np.log(np.asarray(mine) / np.asarray(base)))
    n = len(ratios)
    half = n // 2 + 1
    if n >= 6:
        widths = ratios[half - 1 :] - ratios[: n - half + 1]
        start = int(np.argmin(widths))
        ratios = ratios[start : start + half]
    ratio, spread = math.exp(float(np.median(ratios))), float(ratios[-1] - ratios[0]) / 1.35
    return ratio, ratio * spread / math.sqrt(n)


def one_line(err: Exception | str) -> str:
    """A message as the log accepts it."""
    text = " ".join(str(err).split())[:300]
    return "".join(c for c in text if c.isprintable())
