"""How much stack Arm code needs, read from its assembly.

In: assembly of a module as LLVM writes it for Armv7-M and later. Out: bytes per function.
Invariant: an upper bound: the frame of a function (registers it saves, scratch, alignment, arguments on
the stack) plus the deepest of those it calls; there is no recursion and no call through a pointer.
"""

from __future__ import annotations

import re

#: Frame of a helper of the compiler's runtime library (64-bit division is the deepest).
LIBRARY_BYTES = 96

_FUNCTION = re.compile(r"^([A-Za-z_][\w.$]*):")
_SAVE = re.compile(r"^\t\.(v?)save\t\{(.*)\}")
_PAD = re.compile(r"^\t\.pad\t#(\d+)")
_GROW = re.compile(r"^\tsub(?:\.w|w)?\tsp, (?:sp, )?#(\d+)")
_CALL = re.compile(r"^\t(?:bl|b|b\.w)\t([A-Za-z_][\w.$]*)$")
_ALIGN = re.compile(r"^\tbfc\t\w+, #0, #(\d+)")


def stack_bytes(assembly: str) -> dict[str, int]:
    """Stack in bytes that a call of each function takes, its callees included."""
    frames: dict[str, int] = {}
    calls: dict[str, set[str]] = {}
    name, padded = "", False
    for line in assembly.splitlines():
        if match := _FUNCTION.match(line):
            name = match[1]
            frames[name], calls[name] = 0, set()
        elif not name:
            continue
        elif match := _SAVE.match(line):
            frames[name] += (8 if match[1] else 4) * len(match[2].split(","))
        elif match := _PAD.match(line):
            frames[name] += int(match[1])
            padded = True
            continue
        elif match := _GROW.match(line):
            frames[name] += (
                0 if padded else int(match[1])
            )  # arguments of a call: counted once per call
        elif match := _ALIGN.match(line):
            frames[name] += 1 << int(match[1])
        elif match := _CALL.match(line):
            calls[name].add(match[1])
        padded = False
    depth: dict[str, int] = {}

    def deepest(f: str) -> int:
        if f not in frames:
            return LIBRARY_BYTES
        if f not in depth:
            depth[f] = frames[f] + max(map(deepest, sorted(calls[f])), default=0)
        return depth[f]

    return {f: deepest(f) for f in frames}
