"""A JupyterLab of one's own, a chromium that reaches nothing else, and notebooks for them."""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
PATIENCE = 120.0  # seconds, on a busy machine
HOW = "install it with `apt-get install chromium` and playwright with `make browser`"
FOLDERS = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR",
           "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR")  # fmt: skip
SETTINGS = {
    # No toast over the corner of a screenshot, and no cell whose text is there only while it is in view.
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "notebook-extension/tracker": {"windowingMode": "none"},
}
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]  # fmt: skip


def chromium() -> str:
    """The browser's path; without it, or without playwright, the tests that ask are skipped."""
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("playwright is not installed: run `make browser` (and `apt-get install chromium` before it)")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    return found or pytest.skip(f"there is no chromium: {HOW}")


@contextmanager
def browsing() -> Iterator[Any]:
    """A headless chromium that can reach nothing but 127.0.0.1."""
    path = chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, headless=True, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


@dataclass(frozen=True)
class Server:
    """A running JupyterLab.

    Args:
        folder: its root.
        port: at 127.0.0.1.
        token: to be let in.
    """

    folder: Path
    port: int
    token: str

    def address(self, name: str) -> str:
        return f"http://127.0.0.1:{self.port}/{name}?token={self.token}"


@contextmanager
def serving(folder: Path, private: Path) -> Iterator[Server]:
    """A JupyterLab of `folder`, with settings of its own in `private`; it ends with whoever started it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        server = Server(folder, probe.getsockname()[1], secrets.token_hex(16))
    for name, setting in SETTINGS.items():
        path = private / "JUPYTERLAB_SETTINGS_DIR" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(setting))
    environment = {name: value for name, value in os.environ.items() if name != "MEDSHIFT_STATIC"}
    environment |= {name: str(private / name) for name in FOLDERS}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    options = {
        "ServerApp.ip": "127.0.0.1", "ServerApp.port": server.port, "ServerApp.port_retries": 0,
        "IdentityProvider.token": server.token, "ServerApp.root_dir": folder, "LabApp.news_url": "",
        "LabApp.extension_manager": "readonly", "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
    }  # fmt: skip
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += [f"--{name}={value}" for name, value in options.items()]
    if shutil.which("setpriv"):
        command = ["setpriv", "--pdeathsig", "TERM", *command]  # or server and kernels outlive tests that are killed
    with open(private / "server.log", "wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        try:
            _await_server(server, process, private / "server.log")
            yield server
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def _await_server(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    request = Request(server.address("api/status"), headers={"Authorization": f"token {server.token}"})
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and process.poll() is None:
        try:
            with urlopen(request, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text(errors='replace')[-2000:]}")


def with_parameters(notebook: Any, target: Path, **values: Any) -> Path:
    """A notebook, written to `target` with other values in its parameters cell."""
    cell = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    lines = cell.source.splitlines()
    for name, value in values.items():
        at = next(i for i, line in enumerate(lines) if line.startswith(f"{name}: "))
        lines[at] = f"{lines[at].partition(' = ')[0]} = {value!r}"
    cell.source = "\n".join(lines)
    nbformat.write(notebook, target)
    return target


def of_cells(target: Path, *cells: str) -> Path:
    """A notebook of code cells."""
    kernel = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(cell.strip()) for cell in cells], metadata={"kernelspec": kernel}
    )
    nbformat.write(notebook, target)
    return target
