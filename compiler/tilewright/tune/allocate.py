"""Which kernel to work on next: the one whose next batch is expected to save most time in the model.

In: how often each kernel runs, how it did in past batches, how close it is to the machine's limits.
Out: expected seconds saved per run of the model by one more batch.
Invariant: every kernel's expectation falls with every batch that finds nothing, so none is tuned forever
while others wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

#: What a first batch is expected to gain before anything is known (share of the kernel's time).
PRIOR = 0.08
#: How fast that hope fades with batches that find nothing.
FADE = 0.6


@dataclass(slots=True)
class Progress:
    """One kernel: `calls` per run of the model, `floor` seconds it cannot go below, best after each batch."""

    calls: int
    floor: float
    default: float | None = None
    best: float | None = None
    history: list[float] = field(default_factory=list[float])
    guess: float = 1e-3
    """Seconds assumed before the first measurement."""

    def note(self, default: float, best: float) -> None:
        """The result of a batch."""
        self.default, self.best = default, best
        self.history.append(best / default)

    @property
    def seconds(self) -> float:
        """Time the kernel takes in one run of the model, as far as known."""
        return self.calls * (self.best if self.best is not None else self.guess)

    def expected_gain(self) -> float:
        """Seconds per run of the model that another batch is expected to save."""
        hope = PRIOR * FADE ** len(self.history)
        if len(self.history) >= 2:
            back = self.history[max(0, len(self.history) - 3)]
            recent = (back - self.history[-1]) / back / min(2, len(self.history) - 1)
            hope = max(hope, 0.5 * recent)
        if self.best is not None and self.best > 0:
            hope = min(hope, max(0.02 * hope, 1 - self.floor / self.best))
        return self.seconds * hope


def pick(tasks: Sequence[Progress], busy: Sequence[bool]) -> int | None:
    """The task with the largest expected gain among those that are not busy or exhausted."""
    free = [i for i, b in enumerate(busy) if not b]
    return max(free, key=lambda i: tasks[i].expected_gain(), default=None)
