"""Every registered operator under drawn schedules, without a test of its own; the oracles find planted bugs."""

from __future__ import annotations

import shutil

import pytest

from tilewright import testing
from tilewright.registry import operators
from tilewright.testing import subjects
from tilewright.testing.case import Case, from_json, to_json
from tilewright.testing.fuzz import fuzz
from tilewright.testing.mutants import MUTANTS
from tilewright.testing.mutation_table import search
from tilewright.testing.worker import Worker
from tilewright.tune.admit import admit


def test_every_operator_has_a_sample_that_becomes_a_kernel() -> None:
    silent = [n for n, op in operators().items() if not subjects.testable(n) and op.trait != "view"]
    assert silent == ["concat"]  # whose parts are written in place


@pytest.mark.parametrize(
    ("target", "examples"), [("x86-64-v4", 60), ("x86-64-v3", 60), ("cuda-sm80", 25)]
)
def test_no_schedule_of_any_operator_is_wrong(target: str, examples: int) -> None:
    found = fuzz(sorted(operators()), target, float("inf"), most=examples, enough=1)
    assert not found.failures, to_json(found.failures[0])
    assert len(found.coverage.examples) > examples // 4


@pytest.mark.skipif(shutil.which("qemu-aarch64") is None, reason="qemu-user is not installed")
def test_no_schedule_of_common_operators_is_wrong_on_arm() -> None:
    found = fuzz(
        ["matmul", "conv2d", "softmax", "add"], "cortex-a76", float("inf"), most=6, enough=1
    )
    assert not found.failures, to_json(found.failures[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(operators()))
def test_no_schedule_of_one_operator_is_wrong(name: str) -> None:
    testing.check(name, examples=40)


@pytest.mark.parametrize("name", ["split-drops-tail", "load-unmasked", "load-aligned"])
def test_planted_bugs_are_found_and_made_small(name: str) -> None:
    with Worker(10.0) as worker:
        row = search(next(m for m in MUTANTS if m.name == name), worker)
    assert 0 < row.examples <= 500
    assert row.steps <= 3 and row.extent <= 32


@testing.prop("matmul", "add", examples=15)
def test_a_case_is_the_same_after_writing_and_reading(case: Case) -> None:
    again = from_json(to_json(case))
    assert again.kernel == case.kernel and again.trace == case.trace
    assert admit(again.kernel, again.trace) == admit(case.kernel, case.trace)
