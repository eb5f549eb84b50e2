"""Scratch of one thread is not another's: what `check_owners` lets through and what it refuses."""

from __future__ import annotations

import pytest

from tilewright.errors import IRError
from tilewright.loop.owners import check_owners
from tilewright.loop.parse import parse

#: Elements stay with the thread that indexes them; the first thread keeps its own sum.
LEGAL = """kernel legal(x: f32[4, 8], out y: f32[4, 8])
  block b in 1:
    alloc tile: f32[4, 8, 2] in register
    alloc total: f32[] in register
    thread i in 4:
      thread j in 8:
        for k in 2:
          tile[i, j, k] = x[i, j]:f32
    thread i2 in 4:
      thread j2 in 8:
        y[i2, j2] = tile[i2, j2, 0]:f32
    total[] = 0.0:f32
    let mean = total[]:f32
    alloc more: f32[] in register
    more[] = mean:f32
"""
#: (what the last nest or statement is instead, what the message says)
WRONG = {
    "serial code reads what threads wrote": (
        "    for i2 in 4:\n      y[i2, 0] = tile[i2, 0, 0]:f32\n", "of one thread here",
    ),
    "threads are numbered in another order": (
        "    thread j2 in 8:\n      thread i2 in 4:\n        y[i2, j2] = tile[i2, j2, 0]:f32\n",
        "of one thread here",
    ),
    "a nest has another length": (
        "    thread i2 in 4:\n      thread j2 in 7:\n        y[i2, j2] = tile[i2, j2, 0]:f32\n",
        "of one thread here",
    ),
    "a neighbour's element": (
        "    thread i2 in 4:\n      thread j2 in 7:\n        y[i2, j2] = tile[i2, j2 + 1, 0]:f32\n",
        "share an element of the scratch `tile`",
    ),
    "all threads compute from one thread's sum": (
        "    total[] = 0.0:f32\n    let mean = total[]:f32\n"
        "    thread i2 in 4:\n      y[i2, 0] = mean:f32\n",
        "all threads read the scratch `total`",
    ),
}  # fmt: skip
HEAD = LEGAL[: LEGAL.index("    thread i2")]


def test_owners_are_kept() -> None:
    check_owners(parse(LEGAL))


@pytest.mark.parametrize("name", list(WRONG))
def test_what_is_refused(name: str) -> None:
    rest, message = WRONG[name]
    with pytest.raises(IRError, match=message):
        check_owners(parse(HEAD + rest))


def test_shared_memory_is_everyones() -> None:
    text = (HEAD + WRONG["serial code reads what threads wrote"][0]).replace(
        "2] in register", "2] in shared"
    )
    check_owners(parse(text))
