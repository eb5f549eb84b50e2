"""`tensorize`: dot products mean what the loops meant, in the interpreter, in text and in code."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_helpers import interpret, native

from tilewright.core.dtypes import F32, I8, I32, U8, DType
from tilewright.errors import ScheduleError
from tilewright.loop.builder import KernelBuilder, cast, const
from tilewright.loop.ir import Fma, Kernel, Load, Param, Store, dense
from tilewright.loop.parse import parse
from tilewright.loop.passes.specialize_tails import specialize_tails
from tilewright.loop.text import to_text
from tilewright.loop.verify import verify
from tilewright.schedule.target import load_target
from tilewright.schedule.trace import apply, step


def product(m: int, n: int, k: int, a: DType = I8, b: DType = I8, c: DType = I32) -> Kernel:
    """C[m, n] = sum of A[m, k] * B[n, k], widened before the product."""
    build = KernelBuilder()
    with build.loop("m", m) as i, build.loop("n", n) as j:
        acc = build.local("acc", c)
        build.set(acc, const(0, c))
        with build.loop("k", k) as kk:
            x, y = cast(Load("A", (i, kk), a), c), cast(Load("B", (j, kk), b), c)
            build.set(acc, Fma(x, y, acc()))
        build.stmt(Store("C", build.simplify((i, j)), acc()))
    params = (
        Param(dense("A", a, (m, k)), "in"),
        Param(dense("B", b, (n, k)), "in"),
        Param(dense("C", c, (m, n)), "out"),
    )
    return Kernel("product", params, build.finish())


@settings(deadline=None, max_examples=20)
@given(
    m=st.integers(2, 5), n=st.integers(2, 5), blocks=st.integers(2, 4), width=st.integers(2, 5),
    unsigned=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_a_dot_product_is_the_loop_it_replaces(
    m: int, n: int, blocks: int, width: int, unsigned: bool, seed: int
) -> None:
    kernel = product(m, n, blocks * width, a=U8 if unsigned else I8)
    made = apply(kernel, [step("split", "k", width, "ko", "ki"), step("tensorize", "ki")])
    finished = specialize_tails(made)
    verify(finished)
    assert parse(to_text(finished)) == finished
    rng = np.random.default_rng(seed)
    arrays = {
        "A": rng.integers(0 if unsigned else -128, 128, (m, blocks * width)).astype(
            np.uint8 if unsigned else np.int8
        ),
        "B": rng.integers(-128, 128, (n, blocks * width)).astype(np.int8),
        "C": np.zeros((m, n), np.int32),
    }
    want = arrays["A"].astype(np.int32) @ arrays["B"].astype(np.int32).T
    assert np.array_equal(interpret(finished, arrays)["C"], want)
    assert np.array_equal(native(finished, arrays, load_target("x86-64-v3"))["C"], want)


def test_only_integer_sums_of_products_become_dot_products() -> None:
    with pytest.raises(ScheduleError, match="dot products are of integers"):
        apply(product(2, 2, 8, F32, F32, F32), [step("tensorize", "k")])
    with pytest.raises(ScheduleError, match="not a sum of products"):
        apply(product(2, 2, 8), [step("tensorize", "n")])
    with pytest.raises(ScheduleError, match="1 to 64"):
        apply(product(2, 2, 65), [step("tensorize", "k")])
