"""Predict how a choice compares with the default, from what the log holds.

In: trials of kernels of one operator and family. Out: predicted candidate time / default time.
The regressor is scikit-learn's (extra `tune`). Without it, or before there are enough trials, the space's
own analytic cost takes its place.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tilewright.schedule.space import Choice, Space, Value

#: Fewer trials than this say less than the analytic model.
MIN_TRIALS = 24
#: Ratios are capped here: how bad a bad schedule is does not matter.
WORST = 4.0


def available() -> bool:
    """Whether scikit-learn is installed."""
    return importlib.util.find_spec("sklearn") is not None


@dataclass(slots=True)
class CostModel:
    """Learns over all kernels of one operator and family; `add` trials, then `predict`."""

    rows: list[list[float]] = field(default_factory=list[list[float]])
    ratios: list[float] = field(default_factory=list[float])
    fitted: int = 0
    regressor: Any = None

    def add(
        self, extents: Mapping[str, int], choice: Choice, modelled: float, ratio: float
    ) -> None:
        """One trial: `modelled` is the analytic cost against the default's, `ratio` the measured one."""
        self.rows.append(features(extents, choice, modelled))
        self.ratios.append(math.log(min(max(ratio, 0.05), WORST)))

    def predict(
        self, space: Space, extents: Mapping[str, int], choices: Sequence[Choice]
    ) -> list[float]:
        """Expected ratio to the default for each choice."""
        modelled = [relative_cost(space, c) for c in choices]
        if not self._fit():
            return modelled
        rows = [features(extents, c, m) for c, m in zip(choices, modelled, strict=True)]
        width = len(self.rows[0])
        if any(len(r) != width for r in rows):
            return modelled
        with _one_thread():
            guess = self.regressor.predict(np.asarray(rows))
        # the analytic model keeps a vote: it knows regions without trials
        return [
            math.exp(0.85 * float(g) + 0.15 * math.log(max(m, 1e-3)))
            for g, m in zip(guess, modelled, strict=True)
        ]

    def _fit(self) -> bool:
        """Fit again whenever the trials have grown by a quarter; False if there is nothing to use."""
        n = len(self.rows)
        if n < MIN_TRIALS or not available():
            return False
        if self.regressor is not None and n < 1.25 * self.fitted:
            return True
        width = len(self.rows[-1])
        keep = [i for i, r in enumerate(self.rows) if len(r) == width]
        self.rows = [self.rows[i] for i in keep]
        self.ratios = [self.ratios[i] for i in keep]
        from sklearn.ensemble import HistGradientBoostingRegressor

        model = HistGradientBoostingRegressor(
            max_iter=80, max_leaf_nodes=15, min_samples_leaf=4, learning_rate=0.15, random_state=0
        )
        with warnings.catch_warnings(), _one_thread():
            warnings.simplefilter("ignore")
            model.fit(np.asarray(self.rows), np.asarray(self.ratios))
        self.regressor, self.fitted = model, n
        return True


def _one_thread() -> AbstractContextManager[Any]:
    """The regressor must not take the cores on which candidates are being timed."""
    limits: AbstractContextManager[Any] = importlib.import_module(
        "threadpoolctl"
    ).threadpool_limits(1)
    return limits


def relative_cost(space: Space, choice: Choice) -> float:
    """Analytic cost of a choice against the default's, capped."""
    base = space.cost(space.default)
    cost = space.cost(choice)
    return min(cost / base, WORST) if base > 0 and math.isfinite(base) else 1.0


def features(extents: Mapping[str, int], choice: Choice, modelled: float) -> list[float]:
    """Numbers for the regressor: sizes in doublings, values of parameters, the analytic model's view."""
    sizes = sorted(extents.values())[-6:]
    out = [math.log2(n) for n in sizes] + [0.0] * (6 - len(sizes))
    for name in sorted(choice):
        out.append(_number(choice[name]))
        out.append(_remainder(extents, name, choice[name]))
    return [*out, math.log(max(modelled, 1e-3))]


def _number(value: Value) -> float:
    if isinstance(value, int):
        return math.copysign(math.log2(abs(value) + 1), value)
    return float(sum(map(ord, value)) % 97)


def _remainder(extents: Mapping[str, int], name: str, value: Value) -> float:
    """Share of a tile that hangs over the edge, for parameters that tile the map's loops."""
    loops = {"tile0": ("oh", "m"), "tile1": ("ow",)}.get(name, ())
    n = next((extents[v] for v in loops if v in extents), 0)
    if not n or not isinstance(value, int) or value < 1:
        return 0.0
    return math.ceil(n / value) * value / n - 1.0
