"""A graph being drawn: nodes that operators accept, and how large values can be.

In: a way to draw from Hypothesis strategies. Out: a valid `Graph`, node by node.
Invariant: no float in it exceeds 2**22 and no i32 sum 2**30, so f32 arithmetic is exact and integers do not wrap.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tilewright.core.dtypes import F32, I8, I32, U8, DType
from tilewright.errors import TilewrightError
from tilewright.graph.ir import Attrs, Graph, Node
from tilewright.registry import operator

#: Elements of a value, the largest magnitude of a float and of an integer.
MOST_ELEMENTS, EXACT, EXACT_INTEGER = 4096, 1 << 22, 1 << 30
#: The largest magnitude of an input, by type.
LARGEST = {F32: 2, I8: 128, U8: 255}

Draw = Callable[[st.SearchStrategy[Any]], Any]


@dataclass(slots=True)
class Maker:
    """A graph being drawn. `most`: values that nodes may read, and how large they can be; `steps`: how bytes stand
    for reals, as (exponent, zero point): (byte - zero point) * 2**exponent."""

    draw: Draw
    graph: Graph
    most: dict[str, int] = field(default_factory=dict[str, int])
    steps: dict[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])

    def pick(self, options: Sequence[Any]) -> Any:
        return self.draw(st.sampled_from(list(options)))

    def value(self) -> str:
        return str(self.pick(list(self.most)))

    def shape(self, name: str) -> tuple[int, ...]:
        return self.graph.types[name].shape

    def dtype(self, name: str) -> DType:
        return self.graph.types[name].dtype

    def constant(
        self, shape: tuple[int, ...], low: int = -2, high: int = 2, dtype: DType = F32
    ) -> str:
        """A constant of whole numbers."""
        rng = np.random.default_rng(self.draw(st.integers(0, 1000)))
        return self.graph.add_constant("c", rng.integers(low, high + 1, shape).astype(dtype.numpy))

    def weights(self, dtype: DType, shape: tuple[int, ...]) -> tuple[str, int]:
        """A constant that products with `dtype` take, and its largest magnitude."""
        if dtype is F32:
            return self.constant(shape), 2
        return self.constant(shape, -128, 127, I8), 128

    def add(self, op: str, inputs: Sequence[str], most: int, **attrs: Any) -> str | None:
        """Add a node that later ones may read; its result's name.

        None, and no node, if the operator refuses it or values would be too large.
        """
        name = self.hidden(op, inputs, **attrs)
        if name is None:
            return None
        limit = EXACT if self.dtype(name).is_float else EXACT_INTEGER
        if most > limit:
            node = self.graph.nodes.pop()
            del self.graph.types[node.outputs[0]]
            return None
        self.most[name] = most
        return name

    def hidden(self, op: str, inputs: Sequence[str], **attrs: Any) -> str | None:
        """The same for a node that only the caller's own nodes read."""
        types = [self.graph.types[i] for i in inputs]
        made: Attrs = dict(attrs)
        try:
            (out,) = operator(op).infer(types, made)
        except (TilewrightError, ValueError):
            return None
        if not 0 < out.size <= MOST_ELEMENTS:
            return None
        name = self.graph.fresh("v")
        self.graph.types[name] = out
        self.graph.nodes.append(Node(f"n{len(self.graph.nodes)}", op, tuple(inputs), (name,), made))
        return name


def is_byte(dtype: DType) -> bool:
    return dtype in (I8, U8)


def is_sum(dtype: DType) -> bool:
    return dtype is I32
