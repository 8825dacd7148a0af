"""How commands are run here, and what blocks the network for them."""

import sys
from dataclasses import dataclass
from pathlib import Path

BLOCK = """
import os, socket
LOCAL = ("127.0.0.1", "localhost", "::1", "0.0.0.0", "")
def _refuse(what):
    with open(os.environ["BLOCKED_LOG"], "a") as log:
        log.write(f"{what}\\n")
    raise OSError(f"the network is blocked: {what}")
def _guarded(name):
    real = getattr(socket.socket, name)
    def call(self, *arguments):
        address = arguments[-1]
        if self.family != socket.AF_UNIX and str(address[0]) not in LOCAL:
            _refuse(f"{name} {address}")
        return real(self, *arguments)
    return call
for _name in ("connect", "connect_ex", "sendto"):
    setattr(socket.socket, _name, _guarded(_name))
_lookup = socket.getaddrinfo
def getaddrinfo(host, *arguments, **options):
    if host is not None and str(host) not in (*LOCAL, socket.gethostname()):
        _refuse(f"getaddrinfo {host}")
    return _lookup(host, *arguments, **options)
socket.getaddrinfo = getaddrinfo
"""


@dataclass(frozen=True)
class SmokeRun:
    """A finished ``medshift paper --profile smoke`` in a folder of its own."""

    out: Path
    log: str
    blocked: Path
    environment: dict[str, str]


def command(*words: str) -> list[str]:
    """The command line, run by this very Python."""
    return [sys.executable, "-m", "medshift.cli", *words]
