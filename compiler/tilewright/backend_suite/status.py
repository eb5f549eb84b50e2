"""The status file: the cases that do not pass, each with its reason.

In: a TOML file, verdicts. Out: what differs between them.
Invariant: only refusals can be listed: a wrong answer, a crash and a hang are bugs, never a status.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

from tilewright.backend_suite.cases import Verdict
from tilewright.errors import TilewrightError

Status = Mapping[str, str]
"""Case -> why it is refused."""

_HEADER = """\
# Cases of ONNX's backend tests that are refused, with the reason; every other case passes.
# Written by `tilewright backend-suite --update`; a case that passes although it is listed fails.
"""


def read_status(path: Path) -> Status:
    """The status file; `TilewrightError` if it is not one."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as err:
        raise TilewrightError(f"{path} is not a status file: {err}") from None
    return {
        f"{kind}/{name}": str(why) for kind, rows in tables.items() for name, why in rows.items()
    }


def write_status(path: Path, verdicts: Iterable[Verdict]) -> None:
    """Write refusals; cases that were not run are dropped."""
    text = [_HEADER]
    kind = ""
    for v in sorted(verdicts, key=lambda v: v.key):
        if v.outcome != "refused":
            continue
        own, _, name = v.key.partition("/")
        if own != kind:
            kind = own
            text.append(f"\n[{json.dumps(kind)}]\n")
        text.append(f"{name} = {json.dumps(v.reason, ensure_ascii=False)}\n")
    path.write_text("".join(text), encoding="utf-8")


def differences(status: Status, verdicts: Iterable[Verdict]) -> list[str]:
    """What is not as the status file says, a sentence each."""
    out: list[str] = []
    for v in verdicts:
        if v.outcome not in ("pass", "refused"):
            out.append(f"{v.key}: {v.outcome} ({v.reason})")
        elif v.outcome == "pass" and v.key in status:
            out.append(f"{v.key}: passes, take it off the status file")
        elif v.outcome == "refused" and v.key not in status:
            out.append(f"{v.key}: refused, and the status file has no reason for it ({v.reason})")
    return out
