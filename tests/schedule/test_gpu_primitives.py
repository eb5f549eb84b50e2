"""Primitives for GPUs: overlap, widen, tensorize_mma, and share with wide copies and padded rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_helpers import integers, interpret, matmul

from tilewright.core.dtypes import F16, F32, F64
from tilewright.errors import ScheduleError
from tilewright.loop import simt
from tilewright.loop.ir import Alloc, Cast, Fma, If, Kernel, Mma, Store
from tilewright.loop.parse import parse
from tilewright.loop.rewrite import loops, walk
from tilewright.loop.text import to_text
from tilewright.loop.verify import verify
from tilewright.schedule.trace import Step, apply, step


def _same(kernel: Kernel, steps: list[Step]) -> Kernel:
    """The scheduled kernel, which gives the same result, in bounds, as text too."""
    made = apply(kernel, steps)
    verify(made)
    assert parse(to_text(made)) == made
    arrays = integers(kernel)
    np.testing.assert_array_equal(interpret(made, arrays)["C"], interpret(kernel, arrays)["C"])
    return made


# ---------------------------------------------------------------- overlap


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40))
def test_overlap_covers_everything_once(n: int, factor: int) -> None:
    """A sum into memory would show an iteration that is stored twice."""
    kernel = parse(f"""\
kernel k(A: f32[{n}], out C: f32[{n}])
  for i in {n}:
    C[i] = (C[i]:f32 + A[i]:f32)
""")
    steps = [step("overlap", "i", factor, "io", "ii")]
    if factor > n:
        with pytest.raises(ScheduleError, match=f"no tile of {factor}"):
            apply(kernel, steps)
        return
    made = _same(kernel, steps)
    assert all(f.extent.is_const for f in loops(made.body).values())


def test_overlap_guards_stores_only_where_tiles_meet() -> None:
    made = _same(matmul(10, 6, 3), [step("overlap", "m", 4, "mo", "mi")])
    guarded = [s.then for s in walk(made.body) if isinstance(s, If)]
    assert [[type(t) for t in then] for then in guarded] == [[Store]]
    exact = _same(matmul(8, 6, 3), [step("overlap", "m", 4, "mo", "mi")])
    assert not any(isinstance(s, If) for s in walk(exact.body))


def test_overlap_refuses_what_depends_on_order() -> None:
    recurrence = parse("""\
kernel k(A: f32[9], out C: f32[9])
  for i in 8:
    C[i + 1] = (C[i]:f32 + A[i]:f32)
