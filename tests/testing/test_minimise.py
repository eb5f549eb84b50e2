"""What makes a case small: steps and dims that do not matter go, remainders stay, the effort is counted."""

from __future__ import annotations

from tilewright.loop.ir import For
from tilewright.loop.parse import parse
from tilewright.loop.rewrite import walk
from tilewright.schedule.trace import apply, step
from tilewright.testing.case import Case, Data, Failure
from tilewright.testing.minimise import minimise
from tilewright.testing.smaller import WAYS, fewer_steps
from tilewright.testing.subjects import subject

#: Rows of 35 that lie 40 apart, and a sum over them.
ROWS = """kernel rows(x: f32[12, 35]{40, 1}, out y: f32[12, 35]{38, 1})
  for i in 12:
    for j in 35:
      y[i, j] = neg(x[i, j]:f32)
"""
STEPS = (
    step("split", "i", 5, "io", "ii"), step("split", "j", 16, "jo", "ji"), step("reorder", ["io", "ii"]),
    step("split", "ii", 2, "iio", "iii"), step("unroll", "iii"), step("split", "jo", 2, "joo", "joi"),
    step("vectorize", "ji"), step("unroll", "joi"),
)  # fmt: skip


def short_vectors(case: Case) -> Failure | None:
    """A vector of 4 lanes or more that leaves a remainder: what an aligned load of a row crashes on."""
    made = apply(case.kernel, case.trace)
    vectors = [s for s in walk(made.body) if isinstance(s, For) and s.kind == "vector"]
    rest = any(not f.extent.is_const for f in vectors)
    sizes = {a for s in case.trace if s.primitive == "split" for a in s.args if isinstance(a, int)}
    return Failure("test", "wrong") if rest and any(n >= 4 for n in sizes) else None


def test_steps_and_dims_that_do_not_matter_go() -> None:
    found = Case(parse(ROWS), STEPS, "x86-64-v4", {"x": Data("random", 1)})
    assert short_vectors(found)
    small = minimise(found, short_vectors, seconds=300.0)
    assert [s.primitive for s in small.trace] == ["split", "vectorize"]
    assert max(small.kernel.params[0].buffer.shape) == 5
    assert small.trace[0].args[1] == 4
    assert all(d.kind == "one_hot" for d in small.data.values())
    assert all(p.buffer.strides[0] <= 5 for p in small.kernel.params), "rows follow each other"
    again = minimise(found, short_vectors, seconds=300.0)
    assert (again.kernel, again.trace) == (small.kernel, small.trace)


def test_the_effort_is_counted() -> None:
    tried: list[Case] = []

    def wrong(case: Case) -> Failure | None:
        tried.append(case)
        return short_vectors(case)

    found = Case(parse(ROWS), STEPS, "x86-64-v4")
    few = minimise(found, wrong, seconds=300.0, most=5)
    assert len(tried) <= 5 + 2  # the case itself before and after
    assert few.failure is not None and few.size <= found.size


def test_a_step_goes_with_what_it_needs() -> None:
    kept = [c.trace for c in fewer_steps(Case(parse(ROWS), STEPS, "x86-64-v4"))]
    assert kept[0] == ()
    assert (STEPS[1], STEPS[6]) in kept[: 1 + len(STEPS)], "one step, and what made its loop"
    assert len(kept) == len(set(kept))


def test_loops_go_with_their_names_in_steps() -> None:
    """Nothing but the innermost loop matters; two others are there only because a step names them."""
    kernel = parse(ROWS)
    trace = (
        step("split", "j", 4, "jo", "ji"),
        step("reorder", ["jo", "i", "ji"]),
        step("vectorize", "ji"),
    )

    def wrong(case: Case) -> Failure | None:
        return short_vectors(case) if any(s.primitive == "reorder" for s in case.trace) else None

    small = minimise(Case(kernel, trace, "x86-64-v4"), wrong, seconds=300.0)
    assert [s.args for s in small.trace if s.primitive == "reorder"] == [(("jo", "ji"),)]


def test_no_failure_is_lost() -> None:
    """A case that does not fail stays as it is; every candidate is another case."""
    kernel = subject("conv2d", 0, {}, constants=True).kernel
    case = Case(kernel, (), "x86-64-v4")
    assert minimise(case, lambda c: None) is case
    assert all(c != case for way in WAYS for c in way(case))
