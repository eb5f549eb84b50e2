"""What an import comes upon: problems of single nodes, of all formats.

Invariant: a problem says where it is, why, and what to do next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

#: What a malformed node can make an importer, a type rule or a reference function raise.
MALFORMED = (
    ValueError, LookupError, TypeError, ArithmeticError, AssertionError, AttributeError, MemoryError,
)  # fmt: skip


_LONGEST = 1000


def sentence(text: str) -> str:
    """A message on one line and of bearable length, whatever names and shapes of a file it quotes."""
    line = " ".join(text.split())
    return (
        line if len(line) <= _LONGEST else f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"
    )


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that cannot be compiled: where, why, and what to do. `broken`: the file is at fault."""

    node: str
    op_type: str
    reason: str
    hint: str
    broken: bool = False

    def __str__(self) -> str:
        where = f"node `{self.node}` ({self.op_type}): " if self.op_type else ""
        text = f"{where}{sentence(self.reason)}" + (f": {self.hint}" if self.hint else "")
        return " ".join(text.split())


@dataclass(frozen=True, slots=True)
class Findings:
    """What an import came upon. `unchecked`: nodes (name, operator) that are known operators, but whose
    inputs have no known type because of a problem before them."""

    problems: Sequence[Problem]
    unchecked: Sequence[tuple[str, str]] = ()