""")
    with pytest.raises(ScheduleError, match="i"):
        apply(recurrence, [step("overlap", "i", 3, "io", "ii")])
    with pytest.raises(ScheduleError, match="same element of `acc`"):
        apply(matmul(4, 4, 6), [step("overlap", "k", 4, "ko", "ki")])


# ---------------------------------------------------------------- widen


def test_widen_rounds_once() -> None:
    kernel = matmul(2, 3, 400, F16)
    rng = np.random.default_rng(0)
    arrays = {
        n: rng.standard_normal(s).astype(np.float16) for n, s in (("A", (2, 400)), ("B", (400, 3)))
    }
    arrays["C"] = np.zeros((2, 3), np.float16)
    made = apply(kernel, [step("widen", "acc", "f32")])
    verify(made)
    wanted = arrays["A"].astype(np.float64) @ arrays["B"].astype(np.float64)
    error = [
        np.abs(interpret(k, arrays)["C"].astype(np.float64) - wanted).max() for k in (kernel, made)
    ]
    assert error[1] <= np.abs(wanted).max() * 2**-11 < error[0]


def test_widen_keeps_products_wide() -> None:
    made = apply(matmul(2, 3, 4, F16), [step("widen", "acc", "f32")])
    (total,) = [
        s.value for s in walk(made.body) if isinstance(s, Store) and isinstance(s.value, Fma)
    ]
    assert total.dtype is F32 and isinstance(total.a, Cast) and total.a.a.dtype is F16


@pytest.mark.parametrize(
    ("buffer", "dtype", "why"),
    [
        ("A", "f64", "not scratch"),
        ("acc", "f16", "wider"),
        ("acc", "i64", "no float"),
        ("acc", "x", "no"),
    ],
)
def test_widen_refuses(buffer: str, dtype: str, why: str) -> None:
    with pytest.raises(ScheduleError, match=why):
        apply(matmul(2, 3, 4), [step("widen", buffer, dtype)])


# ---------------------------------------------------------------- tensorize_mma


def _warp(k: int = 16, piece: int = 16) -> list[Step]:
    """A tile of 16 x 8 with the sum in pieces."""
    steps = [step("widen", "acc", "f32"), step("stage", ["m", "n"])]
    inner = "k"
    if piece < k:
        steps.append(step("split", "k", piece, "ko", "ki"))
        inner = "ki"
    outer = ["ko"] if piece < k else []
    return [
        *steps,
        step("reorder", [*outer, "m", "n", inner]),
        step("tensorize_mma", "m", "n", inner, "lane", "held"),
    ]


@pytest.mark.parametrize(("k", "piece"), [(16, 16), (8, 8), (48, 16), (24, 8)])
def test_tensorize_mma(k: int, piece: int) -> None:
    made = apply(matmul(16, 8, k, F16), [*_warp(k, piece), step("bind", "lane", "thread")])
    verify(made)
    assert parse(to_text(made)) == made
    assert sum(isinstance(s, Mma) for s in walk(made.body)) == 1
    (held,) = [s.buffer for s in walk(made.body) if isinstance(s, Alloc)]
    assert held.shape == (32, 4) and held.dtype is F32
    arrays = integers(matmul(16, 8, k, F16))
    wanted = arrays["A"].astype(np.float64) @ arrays["B"].astype(np.float64)
    np.testing.assert_array_equal(interpret(made, arrays)["C"], wanted)
    threads = {n: a.copy() for n, a in arrays.items()}
    simt.run(made, threads)
    np.testing.assert_array_equal(threads["C"], wanted)


@pytest.mark.parametrize(
    ("kernel", "steps", "why"),
    [
        (matmul(16, 8, 12, F16), _warp(12, 12), "do not add 12 products"),
        (matmul(16, 16, 16, F16), _warp(), "16 and 8 are wanted"),
        (matmul(16, 8, 16, F16), _warp()[1:], "do not add 16 products of f16 and f16 in f16"),
        (matmul(16, 8, 16, F16), [_warp()[0], *_warp()[3:]], "not indexed by `m` and `n`"),
        (matmul(16, 8, 4, F64), _warp(4, 4)[1:], "do not add 4 products of f64"),
        (matmul(16, 8, 16, F16), [*_warp(), step("widen", "acc", "f64")], "used already"),
        (matmul(16, 8, 16, F16), [*_warp(), step("stage", ["lane"])], "before `tensorize_mma`"),
        (matmul(16, 8, 16, F16), [*_warp()[:-1], step("tensorize_mma", "m", "n", "k", "m", "held")], "used"),
    ],
)  # fmt: skip
def test_tensorize_mma_refuses(kernel: Kernel, steps: list[Step], why: str) -> None:
    with pytest.raises(ScheduleError, match=why):
        apply(kernel, steps)


def test_a_whole_trace_can_be_taken_twice() -> None:
    """Steps of f16 products apply to another shape of the same kind."""
    steps = [
        step("widen", "acc", "f32"), step("overlap", "m", 16, "mb", "mi"), step("split", "n", 8, "nb", "ni"),
        step("reorder", ["mb", "nb", "mi", "ni"]), step("stage", ["mi", "ni"]), step("split", "k", 16, "ko", "ki"),
        step("reorder", ["ko", "mi", "ni", "ki"]), step("tensorize_mma", "mi", "ni", "ki", "lane", "held"),
        step("reorder", ["ko", "lane"]), step("bind", "mb", "block"), step("bind", "nb", "block"),
        step("bind", "lane", "thread"), step("share", "A", "ko", 32, 8, 8), step("unroll", "held"),
    ]  # fmt: skip
    for m, n, k in ((33, 24, 32), (17, 40, 48), (48, 16, 64)):
        plain = matmul(m, n, k, F16)
        made = apply(plain, steps)
        verify(made)
        arrays = integers(plain)
        wanted = arrays["A"].astype(np.float64) @ arrays["B"].astype(np.float64)
        simt.run(made, arrays)
        np.testing.assert_array_equal(arrays["C"], wanted)


# ---------------------------------------------------------------- share


@pytest.mark.parametrize(("width", "pad"), [(1, 0), (4, 0), (2, 4), (8, 8)])
def test_share_copies_wide_into_padded_rows(width: int, pad: int) -> None:
    plain = matmul(16, 16, 32)
    made = apply(plain, _shared(width, pad))
    verify(made)
    (held,) = [
        s.buffer for s in walk(made.body) if isinstance(s, Alloc) and s.buffer.space == "shared"
    ]
    assert held.strides == (8 + pad, 1)
    arrays = integers(plain)
    wanted = interpret(plain, arrays)["C"]
    simt.run(made, arrays)
    np.testing.assert_array_equal(arrays["C"], wanted)


def _shared(width: int, pad: int) -> list[Step]:
    return [
        step("stage", ["m", "n"]), step("split", "k", 8, "ko", "ki"), step("reorder", ["ko", "m", "n", "ki"]),
        step("bind", "m", "thread"), step("bind", "n", "thread"), step("share", "A", "ko", 16, width, pad),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("width", "pad", "why"), [(3, 0, "3 at a time"), (0, 0, "at least 1"), (1, -1, "at least")]
)
def test_share_refuses(width: int, pad: int, why: str) -> None:
    with pytest.raises(ScheduleError, match=why):
        apply(matmul(16, 16, 32), _shared(width, pad))
