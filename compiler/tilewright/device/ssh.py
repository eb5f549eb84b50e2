"""A machine that the `ssh` command reaches without asking for anything.

In: ssh://[user@]host[:port][/directory]. Out: programs that run there.
Invariant: the machine needs a shell and `tar`, nothing of ours; programs lie in a fresh directory below
`/tmp` (or the one in the address), which is removed. What it sends is data: only files that were asked for are read.

Keys, jump hosts and the like belong into ~/.ssh/config; TILEWRIGHT_SSH stands in for the command `ssh`,
with options (`ssh -F file`).
"""

from __future__ import annotations

import io
import math
import os
import re
import shlex
import shutil
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tilewright.device.base import TIMEOUT_SECONDS, Finished, overtime
from tilewright.errors import TargetError, ToolchainError
from tilewright.runtime.cpu import architecture

_OPTIONS = ("-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-T")
_UNREACHABLE = 255
#: Comes before what we want to read: login scripts may print what they like.
_MARK = b"tilewright-begin\n"
_INSTALL = (
    'umask 077; d=$(mktemp -d {parent}/tilewright-XXXXXXXX) && cd "$d" && tar -xf - && chmod 700 {program} '
    '&& printf "tilewright-begin\\n%s\\n" "$d"'
)
_RUN = (
    "cd {folder} && rm -f {fetch} && tar -xf - && "
    "{{ $(command -v timeout > /dev/null && echo timeout {seconds}) ./{program} {arguments} > {report} 2> {errors} < /dev/null; echo $? > {status}; "
    "printf 'tilewright-begin\\n'; "
    'set --; for f in {report} {errors} {status} {fetch}; do [ -f "$f" ] && set -- "$@" "$f"; done; '
    'tar -cf - "$@"; rm -f {report} {errors} {status} {fetch} {files}; }}'
)
_REPORT, _ERRORS, _STATUS = "tilewright.report", "tilewright.errors", "tilewright.status"
_PLAIN = re.compile(r"[\w.-]+")
_FOLDER = re.compile(r"/[\w./+-]*/tilewright-\w+")
_SETUP_SECONDS = 120.0
#: What `timeout` on the device answers, so that nothing of ours runs on there; we wait a little longer.
_OVERTIME, _PATIENCE = 124, 30.0


