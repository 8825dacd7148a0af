"""A run that is stopped and started again ends with the same weights, bit for bit."""

import os
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

STEPS = 60


def flipped(step: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Eight smooth images under random flips and noise, with their labels: the augmentation is part of the law."""
    pool = torch.randn(32, 1, 16, 16, generator=torch.Generator().manual_seed(1)).cumsum(2).cumsum(3) / 16
    index = torch.randint(len(pool), (8,), generator=generator)
    images = pool[index]
    flip = torch.rand(8, generator=generator) < 0.5
    images = torch.where(flip[:, None, None, None], images.flip(3), images)
    return images + 0.05 * torch.randn(images.shape, generator=generator), index % 2


def run(folder: Path | str, *, steps: int = STEPS, stop: int | None = None) -> None:
    """Train a tiny MedShift in `folder`: bfloat16 autocast, moving average, one-cycle schedule, clipping, dropout."""
    torch.manual_seed(0)
    network = build_network("smoke", n_domains=2, in_channels=4, dropout=0.1)
    method = FlowMatching(network, PatchCodec(2), ["a", "b"], learning_rate=2e-3)
    config = TrainConfig(steps=steps, precision="bf16", checkpoint_every=5, accumulation=2, ema_decay=0.99)
    for record in train(method, flipped, folder=folder, config=config):
        if record.step == stop:
            return


def _hashes(folder: Path) -> dict[str, str]:
    held = checkpoint.load(folder)
    return {"step": str(held.step)} | {stem: checkpoint.weights_sha256(t) for stem, t in held.tensors.items()}


def test_stopped_runs_end_as_the_unbroken_one(tmp_path):
    run(tmp_path / "unbroken", steps=20)
    for stop in (3, 7, 12):  # off the checkpoints: some steps are done twice
        run(tmp_path / "broken", steps=20, stop=stop)
    assert checkpoint.load(tmp_path / "broken").step < 20
    run(tmp_path / "broken", steps=20)
    assert _hashes(tmp_path / "broken") == _hashes(tmp_path / "unbroken")
    assert load_flow(tmp_path / "broken").sha256 == load_flow(tmp_path / "unbroken").sha256


# The child of the slow test: it kills itself with SIGKILL, after so many seconds of training or at the n-th of the
# system calls that make up the writing of checkpoints.
CHILD = """
import os, signal, sys, threading
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
test_resume.run({folder!r})
"""


def _child(folder: Path, where: str, number: float) -> int:
    code = CHILD.format(tests=str(Path(__file__).parent), where=where, number=number, folder=str(folder))
    return subprocess.run([sys.executable, "-c", code], timeout=280, capture_output=True, env={**os.environ}).returncode


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_runs_killed_at_ten_moments_end_as_the_unbroken_one(tmp_path):
    assert _child(tmp_path / "unbroken", "never", 0) == 0
    dice = random.Random(0)
    # A checkpoint is seven calls of fsync (five files, two folders) and one or two of rename.
    kills = [("fsync", dice.randint(1, 7)), ("rename", 1), ("fsync", dice.randint(8, 14)), ("fsync", 7), ("rename", 2)]
    kills += [("time", dice.uniform(0.05, 1.5)) for _ in range(5)]
    dice.shuffle(kills)
    seen = []
    for where, number in kills:
        code = _child(tmp_path / "broken", where, number)
        held = checkpoint.latest(tmp_path / "broken")
        partial = list((tmp_path / "broken").glob("*.partial"))
        seen.append((where, code, held and held.name, len(partial)))
        assert code == -signal.SIGKILL, seen
        if held:
            assert checkpoint.load(held).step % 5 == 0  # what is there under its name is whole
    assert sum(where != "time" for where, *_ in seen) >= 3
    assert sum(partial > 0 for *_, partial in seen) >= 3, seen
    assert _child(tmp_path / "broken", "never", 0) == 0
    assert _hashes(tmp_path / "broken") == _hashes(tmp_path / "unbroken")
    assert sorted(path.name for path in (tmp_path / "broken").iterdir()) == ["step-00000055", "step-00000060"]
