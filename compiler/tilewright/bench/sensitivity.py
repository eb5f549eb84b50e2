"""How far a result moves when what it is computed from moves by a few roundings.

In: a function from inputs to a result, and the inputs. Out: the largest relative change that was seen.
A sum that cancels to nothing, a state that is rounded to bytes at every step or an argmax amplify the roundings of
any two implementations, so they say nothing about who is right. This is measured with the reference alone: what is
judged has no part in what it is allowed.
Invariant: inputs that are no floats stay as they are; the same inputs give the same answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from tilewright.graph.ir import Array

#: Inputs are moved by up to so much of themselves: eight roundings of float32.
STEP = 8 * float(np.finfo(np.float32).eps)
#: How often, each time in other directions: a value rounded to bytes may happen not to notice.
TURNS = 4
#: A result may be off by so many times what it moves: sums of many terms round more often than once.
SLACK = 4.0


def unrest(
    result: Callable[[Mapping[str, Array]], Array],
    inputs: Mapping[str, Array],
    distance: Callable[[Array, Array], float],
) -> float:
    """The largest `distance` of results of slightly moved inputs from that of the inputs as they are."""
    base = result(inputs)
    return max(distance(result(moved(inputs, turn)), base) for turn in range(TURNS))


def moved(inputs: Mapping[str, Array], turn: int) -> dict[str, Array]:
    """The inputs with every float multiplied by a number next to 1."""
    rng = np.random.default_rng(turn)
    out: dict[str, Array] = {}
    for name, a in inputs.items():
        out[name] = a
        if a.dtype.kind == "f":
            out[name] = (a * (1 + STEP * rng.uniform(-1, 1, a.shape))).astype(a.dtype)
    return out
