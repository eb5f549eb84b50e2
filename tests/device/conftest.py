"""An ssh server of our own on the loopback interface, that serves as a device."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from ssh_server import Server, answers

_SSHD = shutil.which("sshd") or shutil.which("/usr/sbin/sshd")
#: Compiled into sshd, which wants it when it is started by root.
_PRIVILEGES = Path("/run/sshd")
_SERVER = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
"""
_CLIENT = """\
IdentityFile {folder}/user
IdentitiesOnly yes
StrictHostKeyChecking no
UserKnownHostsFile /dev/null
LogLevel ERROR
"""


@pytest.fixture(scope="session")
def _server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if _SSHD is None or not shutil.which("ssh") or not shutil.which("ssh-keygen"):
        pytest.skip("sshd, ssh or ssh-keygen is not installed (apt: openssh-server)")
    folder = tmp_path_factory.mktemp("sshd")
    for name in ("host", "user"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(command, check=True)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    (folder / "sshd.conf").write_text(_SERVER.format(port=port, folder=folder))
    (folder / "ssh.conf").write_text(_CLIENT.format(folder=folder))
    made = os.getuid() == 0 and not _PRIVILEGES.exists()
    if made:
        _PRIVILEGES.mkdir()
    command = [_SSHD, "-D", "-e", "-f", str(folder / "sshd.conf")]
    with (folder / "log").open("w") as log:
        daemon = subprocess.Popen(command, stderr=log, stdin=subprocess.DEVNULL)
    try:
        if not answers(port, daemon):
            pytest.skip(f"sshd does not start here: {(folder / 'log').read_text()[-200:]}")
        yield Server(f"ssh://127.0.0.1:{port}{folder}", folder)
    finally:
        daemon.terminate()
        daemon.wait(10)
        if made:
            _PRIVILEGES.rmdir()


@pytest.fixture
def ssh_device(_server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A device behind ssh: this machine, reached through the network."""
    monkeypatch.setenv("TILEWRIGHT_SSH", f"ssh -F {_server.folder}/ssh.conf")
    return _server
