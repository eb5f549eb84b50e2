"""Results whose size depends on the data: padded to a bound, with the number of valid elements beside them.

In: names of a graph's outputs. Out: which of them are counted, by which other output, along which axis.
Invariant: an output NAME that is counted along axis A is followed, after the model's own outputs, by an
i64 scalar NAME.countA: the first so many elements of NAME along A are the model's result.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_COUNT = re.compile(r"(.+)\.count(\d+)")


def count_name(output: str, axis: int) -> str:
    """What the count of an output is called."""
    return f"{output}.count{axis}"


def counted(outputs: Sequence[str]) -> dict[str, tuple[str, int]]:
    """Counted output -> (the output that counts its elements, the axis)."""
    found: dict[str, tuple[str, int]] = {}
    for name in outputs:
        match = _COUNT.fullmatch(name)
        if match and match[1] in outputs:
            found[match[1]] = (name, int(match[2]))
    return found
