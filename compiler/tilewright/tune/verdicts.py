"""What became of a candidate, and what counts as faster.

In: times of a candidate and of the default. Out: verdicts, as the log keeps them.
"""

from __future__ import annotations

from dataclasses import dataclass

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


def one_line(err: Exception | str) -> str:
    """A message as the log accepts it."""
    text = " ".join(str(err).split())[:300]
    return "".join(c for c in text if c.isprintable())
