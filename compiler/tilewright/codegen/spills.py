"""What code does with the stack inside its loops, read from its assembly.

In: assembly of a module as LLVM writes it (x86-64 in AT&T syntax, AArch64, Arm). Out: per function, how many
instructions inside loops touch the stack, and which symbols it calls.
Invariant: a loop is everything between a label and a later branch to it. Saved registers lie outside
loops and do not count; scratch that a schedule keeps in memory does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_FUNCTION = re.compile(r"^([A-Za-z_][\w.$]*):")
_LABEL = re.compile(r"^(\.?L[\w.$]*):")
_BRANCH = re.compile(r"^\t(?:j\w+|b\w*(?:\.\w+)?|cbn?z|tbn?z|le|dls\w*)\b.*?(\.?L[\w.$]*)$")
_STACK = re.compile(r"\((?:%rsp|%rbp)|\[(?:sp|x29|r7)\b")
_CALL = re.compile(r"^\t(?:bl|blx|b|b\.w|callq?|jmpq?)\t([A-Za-z_][\w$]*)(?:@\w+)?$")


def stack_accesses(assembly: str) -> dict[str, int]:
    """Instructions inside loops that touch the stack, per function."""
    return {name: _in_loops(body) for name, body in _functions(assembly)}


def calls(assembly: str) -> dict[str, set[str]]:
    """The symbols that every function calls, or leaves to by a jump."""
    return {
        name: {m[1] for line in body if (m := _CALL.match(line))}
        for name, body in _functions(assembly)
    }


def function_text(assembly: str, name: str) -> str:
    """The lines of one function (of PTX: from its declaration to its closing brace); "" if it is not
    there, for example because it was inlined."""
    for found, body in _functions(assembly):
        if found == name:
            return "\n".join([f"{name}:", *(x for x in body if not x.startswith("\t."))]) + "\n"
    entry = re.search(rf"^\.visible \.entry {re.escape(name)}\(.*?^}}$", assembly, re.M | re.S)
    return entry[0] + "\n" if entry else ""


def _functions(assembly: str) -> Iterator[tuple[str, list[str]]]:
    """Names and lines of functions, without comments."""
    name = ""
    body: list[str] = []
    for line in [*assembly.splitlines(), "end:"]:
        match = _FUNCTION.match(line)
        if match and not _LABEL.match(line):
            if name:
                yield name, body
            name, body = match[1], []
        else:
            body.append(line.split("#")[0].rstrip() if "%" in line else line.rstrip())


def _in_loops(lines: list[str]) -> int:
    labels: dict[str, int] = {}
    inside = [False] * len(lines)
    for i, line in enumerate(lines):
        label = _LABEL.match(line)
        if label:
            labels[label[1]] = i
            continue
        branch = _BRANCH.match(line)
        if branch and branch[1] in labels:
            start = labels[branch[1]]
            inside[start : i + 1] = [True] * (i + 1 - start)
    return sum(1 for line, loop in zip(lines, inside, strict=True) if loop and _STACK.search(line))
