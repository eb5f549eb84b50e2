"""Search, cost model and allocation of effort, without measuring anything."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from tilewright.errors import ScheduleError
from tilewright.schedule.space import Choice, Space
from tilewright.schedule.trace import Trace, step
from tilewright.tune import model as module
from tilewright.tune.allocate import Progress, pick
from tilewright.tune.model import MIN_TRIALS, CostModel
from tilewright.tune.search import Search, key_of
from tilewright.tune.verdicts import paired_ratio, verdict_of


def toy() -> Space:
    """Time is least at a=6, b=5, whatever c is; odd sums are not legal."""

    def build(choice: Choice) -> Trace:
        if (int(choice["a"]) + int(choice["b"])) % 7 == 0:
            raise ScheduleError("not legal")
        return tuple(step("unroll", f"{k}{v}") for k, v in sorted(choice.items()))

    params = {"a": tuple(range(16)), "b": tuple(range(16)), "c": ("x", "y")}
    default = {"a": 1, "b": 1, "c": "x"}
    return Space("toy", params, default, build)


def true_ratio(choice: Choice) -> float:
    return 0.5 + ((int(choice["a"]) - 6) ** 2 + (int(choice["b"]) - 5) ** 2) / 41 * 0.5


def run_search(batches: int, learned: bool, seed: int) -> float:
    search, model = Search(toy(), random.Random(seed)), CostModel()

    def rank(choices: Sequence[Choice]) -> list[float]:
        return model.predict(search.space, {"n": 8}, choices) if learned else [1.0] * len(choices)

    best = 1.0
    for _ in range(batches):
        for choice, trace in search.propose(6, rank):
            ratio = true_ratio(choice)
            search.learn(choice, trace, ratio)
            model.add({"n": 8}, choice, 1.0, ratio)
            best = min(best, ratio)
    return best


def test_search_finds_the_best_region() -> None:
    assert run_search(10, True, 0) < 0.55


def test_nothing_is_proposed_twice() -> None:
    search = Search(toy(), random.Random(0))
    seen: list[object] = []
    for _ in range(200):
        found = search.propose(8, lambda cs: [1.0] * len(cs))
        seen += [key_of(c) for c, _ in found]
        if search.exhausted:
            break
    assert search.exhausted and len(seen) == len(set(seen))
    illegal = sum((a + b) % 7 == 0 for a in range(16) for b in range(16)) * 2
    assert len(seen) == toy().size - illegal - 1


def test_spilling_tiles_are_pruned() -> None:
    space = Space(
        "f", {"a": (1, 2, 3)}, {"a": 1}, lambda c: (step("unroll", f"a{c['a']}"),),
        lambda c: float("inf") if c["a"] == 3 else 1.0,
    )  # fmt: skip
    search = Search(space, random.Random(0))
    assert [c for c, _ in search.propose(8, lambda cs: [1.0] * len(cs))] == [{"a": 2}]


def test_model_learns_across_shapes() -> None:
    pytest.importorskip("sklearn", reason="needs the extra `tune`")
    model, space = CostModel(), toy()
    for n in (8, 16, 32):
        for a in range(16):
            choice = {"a": a, "b": 5, "c": "x"}
            model.add({"n": n}, choice, 1.0, true_ratio(choice))
    near, far = model.predict(
        space, {"n": 24}, [{"a": 6, "b": 5, "c": "x"}, {"a": 15, "b": 5, "c": "x"}]
    )
    assert near < 0.75 < far


def test_without_a_regressor_the_analytic_model_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "available", lambda: False)
    model = CostModel()
    for i in range(MIN_TRIALS + 1):
        model.add({"n": 8}, {"a": i}, 1.0, 1.0)
    space = Space("f", {"a": (1, 2)}, {"a": 1}, lambda c: (), lambda c: float(c["a"]))
    assert model.predict(space, {"n": 8}, [{"a": 1}, {"a": 2}]) == [1.0, 2.0]


def test_effort_goes_where_time_is_lost() -> None:
    heavy = Progress(calls=10, floor=1e-4, guess=2e-4)
    light = Progress(calls=1, floor=1e-6, guess=2e-6)
    assert pick([light, heavy], [False, False]) == 1
    assert pick([light, heavy], [False, True]) == 0
    assert pick([light, heavy], [True, True]) is None


def test_hope_fades_and_the_roof_is_known() -> None:
    p = Progress(calls=1, floor=1e-4)
    gains = []
    for _ in range(5):
        p.note(2e-4, 2e-4)
        gains.append(p.expected_gain())
    assert gains == sorted(gains, reverse=True) and gains[-1] < gains[0] / 3
    at_roof = Progress(calls=1, floor=1.99e-4)
    at_roof.note(2e-4, 2e-4)
    assert at_roof.expected_gain() < gains[0]
    improving = Progress(calls=1, floor=1e-5)
    for best in (2e-4, 1.6e-4, 1.2e-4):
        improving.note(2e-4, best)
    assert improving.expected_gain() > p.expected_gain()


def test_disturbed_rounds_do_not_count() -> None:
    """A neighbour that halves the speed of either side in 40 % of the rounds does not move the ratio."""
    rng = random.Random(0)
    base = [1e-3 * (1 + 0.01 * rng.random()) for _ in range(60)]
    mine = [0.9 * t for t in base]
    for i in range(60):
        if rng.random() < 0.4:
            (base if rng.random() < 0.8 else mine)[i] *= 1.7
    ratio, error = paired_ratio(mine, base)
    assert ratio == pytest.approx(0.9, rel=0.01) and error < 0.01
    assert verdict_of(ratio, error) == "faster"
    assert verdict_of(0.995, 0.001) == "same" and verdict_of(0.95, 0.05) == "same"
    assert paired_ratio([1.0, 4.0], [2.0, 8.0]) == pytest.approx((0.5, 0.0))
