"""Where a tuning run stands: what a display shows and what a run comes to.

In: the tuner, which changes it. Out: displays and reports.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tilewright.loop.ir import Kernel
from tilewright.schedule.space import Choice, Space
from tilewright.schedule.trace import Trace
from tilewright.tune.allocate import Progress
from tilewright.tune.records import Record
from tilewright.tune.search import Search
from tilewright.tune.whole import Comparison, WayTimes


@dataclass(slots=True)
class Task:
    """One kernel of the model and where its search stands."""

    kernel: Kernel
    digest: str
    operator: str
    space: Space
    default: Trace
    search: Search
    progress: Progress
    shape: dict[str, int]
    trials: int = 0
    failed: int = 0
    best: tuple[float, Choice, Trace] | None = None
    """Best trial that has not been confirmed: ratio, choice, trace."""
    winner: Record | None = None
    busy: bool = False

    @property
    def name(self) -> str:
        """For people: operator and the loops' extents."""
        return f"{self.kernel.name} " + "x".join(map(str, self.shape.values()))

    @property
    def gain(self) -> float:
        """Default time / best confirmed time."""
        if self.winner is None or self.winner.verdict != "faster" or not self.winner.ratio:
            return 1.0
        return 1 / self.winner.ratio


@dataclass(slots=True)
class State:
    """What a display may show at any moment."""

    stage: str
    tasks: list[Task]
    started: float
    deadline: float
    trials: int = 0
    failures: int = 0
    source: str = "measured"
    notes: list[str] = field(default_factory=list[str])

    def expected_gain(self) -> float:
        """Seconds per run that the next batch is expected to save."""
        return max((t.progress.expected_gain() for t in self.tasks), default=0.0)

    @property
    def seconds(self) -> float:
        """Time of all tuned kernels in one run, as far as known."""
        return sum(t.progress.seconds for t in self.tasks)


@dataclass(frozen=True, slots=True)
class Result:
    """What tuning came to. `comparison`: whole model, default against tuned; None if it cannot run here
    or tuning was interrupted."""

    state: State
    ways: tuple[WayTimes, ...]
    comparison: Comparison | None
    interrupted: bool
    folder: Path
