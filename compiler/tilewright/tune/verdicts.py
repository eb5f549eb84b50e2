"""What became of a candidate, and what counts as faster.

In: times of a candidate and of the default. Out: verdicts, as the log keeps them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tilewright.tune.records import Source, Verdict

#: Faster or slower by less than this is called the same.
MARGIN = 0.01
#: A turn that takes this many times the least one was disturbed by something else.
DISTURBED = 1.15


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


def calm_ratio(mine: Sequence[float], base: Sequence[float]) -> tuple[float, float]:
    """Median of mine / base over the rounds in which nothing else took the machine away, and its
    standard error; the ratio of the least times where there were hardly any."""
    a, b = np.asarray(mine), np.asarray(base)
    calm = _calm(a, b)
    if calm.sum() < 3:
        return float(a.min() / b.min()), 0.05
    ratios = a[calm] / b[calm]
    ratio = float(np.median(ratios))
    spread = 1.4826 * float(np.median(np.abs(ratios - ratio)))
    return ratio, 1.2533 * spread / math.sqrt(len(ratios))


def calm_rounds(mine: Sequence[float], base: Sequence[float]) -> int:
    """In how many rounds nothing disturbed either side."""
    return int(_calm(np.asarray(mine), np.asarray(base)).sum()) if mine else 0


def _calm(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    calm: npt.NDArray[np.bool_] = (a <= DISTURBED * a.min()) & (b <= DISTURBED * b.min())
    return calm


def one_line(err: Exception | str) -> str:
    """A message as the log accepts it."""
    text = " ".join(str(err).split())[:300]
    return "".join(c for c in text if c.isprintable())
