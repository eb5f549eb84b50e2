"""Finding the loop that matters in generated assembly."""

from __future__ import annotations

import re


def count(lines: list[str], instruction: str) -> int:
    return sum(instruction in x for x in lines)


def main_loop(text: str, instruction: str) -> list[str]:
    """The instructions of the innermost loop that holds most of `instruction`."""
    best: list[str] = []
    block: list[str] = []
    for line in text.splitlines():
        if re.match(r"\.?L?BB\S*:", line.strip()):
            block = [line]
        elif line.startswith("\t") and not line.startswith("\t."):
            block.append(line)
            label = block[0].rstrip(":")
            closes = re.search(rf"\bb\.?\w*\s+{re.escape(label)}$", line) is not None
            if closes and count(block, instruction) > count(best, instruction):
                best = list(block)
    return best
