"""Reads model files in a process of its own, with a limit on memory and on time.

In: files. Out: a `Verdict` for each: a graph, a refusal, or what went wrong.
Invariant: nothing that a file does ends the calling process, and a file that is at fault is named.
Run as a program (`python -m tilewright.testing.sandbox BYTES SECONDS`) it is that process: paths come in
by line, verdicts go out as JSON by line.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import resource
import selectors
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from tilewright.errors import ModelError

SECONDS = 10.0
BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a file led to. `outcome`: graph and refused are right; escaped (another exception than
    `ModelError`, or a graph that is none), crashed, hung and memory are bugs, which `where` tells apart."""

    outcome: str
    detail: str = ""
    where: str = ""
    seconds: float = 0.0
    peak_bytes: int = 0

    @property
    def is_bug(self) -> bool:
        return self.outcome not in ("graph", "refused")

    @property
    def signature(self) -> str:
        """Equal for what is likely the same bug."""
        return f"{self.outcome} {self.where}"


class Sandbox:
    """A process that reads model files; a new one takes its place whenever a file ends it."""

    def __init__(self, seconds: float = SECONDS, memory: int = BYTES) -> None:
        self.seconds = seconds
        self.memory = memory
        self._process: subprocess.Popen[str] | None = None
        self._errors: IO[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def read(self, path: Path) -> Verdict:
        """Import and examine the model at `path` (its name tells the format where the bytes do not)."""
        process = self._started()
        assert process.stdin is not None and process.stdout is not None
        start = time.monotonic()
        try:
            process.stdin.write(f"{path}\n")
            process.stdin.flush()
            line = self._line(process.stdout, start + self.seconds + 2)
        except BrokenPipeError:
            line = ""
        took = time.monotonic() - start
        if line is None:
            where = self._said()
            self.close()
            return Verdict("hung", f"no answer after {took:.1f} s", where, took)
        if not line:
            code = process.wait()
            where = self._said()
            self.close()
            return Verdict("crashed", f"exit code {code}", where, took)
        return Verdict(**json.loads(line))

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
            self._process.wait()
            self._process = None
        if self._errors is not None:
            self._errors.close()
            self._errors = None

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None:
            self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the process)
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(self.memory), str(self.seconds)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
            assert self._process.stdout is not None
            self._process.stdout.readline()  # imports are done: time starts to count
        return self._process

    @staticmethod
    def _line(pipe: IO[str], deadline: float) -> str | None:
        """The next line; None if it does not come in time, empty if the process is gone."""
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            if not selector.select(max(deadline - time.monotonic(), 0)):
                return None
        return pipe.readline()

    def _said(self) -> str:
        """Where the process was, as `faulthandler` tells: the innermost function of ours."""
        if self._errors is None:
            return ""
        self._errors.flush()
        self._errors.seek(0)
        lines = [s.strip() for s in self._errors.read().splitlines() if 'File "' in s]
        ours = [s for s in lines if "tilewright" in s or "kernels" in s]
        return _shortened((ours or lines or [""])[0])


def _shortened(frame: str) -> str:
    return frame.replace('File "', "").replace('"', "").rpartition("/")[2]


# ---------------------------------------------------------------- inside the process


def judge(path: str) -> Verdict:
    """Import the file, verify the graph, and look for all its problems."""
    from tilewright.frontend.models import examine_model, load_model
    from tilewright.graph.verify import verify

    outcome, detail, where = "graph", "", ""
    with contextlib.suppress(OSError):  # the peak counts from here
        Path("/proc/self/clear_refs").write_text("5")
    before, start = _memory("VmRSS"), time.perf_counter()
    try:
        try:
            verify(load_model(path))
        except ModelError as err:
            outcome, detail = "refused", str(err)
        if os.path.getsize(path) % 16 == 0:  # it starts a process for ONNX's shape inference
            examine_model(path)
    except BaseException as err:  # whatever it is: that is what this is for
        outcome, detail = "escaped", f"{type(err).__name__}: {err}"[:500]
        where = _where(err)
    took, peak = time.perf_counter() - start, max(_memory("VmHWM") - before, 0)
    if "MemoryError" in detail:
        outcome = "memory"
    elif outcome == "refused" and ("\n" in detail or not detail or len(detail) > 20_000):
        outcome, where = "escaped", "not one sentence"
    return Verdict(
        outcome, detail, where or (detail[:60] if outcome == "memory" else ""), took, peak
    )


def _where(err: BaseException) -> str:
    """The innermost function of ours in a traceback, and the exception."""
    frames = traceback.extract_tb(err.__traceback__)
    ours = [f for f in frames if "tilewright" in f.filename or "kernels" in f.filename]
    ours = [f for f in ours if "sandbox" not in f.filename] or list(frames)
    f = ours[-1]
    return f"{Path(f.filename).name}:{f.lineno} {f.name} {type(err).__name__}"


def _memory(key: str) -> int:
    """A figure of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) << 10
    return 0


def _serve(memory: int, seconds: float) -> None:
    from tilewright.registry import onnx_importers

    onnx_importers()
    with contextlib.suppress(ModelError):
        from tilewright.frontend.models import load_model

        load_model(b"")
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no verdict
    resource.setrlimit(resource.RLIMIT_AS, (_memory("VmSize") + memory,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        faulthandler.dump_traceback_later(seconds)
        verdict = judge(line.rstrip("\n"))
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps(asdict(verdict)), file=out, flush=True)


if __name__ == "__main__":
    faulthandler.enable()
    _serve(int(sys.argv[1]), float(sys.argv[2]))
