"""One whole smoke run without a network, shared by the tests that look at it."""

import os
import subprocess
import sys

import pytest
from smoke import BLOCK, SmokeRun, command


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory: pytest.TempPathFactory) -> SmokeRun:
    """All notebooks in smoke, every socket that leaves this machine refused."""
    root = tmp_path_factory.mktemp("smoke")
    (root / "block").mkdir()
    (root / "block" / "sitecustomize.py").write_text(BLOCK)
    environment = os.environ | {"PYTHONPATH": str(root / "block"), "BLOCKED_LOG": str(root / "blocked.log")}
    probe = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=1)"
    held = subprocess.run([sys.executable, "-c", probe], env=environment, capture_output=True, text=True, check=False)
    assert "the network is blocked" in held.stderr and (root / "blocked.log").read_text()
    (root / "blocked.log").write_text("")
    done = subprocess.run(
        command("paper", "--profile", "smoke", "--out", str(root / "out")),
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return SmokeRun(root / "out", done.stderr, root / "blocked.log", environment)
