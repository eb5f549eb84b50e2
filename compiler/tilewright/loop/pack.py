"""Carry out a `Pack` on an actual constant.

In: a NumPy array in its original layout and a `Pack`. Out: the packed, zero-padded array.
Invariant: element [f(index)] of the result is element [index] of the input, everything else is 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tilewright.loop.ir import Pack


def pack_array(array: npt.NDArray[Any], pack: Pack) -> npt.NDArray[Any]:
    """Re-lay `array`; returns a contiguous array of shape `pack.shape`."""
    tiles = {d.source: d.tile for d in pack.dims if d.part != "whole"}
    widths = [(0, -array.shape[i] % tiles.get(i, 1)) for i in range(array.ndim)]
    padded = np.pad(array, widths) if any(w for _, w in widths) else array
    shape: list[int] = []
    axis_of: dict[tuple[int, str], int] = {}
    for i, n in enumerate(padded.shape):
        if i in tiles:
            axis_of[(i, "outer")] = len(shape)
            axis_of[(i, "inner")] = len(shape) + 1
            shape += [n // tiles[i], tiles[i]]
        else:
            axis_of[(i, "whole")] = len(shape)
            shape.append(n)
    order = [axis_of[(d.source, d.part)] for d in pack.dims]
    return np.ascontiguousarray(padded.reshape(shape).transpose(order))
