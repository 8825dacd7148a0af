"""Killed at random moments, the same command goes on and ends with what an unbroken run ends with, bit for bit."""

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from smoke import SmokeRun, command

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000), pytest.mark.xdist_group("smoke")]
MOMENTS = 32
STARTED = {"kernel": b"ipykernel", "builder": b"spawn_main"}
RESULTS = ("*.safetensors", "*.csv", "*.pdf", "*.svg")
HEADER = 8  # bytes that hold the length of a safetensors header


def children_of(runner: int, kind: bytes) -> list[int]:
    """Process numbers of what a runner started: kernels, or processes that build stages."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == runner and kind in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except (OSError, IndexError):
            continue
    return found


def hear() -> None:
    """Let SIGINT through, which a shell has its background jobs ignore."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def interrupt(process: subprocess.Popen[str], kind: str) -> None:
    """Strike once."""
    if kind in STARTED:
        for number in children_of(process.pid, STARTED[kind]):
            os.kill(number, signal.SIGKILL)
    else:
        process.send_signal(signal.SIGKILL if kind == "runner" else signal.SIGINT)


def results(out: Path) -> dict[str, bytes]:
    """What an unbroken run and a broken one have to agree in: weights, tables, figures; not logs of times.

    The library that writes tensors orders a header's metadata at random; headers are compared as JSON.
    """
    found = {}
    for path in (path for pattern in RESULTS for path in out.rglob(pattern)):
        content = path.read_bytes()
        if path.suffix == ".safetensors":
            end = HEADER + int.from_bytes(content[:HEADER], "little")
            content = json.dumps(json.loads(content[HEADER:end]), sort_keys=True).encode() + content[end:]
        found[str(path.relative_to(out))] = content
    return found


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds kernels through /proc")
def test_random_moments(tmp_path: Path) -> None:
    only = ["paper", "--profile", "smoke", "--only", "01,03", "--out"]
    whole = tmp_path / "whole"
    subprocess.run(command(*only, str(whole)), check=True, capture_output=True)
    rng, out, codes, struck = random.Random(7), tmp_path / "broken", [], 0
    kinds = ["kernel", "runner", "interrupt", "builder"] * (MOMENTS // 4)
    while struck < MOMENTS:
        process = subprocess.Popen(command(*only, str(out)), stderr=subprocess.PIPE, text=True, preexec_fn=hear)
        try:
            process.wait(timeout=rng.uniform(0.3, 16.0))
        except subprocess.TimeoutExpired:
            interrupt(process, kinds[struck])
            struck += 1
        error = process.communicate(timeout=600)[1]
        codes.append(process.returncode)
        assert process.returncode in (0, 5, 130, -9), error
        assert (process.returncode != 5) or "kernel died" in error or "process died" in error
        build = out / "build" / "smoke"
        for notebook in build.glob("0*_*[a-z].ipynb"):
            receipt = build / f"{notebook.stem}.receipt.json"
            assert notebook.name.count(".") > 1 or receipt.is_file() or process.returncode == -9
        if process.returncode == 0 and struck < MOMENTS:  # so that there is something left to interrupt
            for path in [*build.glob("03_*"), *(out / "runs" / "smoke").glob("network-*")]:
                subprocess.run(["rm", "-rf", str(path)], check=True)
    subprocess.run(command(*only, str(out)), check=True, capture_output=True)
    assert {5, 130, -9} <= set(codes), f"every kind of blow should land at least once: {codes}"
    assert results(out) == results(whole)
    assert not list(out.rglob("*.partial")) and not list(out.rglob("*.tmp.ipynb"))


def test_two_runners_at_once_on_one_folder(smoke_run: SmokeRun, tmp_path: Path) -> None:
    words = command("paper", "--profile", "smoke", "--only", "03", "--out", str(tmp_path))
    both = []
    for _ in range(2):
        both.append(subprocess.Popen(words, stderr=subprocess.PIPE, text=True))
        time.sleep(0.2)
    errors = [process.communicate(timeout=900)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    assert any("waiting for another process" in error for error in errors)
    name = "build/smoke/figures/03_matrix.pdf"
    assert (tmp_path / name).read_bytes() == (smoke_run.out / name).read_bytes()
    assert len(list((tmp_path / "runs" / "smoke").glob("network-*/config.json"))) == 1
