"""Long sums in parts: what is split, that nothing is lost, how much nearer results are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_helpers import integers, interpret, matmul, native

from tilewright.core.dtypes import F32, I32, U32
from tilewright.core.index import Ix, ix
from tilewright.errors import ScheduleError
from tilewright.loop.ir import Alloc, Binary, Const, Expr, For, Kernel, Load, Param, Store, dense
from tilewright.loop.passes import split_sums as splitting
from tilewright.loop.passes.specialize_tails import specialize_tails
from tilewright.loop.passes.split_sums import split_sums
from tilewright.loop.rewrite import loops, walk
from tilewright.loop.verify import verify
from tilewright.schedule.target import load_target
from tilewright.schedule.templates import product
from tilewright.schedule.trace import Step, apply, step
from tilewright.tune.admit import finish


def _extents(kernel: Kernel) -> dict[str, Ix]:
    return {v: f.extent for v, f in loops(kernel.body).items()}


def test_a_long_sum_is_cut_and_a_short_one_is_not() -> None:
    assert split_sums(matmul(3, 4, splitting.MOST)) == matmul(3, 4, splitting.MOST)
    whole = matmul(3, 4, 1024)
    made = specialize_tails(split_sums(whole))
    assert _extents(made)["kp"] == Ix(4) and _extents(made)["kq"] == Ix(256)
    verify(made)
    uneven = _extents(specialize_tails(split_sums(matmul(3, 4, 1021))))  # a prime
    assert uneven["kp"] == Ix(3) and uneven["kq"] == Ix(256)
    assert split_sums(matmul(3, 4, 1024, I32)) == matmul(3, 4, 1024, I32)  # nothing rounds


def test_inner_loops_make_a_part_together() -> None:
    """A window of 3 x 3 over 128 channels: three parts, one per row of the window."""
    kernel = matmul(2, 16, 9 * 128, U32)
    steps = [step("split", "k", 3 * 128, "kh", "kx"), step("split", "kx", 128, "kw", "ci"),
             step("stage", ["n"]), step("reorder", ["kh", "kw", "ci", "n"]), step("vectorize", "n")]  # fmt: skip
    made = split_sums(apply(kernel, steps))
    (outer,) = [f for f in walk(made.body) if isinstance(f, For) and f.var == "kh"]
    assert [type(s).__name__ for s in outer.body] == ["Alloc", "For", "For", "For"]
    assert {s.buffer.name: s.buffer.shape for s in walk(made.body) if isinstance(s, Alloc)} == {
        "acc": (16,), "acc_part": (16,)
    }  # fmt: skip
    arrays = integers(kernel)
    assert np.array_equal(interpret(made, arrays)["C"], arrays["A"] @ arrays["B"])


def _running(update: Expr, first: Expr) -> Kernel:
    """y[i] = t after t = `update` for 600 times."""
    body = (
        Alloc(dense("t", F32, (), "register")),
        Store("t", (), first),
        For("i", Ix(600), (Store("t", (), update), Store("y", (ix("i"),), Load("t", (), F32)))),
    )
    params = (Param(dense("x", F32, (600,)), "in"), Param(dense("y", F32, (600,)), "out"))
    return Kernel("k", params, body)


def test_what_is_no_plain_sum_stays() -> None:
    """Running sums, of which every step is seen; maxima; an update that uses the sum twice."""
    t, x = Load("t", (), F32), Load("x", (ix("i"),), F32)
    zero = Const(0.0, F32)
    running = _running(Binary("add", t, x), zero)
    assert split_sums(running) == running
    for update in (Binary("max", t, x), Binary("add", t, Binary("mul", t, x)), Binary("sub", t, x)):
        (alloc, first, loop) = _running(update, zero).body
        assert isinstance(loop, For)
        alone = Kernel("k", running.params, (alloc, first, For("i", Ix(600), loop.body[:1])))
        assert split_sums(alone) == alone


@pytest.mark.parametrize("target", ["x86-64-v3", "x86-64-v4"])
def test_results_are_nearer(target: str) -> None:
    """4096 products: the error of parts is less than half of a chain's, and of what one sum of f32 would promise."""
    machine = load_target(target)
    kernel = matmul(8, 64, 4096)
    rng = np.random.default_rng(3)
    arrays = {
        "A": rng.standard_normal((8, 4096)).astype(np.float32),
        "B": rng.standard_normal((4096, 64)).astype(np.float32),
        "C": np.zeros((8, 64), np.float32),
    }
    exact = arrays["A"].astype(np.float64) @ arrays["B"].astype(np.float64)
    trace = product(kernel, machine)
    chain = native(specialize_tails(apply(kernel, trace)), arrays, machine)["C"]
    parts = native(finish(kernel, trace), arrays, machine)["C"]
    assert 2 * np.abs(parts - exact).max() < np.abs(chain - exact).max()


_STEPS = st.sampled_from([
    step("split", "k", 3, "ko", "ki"), step("split", "m", 4, "mo", "mi"), step("split", "n", 8, "no", "nl"),
    step("stage", ["n"]), step("stage", ["nl"]), step("stage", ["mi", "n"]), step("reorder", ["k", "n"]),
    step("reorder", ["ko", "ki", "nl"]), step("reorder", ["k", "mi", "n"]), step("unroll", "ki"),
    step("unroll", "mi"), step("vectorize", "n"), step("vectorize", "nl"), step("lanes", "acc", "k", 4),
    step("hold", "ki"), step("hold", "k"), step("rfactor", "acc", "ko", "ki"),
])  # fmt: skip


@settings(deadline=None, max_examples=80)
@given(
    st.lists(_STEPS, max_size=8), st.integers(1, 9), st.integers(1, 20), st.integers(1, 40),
    st.integers(1, 6), st.sampled_from([F32, U32]),
)  # fmt: skip
def test_any_schedule_keeps_its_result(
    steps: list[Step], m: int, n: int, k: int, part: int, dtype: object
) -> None:
    """With parts of a few terms, so that every sum is long."""
    kernel = matmul(m, n, k, dtype)  # type: ignore[arg-type]
    arrays = integers(kernel)
    want = interpret(kernel, arrays)["C"]
    made = kernel
    for one in steps:
        try:
            made = apply(made, [one])
        except ScheduleError:
            continue
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splitting, "PART", part)
        patch.setattr(splitting, "MOST", part + part // 2)
        cut = specialize_tails(split_sums(made))
    verify(cut)
    assert np.array_equal(interpret(cut, arrays)["C"], want), steps