class SshDevice:
    """A machine behind ssh. Raises `TargetError` for an address that is none, `ToolchainError` without
    the `ssh` command; whether the machine answers shows in the first use."""

    emulated = False

    def __init__(self, url: str) -> None:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as err:
            raise TargetError(f"device `{url}` is not an address: {err}") from None
        if parts.scheme != "ssh" or not parts.hostname or parts.query or parts.fragment:
            raise TargetError(f"device `{url}` is not known: write ssh://user@host:port/directory")
        if parts.hostname.startswith("-") or (parts.username or "").startswith("-"):
            raise TargetError(f"device `{url}` is not an address: names do not begin with `-`")
        command = shlex.split(os.environ.get("TILEWRIGHT_SSH", "ssh"))
        if not command or not shutil.which(command[0]):
            raise ToolchainError(
                f"`{' '.join(command) or 'TILEWRIGHT_SSH'}` is not installed: apt-get install openssh-client "
                f"to reach {url}"
            )
        self.name = url
        self.directory = unquote(parts.path).rstrip("/") or "/tmp"
        where = f"{parts.username}@{parts.hostname}" if parts.username else parts.hostname
        self._command = [*command, *_OPTIONS, *(("-p", str(port)) if port else ()), where]

    def describe(self) -> str:
        """The address and the kind of machine."""
        return f"{self.name} ({self.machine})"

    @cached_property
    def machine(self) -> str:
        """The machine's architecture, as in a target's triple."""
        answer = self.shell('printf "tilewright-begin\\n"; uname -m', b"", _SETUP_SECONDS)
        return architecture(answer.decode("utf-8", "replace").strip())

    def install(self, program: Path, libraries: Sequence[Path] = ()) -> SshProgram:
        """Copy a program and its libraries; `TargetError` if the machine does not take them."""
        return SshProgram(self, program, libraries)

    def shell(self, script: str, data: bytes, timeout: float) -> bytes:
        """Run a shell script on the machine; returns what it prints after the mark."""
        try:
            done = subprocess.run(
                [*self._command, f"sh -c {shlex.quote(script)}"], input=data, capture_output=True,
                check=False, timeout=timeout,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise overtime(self.name, timeout) from None
        except OSError as err:
            raise ToolchainError(f"`{self._command[0]}` cannot be run: {err}") from None
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        last = said[-1].strip() if said else "no answer"
        if done.returncode == _UNREACHABLE:
            raise TargetError(f"{self.name} cannot be reached: {last}")
        at = done.stdout.find(_MARK)
        if done.returncode or at < 0:
            raise TargetError(f"{self.name} cannot be used: {last}")
        return done.stdout[at + len(_MARK) :]


class SshProgram:
    """See `base.Installed`."""

    def __init__(self, device: SshDevice, program: Path, libraries: Sequence[Path]) -> None:
        self._device = device
        self._program = _plain(program.name)
        parts = {p.name: p.read_bytes() for p in (program, *libraries)}
        script = _INSTALL.format(parent=shlex.quote(device.directory), program=self._program)
        answer = device.shell(script, _packed(parts), TIMEOUT_SECONDS)
        self._folder = answer.decode("utf-8", "replace").strip()
        if not _FOLDER.fullmatch(self._folder):
            raise TargetError(
                f"{device.name} cannot be used: `{self._folder}` is no place for a program"
            )

    def run(
        self,
        arguments: Sequence[str],
        files: Mapping[str, bytes],
        fetch: Sequence[str],
        timeout: float = TIMEOUT_SECONDS,
    ) -> Finished:
        script = _RUN.format(
            folder=shlex.quote(self._folder), program=self._program, report=_REPORT, errors=_ERRORS,
            status=_STATUS, arguments=shlex.join(arguments), fetch=" ".join(map(_plain, fetch)) or "''",
            files=" ".join(map(_plain, files)), seconds=math.ceil(timeout),
        )  # fmt: skip
        answer = self._device.shell(script, _packed(files), timeout + _PATIENCE)
        made = self._unpacked(answer)
        try:
            code = int(made.pop(_STATUS))
            report, errors = (made.pop(n).decode("utf-8", "replace") for n in (_REPORT, _ERRORS))
        except (KeyError, ValueError):
            raise TargetError(
                f"{self._device.name} cannot be used: its answer is cut off"
            ) from None
        if code == _OVERTIME:
            raise overtime(self._device.name, timeout)
        return Finished(code, report, errors, {n: made[n] for n in fetch if n in made})

    def _unpacked(self, data: bytes) -> dict[str, bytes]:
        """Plain files of an archive that the device sent."""
        made: dict[str, bytes] = {}
        try:
            with tarfile.open(fileobj=io.BytesIO(data)) as tar:
                for member in tar.getmembers():
                    file = tar.extractfile(member) if member.isfile() else None
                    if file is not None:
                        made[member.name] = file.read()
        except (tarfile.TarError, EOFError) as err:
            raise TargetError(f"{self._device.name} cannot be used: {err}") from None
        return made

    def close(self) -> None:
        script = f"printf 'tilewright-begin\\n'; rm -rf {shlex.quote(self._folder)}"
        self._device.shell(script, b"", _SETUP_SECONDS)


def _plain(name: str) -> str:
    """A file name that is safe in a shell script."""
    assert _PLAIN.fullmatch(name), name
    return name


def _packed(files: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o600
            tar.addfile(entry, io.BytesIO(data))
    return out.getvalue()
