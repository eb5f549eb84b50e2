"""Schedule primitives: what they do, what they refuse, and that no trace changes a result."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_helpers import integers, interpret, matmul

from tilewright.core.dtypes import F32, U32
from tilewright.core.index import Ix, ix
from tilewright.errors import ScheduleError
from tilewright.loop.ir import Alloc, Binary, Expr, For, Kernel, Load, Param, Store, dense
from tilewright.loop.parse import parse
from tilewright.loop.passes.specialize_tails import specialize_tails
from tilewright.loop.rewrite import loops, walk
from tilewright.loop.verify import prove_bounds, verify
from tilewright.pipeline import resolve_target
from tilewright.schedule.target import load_target
from tilewright.schedule.templates import product
from tilewright.schedule.trace import Step, apply, primitives, step, trace_from_json, trace_to_json
from tilewright.testing.native import Native, execute


def test_every_primitive_is_a_file_with_a_function_of_its_name() -> None:
    assert {
        "split",
        "reorder",
        "fuse",
        "unroll",
        "vectorize",
        "parallelize",
        "stage",
        "pack",
        "lanes",
        "rfactor",
        "hold",
    } <= set(primitives())


def test_a_vector_has_as_many_lanes_as_registers_hold() -> None:
    """What is longer LLVM does not compile in an hour."""
    kernel = negated(513)
    with pytest.raises(ScheduleError, match="at most 512 lanes"):
        apply(kernel, (step("vectorize", "i"),))
    apply(kernel, (step("split", "i", 512, "o", "j"), step("vectorize", "j")))


def negated(n: int) -> Kernel:
    return parse(
        f"kernel k(x: f32[{n}], out y: f32[{n}])\n  for i in {n}:\n    y[i] = neg(x[i]:f32)\n"
    )


@pytest.mark.parametrize(
    ("steps", "why"),
    [
        ([step("split", "q", 4, "qo", "qi")], "no loop `q`"),
        ([step("split", "m", 0, "mo", "mi")], "at least 1"),
        ([step("split", "m", 2, "n", "mi")], "already used"),
        ([step("fuse", "m", "k", "mk")], "not the only statement"),
        ([step("vectorize", "m")], "innermost"),
        ([step("vectorize", "k")], "same element"),
        ([step("parallelize", "k")], "not perfectly nested"),
        ([step("stage", ["n", "m"])], "not perfectly nested"),
        ([step("pack", "A", [[0, 0, "whole"], [1, 0, "whole"]])], "not a constant"),
        ([step("lanes", "acc", "k", 3)], "power of two"),
        ([step("unroll", "k")], "iterations"),
        ([step("unroll", "m"), step("split", "m", 2, "mo", "mi")], "unroll loop already"),
    ],
)
def test_illegal_steps_are_refused_with_the_reason(steps: list[Step], why: str) -> None:
    with pytest.raises(ScheduleError, match=why):
        apply(matmul(6, 8, 600), steps)


def test_reordering_a_carried_dependence_is_refused() -> None:
    """y[i] = y[i - 1] style recurrences may not be turned inside out."""
    x = Load("y", (ix("i"), ix("j") + 1), F32)
    body = (For("i", Ix(3), (For("j", Ix(4), (Store("y", (ix("i"), ix("j")), x),)),)),)
    kernel = Kernel("k", (Param(dense("y", F32, (3, 5)), "out"),), body)
    with pytest.raises(ScheduleError, match="read at"):
        apply(kernel, [step("reorder", ["j", "i"])])


def test_rfactor_keeps_chains_apart() -> None:
    """Partial sums per column stay in vectors: stage, reorder, unroll and vectorize go over them."""
    kernel = matmul(3, 16, 24, U32)
    trace = [step("split", "k", 4, "ko", "ki"), step("rfactor", "acc", "ko", "ki"), step("stage", ["n"]),
             step("reorder", ["ko", "ki", "n"]), step("unroll", "ki"), step("vectorize", "n")]  # fmt: skip
    made = apply(kernel, trace)
    prove_bounds(made)
    arrays = integers(kernel)
    assert np.array_equal(interpret(made, arrays)["C"], arrays["A"] @ arrays["B"])
    for steps, why in (
        ([step("rfactor", "acc", "k", "n")], "perfectly nested"), ([step("rfactor", "acc", "n", "n")], "does more"),
        ([step("split", "k", 5, "ko", "ki"), step("rfactor", "acc", "ko", "ki")], "no constant number"),
        ([trace[0], trace[1], trace[1]], "already"), ([step("rfactor", "A", "k", "k")], "does more"),
    ):  # fmt: skip
        with pytest.raises(ScheduleError, match=why):
            apply(kernel, steps)


def test_hold_sums_in_parts() -> None:
    """All tiles add up a part of the sum before any goes on; the sums lie in memory in between, in registers inside."""
    kernel = matmul(10, 16, 24, U32)
    trace = [step("split", "m", 4, "mo", "mi"), step("stage", ["mo", "mi", "n"]), step("split", "k", 8, "ko", "ki"),
             step("reorder", ["ko", "mo", "ki", "mi", "n"]), step("hold", "ki"), step("unroll", "mi"),
             step("vectorize", "n")]  # fmt: skip
    made = apply(kernel, trace)
    spaces = {s.buffer.name: s.buffer.space for s in walk(made.body) if isinstance(s, Alloc)}
    assert spaces == {"acc": "local", "acc_ki": "register"}
    finished = specialize_tails(made)
    verify(finished)
    arrays = integers(kernel)
    assert np.array_equal(interpret(finished, arrays)["C"], arrays["A"] @ arrays["B"])
    for steps, why in (
        ([step("hold", "k")], "more than a nest"), ([step("hold", "n")], "more than a nest"),
        ([*trace[:4], step("hold", "ko")], "same element"),
        ([*trace[:4], step("vectorize", "n"), step("hold", "mi")], "several loops"),
    ):  # fmt: skip
        with pytest.raises(ScheduleError, match=why):
            apply(kernel, steps)


def _stores(*index: Ix, add: bool = False) -> Kernel:
    """Loops over `v` and `w` that store to (or add to) `y` at some places."""
    one: Expr = Load("x", (ix("v"), ix("w")), F32)
    body = tuple(
        Store("y", (i,), Binary("add", Load("y", (i,), F32), one) if add else one) for i in index
    )
    params = (Param(dense("x", F32, (6, 4)), "in"), Param(dense("y", F32, (32,)), "out"))
    return Kernel("k", params, (For("v", Ix(6), (For("w", Ix(4), body),)),))


def test_iterations_that_meet_at_an_element_are_dependent() -> None:
    """A sliding sum, and two stores of which one follows the other at a distance."""
    v, w = ix("v"), ix("w")
    sliding, following = _stores(v + w, add=True), _stores(v * 5 + w, v * 5 + w + 1)
    inside_out = step("reorder", ["w", "v"])
    for kernel, refused in (
        (sliding, step("parallelize", "v")), (sliding, inside_out), (following, step("vectorize", "w")),
        (_stores(v * 4 + w, v * 4 + w + 1), step("parallelize", "v")),
    ):  # fmt: skip
        with pytest.raises(ScheduleError, match=r"same element|order of updates"):
            apply(kernel, [refused])
    for kernel, legal in (
        (sliding, step("vectorize", "w")), (following, step("parallelize", "v")), (following, inside_out),
        (_stores(v * 4 + w, add=True), step("parallelize", "v")), (_stores(v * 4 + w, add=True), inside_out),
    ):  # fmt: skip
        apply(kernel, [legal])


def test_reordering_two_sums_is_refused() -> None:
    """Float sums keep their order unless a schedule asks for lanes."""
    kernel = matmul(4, 4, 12)
    split = apply(kernel, [step("split", "k", 3, "ko", "ki")])
    with pytest.raises(ScheduleError, match="order of updates"):
        apply(split, [step("reorder", ["ki", "ko"])])


@settings(deadline=None, max_examples=60)
@given(st.data(), st.integers(1, 20), st.integers(1, 40), st.integers(1, 9))
def test_random_legal_traces_keep_the_result(data: st.DataObject, m: int, n: int, k: int) -> None:
    """Any sequence of primitives that is not refused computes the same, bit for bit, in u32 (the
    ring run) and in f32 on small integers (sums are exact)."""
    for dtype in (U32, F32):
        kernel = matmul(m, n, k, dtype)
        arrays = integers(kernel)
        want = interpret(kernel, arrays)["C"]
        scheduled, trace = kernel, []
        for _ in range(data.draw(st.integers(0, 6))):
            names = list(loops(scheduled.body))
            if not names:
                break
            var = data.draw(st.sampled_from(names))
            fresh = f"v{len(trace)}"
            kinds = [
                "split",
                "reorder",
                "unroll",
                "vectorize",
                "stage",
                "fuse",
                "lanes",
                "rfactor",
                "hold",
                "pack",
            ]
            choice = data.draw(st.sampled_from(kinds))
            s = {
                "split": step(
                    "split", var, data.draw(st.integers(1, 17)), f"{fresh}o", f"{fresh}i"
                ),
                "reorder": step("reorder", data.draw(st.permutations(names))),
                "unroll": step("unroll", var),
                "vectorize": step("vectorize", var),
                "stage": step("stage", [var]),
                "fuse": step("fuse", var, data.draw(st.sampled_from(names)), f"{fresh}f"),
                "lanes": step("lanes", "acc", var, data.draw(st.sampled_from([2, 8]))),
                "rfactor": step("rfactor", "acc", data.draw(st.sampled_from(names)), var),
                "hold": step("hold", var),
                "pack": step("pack", "B", [[1, 8, "outer"], [0, 0, "whole"], [1, 8, "inner"]]),
            }[choice]
            try:
                scheduled = apply(scheduled, [s])
                trace.append(s)
            except ScheduleError:
                continue
        finished = specialize_tails(scheduled)
        prove_bounds(finished)  # raises if malformed; the interpreter checks every access it makes
        assert np.array_equal(interpret(finished, arrays)["C"], want), trace
        again = apply(kernel, trace_from_json(trace_to_json(trace)))
        assert again == scheduled


@pytest.mark.parametrize("target", ["x86-64-v3", "x86-64-v4"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 130, 7), (13, 17, 5), (6, 64, 16), (31, 33, 3)])
def test_default_product_traces(shape: tuple[int, int, int], target: str) -> None:
    for dtype in (F32, U32):
        kernel = matmul(*shape, dtype)
        trace = product(kernel, load_target(target))
        finished = specialize_tails(apply(kernel, trace))
        verify(finished)
        arrays = integers(kernel)
        assert np.array_equal(interpret(finished, arrays)["C"], arrays["A"] @ arrays["B"])
        assert apply(kernel, trace_from_json(trace_to_json(trace))) == apply(kernel, trace)


def test_malformed_traces_are_refused() -> None:
    for data in ("x", [["nope"]], [[]], [1]):
        with pytest.raises(ScheduleError):
            trace_from_json(data)


def test_loops_around_a_parallel_one_run_on_every_thread() -> None:
    """Each thread goes through all of `n` with its share of `m`: halves in the other order change nothing."""
    kernel = apply(matmul(6, 40, 8), [step("reorder", ["n", "m"]), step("split", "n", 16, "no", "ni"), step("reorder", ["no", "m", "ni"])])  # fmt: skip
    shared = specialize_tails(apply(kernel, [step("parallelize", "m")]))
    assert [s.var for s in shared.body if isinstance(s, For)] == [
        "no",
        "m",
    ]  # the last panel is apart
    rng = np.random.default_rng(0)
    arrays = {p.buffer.name: rng.standard_normal(p.buffer.shape).astype("f4") for p in kernel.params if p.role != "out"}  # fmt: skip
    target = resolve_target("host")
    once, halves = (
        execute(Native(k, target, arrays, backwards=b))
        for k, b in ((kernel, False), (shared, True))
    )
    for name, want in once.items():
        np.testing.assert_allclose(halves[name], want, rtol=1e-6)
