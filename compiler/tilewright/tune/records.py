"""The tuning log: one JSON object per line, `<folder>/<target>/<operator>.jsonl`.

In: what was tried. Out: the records that are well formed.
Invariants: a record is appended by a single write, so a killed process leaves at most one torn last line,
which readers and later writers step over; files are untrusted: every field is checked here, and what
a trace does is checked again where it is applied.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from tilewright.errors import ScheduleError, TilewrightError
from tilewright.schedule.space import Value
from tilewright.schedule.trace import Trace, trace_from_json, trace_to_json

#: Records of another version are ignored.
VERSION = 1

#: trial    one candidate: measured or estimated, or why not
#: winner   what compilation should use for the kernel from now on (the last one holds)
#: variant  which way to compute a node, and what each way takes
Kind = Literal["trial", "winner", "variant"]

#: faster, slower, same   against the default, beyond the noise or within it
#: default                (winner) nothing better than the default is known
#: wrong                  another result than the unscheduled kernel
#: illegal                refused by a primitive, a verifier or a limit
#: crash, timeout         ended its worker process, or took longer than it may
#: retracted              (winner) lost inside the whole model, whatever it did alone
Verdict = Literal[
    "faster", "slower", "same", "default", "wrong", "illegal", "crash", "timeout", "retracted"
]

#: measured, or an estimate: by LLVM's scheduling model, by counting instructions, by a GPU's data sheet
Source = Literal["measured", "llvm-mca", "instructions", "gpu-model"]

MAX_LINE = 1 << 16
MAX_FILE = 1 << 28
_MAX_STEPS = 128
_NAME = re.compile(r"[A-Za-z0-9_.:\- ]{1,100}")
_HASH = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One line of the log.

    kernel, target    hashes (see `identity`); `kernel` of a variant is the hash of what it computes
    operator, family  anchor of the kernel and name of its schedule template
    extents           loop -> extent (variants: of the output and the weights)
    choice, trace     the schedule, as parameters and as steps
    seconds, default  least time of the candidate and of the default, interleaved with it; None if it
                      was never timed (estimates: the model's seconds)
    ratio, error      median of candidate / default over all rounds, its standard error
    rounds            how many rounds were timed
    modelled          the space's analytic cost against the default's
    variant           (variant) name of the way to compute, empty for the operator's own
    """

    kind: Kind
    kernel: str
    target: str
    operator: str
    verdict: Verdict
    source: Source = "measured"
    family: str = ""
    extents: Mapping[str, int] = field(default_factory=dict[str, int])
    choice: Mapping[str, Value] = field(default_factory=dict[str, Value])
    trace: Trace = ()
    seconds: float | None = None
    default: float | None = None
    ratio: float | None = None
    error: float | None = None
    rounds: int = 0
    modelled: float | None = None
    variant: str = ""
    note: str = ""
    device: str = ""

    def to_line(self) -> bytes:
        """The record as a line of JSON."""
        data: dict[str, Any] = {"v": VERSION}
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name == "trace":
                value = trace_to_json(value)
            if value not in (None, "", 0, [], {}):
                data[f.name] = dict(value) if isinstance(value, Mapping) else value
        return json.dumps(data, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def parse(line: bytes) -> Record:
    """A record from a line; `TilewrightError` says what is wrong with it."""
    if len(line) > MAX_LINE:
        raise TilewrightError("the line is too long")
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        raise TilewrightError("the line is no JSON") from None
    if not isinstance(data, dict) or data.get("v") != VERSION:
        raise TilewrightError("the record is of another version")
    unknown = data.keys() - {"v", *(f.name for f in fields(Record))}
    if unknown:
        raise TilewrightError(f"unknown fields {sorted(map(str, unknown))}")
    try:
        trace = trace_from_json(data.get("trace", []))
    except (ScheduleError, TypeError) as err:
        raise TilewrightError(str(err)) from None
    if len(trace) > _MAX_STEPS:
        raise TilewrightError(f"the trace has {len(trace)} steps")
    return Record(
        kind=_word(data, "kind", get_args(Kind)),
        verdict=_word(data, "verdict", get_args(Verdict)),
        source=_word({"source": "measured", **data}, "source", get_args(Source)),
        kernel=_text(data, "kernel", _HASH),
        target=_text(data, "target", _HASH),
        operator=_text(data, "operator", _NAME),
        family=_text({"family": "-", **data}, "family", _NAME).removeprefix("-"),
        variant=_text({"variant": "-", **data}, "variant", _NAME).removeprefix("-"),
        extents=_table(data, "extents", int),
        choice=_table(data, "choice", (int, str)),
        trace=trace,
        seconds=_time(data, "seconds"),
        default=_time(data, "default"),
        ratio=_time(data, "ratio"),
        error=_time(data, "error"),
        rounds=_count(data, "rounds"),
        modelled=_time(data, "modelled"),
        note=_free(data, "note"),
        device=_free(data, "device"),
    )


def _word(data: Mapping[str, Any], name: str, known: tuple[Any, ...]) -> Any:
    if not isinstance(data.get(name), str) or data[name] not in known:
        raise TilewrightError(f"`{name}` must be one of {', '.join(known)}")
    return data[name]


def _text(data: Mapping[str, Any], name: str, form: re.Pattern[str]) -> str:
    value = data.get(name)
    if not isinstance(value, str) or not form.fullmatch(value):
        raise TilewrightError(f"`{name}` is malformed")
    return value


def _free(data: Mapping[str, Any], name: str) -> str:
    value = data.get(name, "")
    if not isinstance(value, str) or len(value) > 1000 or not value.isprintable():
        raise TilewrightError(f"`{name}` is malformed")
    return value


def _table(data: Mapping[str, Any], name: str, kinds: Any) -> dict[str, Any]:
    value = data.get(name, {})
    if not isinstance(value, dict) or len(value) > 64:
        raise TilewrightError(f"`{name}` is malformed")
    for k, v in value.items():
        ok = _NAME.fullmatch(k) and isinstance(v, kinds) and not isinstance(v, bool)
        if not ok or (isinstance(v, int) and abs(v) > 1 << 40):
            raise TilewrightError(f"`{name}` is malformed at {k!r}")
        if isinstance(v, int) and v < 1 and name == "extents":
            raise TilewrightError(f"extent {v} of {k!r}")
    return value


def _time(data: Mapping[str, Any], name: str) -> float | None:
    value = data.get(name)
    if value is None:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not 0 <= value < 1e6:
        raise TilewrightError(f"`{name}` must be a number from 0 to a million")
    return float(value)


def _count(data: Mapping[str, Any], name: str) -> int:
    value = data.get(name, 0)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 31:
        raise TilewrightError(f"`{name}` must be a count")
    return value


# ---------------------------------------------------------------- files


def log_file(folder: Path, target: str, operator: str) -> Path:
    """Where records of an operator on a target go."""
    return folder / target / f"{operator}.jsonl"


def append(folder: Path, target: str, record: Record) -> None:
    """Append a record by one write; a torn last line of an earlier writer is closed first."""
    path = log_file(folder, target, record.operator)
    path.parent.mkdir(parents=True, exist_ok=True)
    line = record.to_line()
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        size = os.fstat(fd).st_size
        torn = size > 0 and os.pread(fd, 1, size - 1) != b"\n"
        os.write(fd, b"\n" + line if torn else line)
    finally:
        os.close(fd)


def read(folder: Path, target: str, problems: list[str] | None = None) -> Iterator[Record]:
    """All well-formed records of a target, file by file in order; what is not goes into `problems`."""
    root = folder / target
    if not root.is_dir():
        return
    for path in sorted(root.glob("*.jsonl")):
        yield from _read_file(path, problems)


def _read_file(path: Path, problems: list[str] | None) -> Iterator[Record]:
    try:
        if path.stat().st_size > MAX_FILE:
            raise TilewrightError("the file is too large")
        data = path.read_bytes()
    except (OSError, TilewrightError) as err:
        if problems is not None:
            problems.append(f"{path}: {err}")
        return
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            yield parse(line)
        except TilewrightError as err:
            if problems is not None:
                problems.append(f"{path}:{number}: {err}")


def as_dict(record: Record) -> dict[str, Any]:
    """All fields, for reports."""
    return asdict(record)
