"""A run that is stopped and started again ends with the same weights, bit for bit."""

import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from medshift import checkpoint
from medshift.codec import PatchCodec
from medshift.flow_training import FlowMatching, load_flow
from medshift.network import build_network
from medshift.train import TrainConfig, train

STEPS = 100


def flipped(step: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Eight smooth images under random flips and noise, with their labels: the augmentation is part of the law."""
    pool = torch.randn(32, 1, 16, 16, generator=torch.Generator().manual_seed(1)).cumsum(2).cumsum(3) / 16
    index = torch.randint(len(pool), (8,), generator=generator)
    images = pool[index]
    flip = torch.rand(8, generator=generator) < 0.5
    images = torch.where(flip[:, None, None, None], images.flip(3), images)
    return images + 0.05 * torch.randn(images.shape, generator=generator), index % 2


def run(folder: Path | str, *, steps: int = STEPS, stop: int | None = None, echo: int = 1) -> None:
    """Train a tiny MedShift in `folder`: autocast, moving average, one-cycle schedule, clipping, dropout."""
    torch.manual_seed(0)
    network = build_network("smoke", n_domains=2, in_channels=4, dropout=0.1)
    method = FlowMatching(network, PatchCodec(2), ["a", "b"], learning_rate=2e-3)
    config = TrainConfig(steps=steps, checkpoint_every=5, accumulation=2, ema_decay=0.99, echo=echo)
    for record in train(method, flipped, folder=folder, config=config):
        if record.step == stop:
            return


def _hashes(folder: Path) -> dict[str, str]:
    held = checkpoint.load(folder)
    return {"step": str(held.step)} | {stem: checkpoint.weights_sha256(t) for stem, t in held.tensors.items()}


@pytest.mark.parametrize("echo", [1, 3])
def test_stopped_runs_end_as_the_unbroken_one(tmp_path, echo):
    run(tmp_path / "unbroken", steps=20, echo=echo)
    for stop in (3, 7, 12):  # off the checkpoints: some steps are done twice
        run(tmp_path / "broken", steps=20, stop=stop, echo=echo)
    assert checkpoint.load(tmp_path / "broken").step < 20
    run(tmp_path / "broken", steps=20, echo=echo)
    assert _hashes(tmp_path / "broken") == _hashes(tmp_path / "unbroken")
    assert load_flow(tmp_path / "broken").sha256 == load_flow(tmp_path / "unbroken").sha256


# The child of the slow test: it kills itself with SIGKILL, after so many seconds of training or at the n-th of the
# system calls that make up the writing of checkpoints.
CHILD = """
import os, signal, sys, threading, time
sys.path.insert(0, {tests!r})
import test_resume

def die():
    os.kill(os.getpid(), signal.SIGKILL)

where, number = {where!r}, {number!r}
if where == "time":
    threading.Timer(number, die).start()
elif where != "never":
    call, count = getattr(os, where), 0
    def counted(*arguments):
        global count
        count += 1
        if count == number:
            die()
        return call(*arguments)
    setattr(os, where, counted)
start = time.monotonic()
test_resume.run({folder!r})
print(time.monotonic() - start)
"""


def _child(folder: Path, where: str, number: float) -> subprocess.CompletedProcess[str]:
    code = CHILD.format(tests=str(Path(__file__).parent), where=where, number=number, folder=str(folder))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_runs_killed_at_ten_moments_end_as_the_unbroken_one(tmp_path):
    unbroken = _child(tmp_path / "unbroken", "never", 0)
    seconds = float(unbroken.stdout)
    dice = random.Random(0)
    # A checkpoint is seven calls of fsync, five files and two folders, and one of rename (two, where an old one goes).
    kills: list[tuple[str, float]] = [("fsync", 2), ("rename", 1), ("fsync", 11), ("fsync", 6), ("rename", 2)]
    kills += [("time", dice.uniform(0.01, 0.12) * seconds) for _ in range(5)]
    dice.shuffle(kills)
    inside = 0
    for where, number in kills:
        child = _child(tmp_path / "broken", where, number)
        assert child.returncode == -signal.SIGKILL, child.stderr
        inside += bool(list((tmp_path / "broken").glob("*.partial")))
        if held := checkpoint.latest(tmp_path / "broken"):
            assert checkpoint.load(held).step % 5 == 0  # what stands there under its name is whole
    assert inside >= 3
    assert _child(tmp_path / "broken", "never", 0).returncode == 0
    assert _hashes(tmp_path / "broken") == _hashes(tmp_path / "unbroken")
    last = [f"step-{step:08d}" for step in (STEPS - 5, STEPS)]
    assert sorted(path.name for path in (tmp_path / "broken").iterdir()) == last
