"""Types that only store values: every code decodes as `ml_dtypes` says, every float encodes as it rounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tilewright.core.dtypes import ALL, F64, dtype
from tilewright.loop import interp
from tilewright.loop.builder import KernelBuilder
from tilewright.loop.ir import Expr, Kernel, Load, Param, Store, dense
from tilewright.loop.storage import decode, encode, narrowed, rounded

FLOATS = ("f16", "bf16", "f8e4m3fn", "f8e4m3fnuz", "f8e5m2", "f8e5m2fnuz", "f4e2m1", "f8e8m0")
INTEGERS = ("i4", "u4", "i2", "u2")


def _run(source: Any, to: Any, make: Any) -> Any:
    """`make` of each element of `source`, in the interpreter of the loop IR."""
    k = KernelBuilder()
    x, y = dense("x", dtype(source.dtype), source.shape), dense("y", dtype(to), source.shape)
    with k.loop("i", source.size) as i:
        value: Expr = make(Load("x", (i,), x.dtype))
        k.stmt(Store("y", (i,), value))
    arrays = {"x": source, "y": np.zeros(source.shape, to)}
    with np.errstate(all="ignore"):
        interp.run(Kernel("k", (Param(x, "in"), Param(y, "out")), k.finish()), arrays)
    return arrays["y"]


def _codes(name: str) -> Any:
    """All codes of a type, of f16 and bf16 a thousand."""
    t = ALL[name]
    if t.bits == 16:
        return np.arange(0, 1 << 16, 61, dtype=np.uint16)
    count = {"f4e2m1": 16, "i4": 16, "u4": 16, "i2": 4, "u2": 4}.get(name, 256)
    return np.arange(count, dtype=np.uint8)


@pytest.mark.parametrize("name", [*FLOATS, *INTEGERS])
def test_every_code_decodes(name: str) -> None:
    t = ALL[name]
    codes = _codes(name)
    want = codes.view(t.numpy).astype(t.work.numpy)
    got = _run(codes.view(t.storage.numpy), t.work.numpy, lambda e: decode(e, t))
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("name", FLOATS)
def test_floats_round_to_nearest_even(name: str) -> None:
    t = ALL[name]
    values = _codes(name).view(t.numpy).astype(np.float32)
    values = np.unique(np.abs(values[np.isfinite(values)]))
    between = (values[1:].astype(np.float64) + values[:-1]) / 2
    near = np.concatenate(
        [values, between, np.nextafter(between.astype(np.float32), np.float32(0))]
    )
    odd = [0.0, np.inf, np.nan, 1e38, 1e-45, 3e-39, np.finfo(np.float32).max]
    x = np.concatenate([near, odd]).astype(np.float32)
    x = np.concatenate([x, -x])
    if name == "f8e8m0":  # of what is near a subnormal, `ml_dtypes` rounds twice
        x = x[(x > 2.0**-126) & (x < 1e38)]
    if name == "f4e2m1":  # NaN has no code
        x = x[~np.isnan(x)]
    with np.errstate(all="ignore"):
        want = x.astype(t.numpy)
    got = _run(x, t.storage.numpy, lambda e: encode(e, t)).view(t.numpy)
    a, b = got.astype(np.float32), want.astype(np.float32)
    np.testing.assert_array_equal(a, b)
    assert (np.signbit(a) == np.signbit(b))[~np.isnan(b)].all()
    back = _run(x, np.float32, lambda e: rounded(e, t))
    np.testing.assert_array_equal(back, b)


@pytest.mark.parametrize("name", INTEGERS)
def test_integers_keep_their_low_bits(name: str) -> None:
    t = ALL[name]
    x = np.arange(256, dtype=np.uint8).view(t.work.numpy)
    got = _run(x, t.work.numpy, lambda e: encode(e, t))
    np.testing.assert_array_equal(got, x.astype(t.numpy).astype(t.work.numpy))


@pytest.mark.parametrize("name", ["f16", "bf16"])
def test_doubles_round_once(name: str) -> None:
    """1 + half a step + a little less than f32 can tell: two roundings would end at 1."""
    t = ALL[name]
    step = 2.0**-10 if name == "f16" else 2.0**-7
    x = np.array(
        [
            1 + step / 2 + 2.0**-40,
            1 + step / 2,
            1 + 3 * step / 2 - 2.0**-40,
            -1 - step / 2 - 2.0**-40,
        ]
    )
    want = np.array([1 + step, 1, 1 + step, -1 - step], np.float32)
    got = _run(x, np.float32, lambda e: rounded(narrowed(e, t), t))
    np.testing.assert_array_equal(got, want)
    assert dtype(x.dtype) is F64
