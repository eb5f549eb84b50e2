"""AffineGrid: where every element of a picture or volume comes from under an affine map.

In: an `ImportNode`. Out: value names. ONNX's own function body drops the batch where that is 1, so this is not it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tilewright.registry import ImportNode


def affine_grid(node: ImportNode) -> Sequence[str]:
    """theta[N, d, d + 1] times the homogeneous coordinates of a grid of [N, C, (D,) H, W], from -1 to 1 along every dim."""
    t = node.type(0)
    size = [int(v) for v in node.need_const(1, "the size").reshape(-1)]
    dims, space = len(size) - 2, tuple(size[2:])
    if dims not in (2, 3) or t.shape != (size[0], dims, dims + 1) or min(size) < 1:
        raise node.fail(f"a grid of {size} by {t} is not defined: repair the model")
    node.reserve(*space, dims + 1)
    aligned = bool(node.attr("align_corners", 0))
    lines = [
        np.linspace(-1, 1, n) if aligned and n > 1 else (2 * np.arange(n) + 1) / n - 1
        for n in space
    ]
    coordinates = np.meshgrid(*lines, indexing="ij")[::-1]  # the innermost dim is named first
    points = np.stack([*coordinates, np.ones(space)], -1).reshape(-1, dims + 1)
    base = node.constant(points.astype(t.dtype.numpy), "grid")
    (columns,) = node.add("transpose", [node.inputs[0]], {"perm": (0, 2, 1)})
    (grid,) = node.add("matmul", [base, columns])
    return node.add("reshape", [grid], {"shape": (size[0], *space, dims)})
