"""Speeds of this machine, printed and never asserted: `make bench`."""

import resource
import time
from collections.abc import Callable

import pytest
import torch

from medshift.codec import PatchCodec
from medshift.data.acquisition import acquire
from medshift.data.domains import DOMAINS
from medshift.data.phantom import phantom
from medshift.data.projection import level_for, project
from medshift.data.views import draw_trained
from medshift.flow_training import FlowMatching
from medshift.network import build_network
from medshift.schedules import TrainConfig, autocast_dtype
from medshift.train import train
from medshift.translate import MedShift

pytestmark = [pytest.mark.bench, pytest.mark.slow, pytest.mark.timeout(900)]
SIZE = 64


def seconds(function: Callable[[], object], repeats: int = 5) -> float:
    """The median of ``repeats`` timed calls after one that is not counted."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return sorted(times)[repeats // 2]


def say(what: str, value: float, unit: str) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\n{what}: {value:.3g} {unit} ({torch.get_num_threads()} threads, peak memory so far {peak:.1f} GiB)")


def test_projections() -> None:
    generator = torch.Generator().manual_seed(0)
    level = level_for(phantom(0), 220 / SIZE)
    poses = draw_trained(16, generator)
    say("projections", 16 / seconds(lambda: project(level, poses, SIZE)), "views/s")
    views = project(level, poses, SIZE)
    arguments = (views.line_integrals, views.open_field, poses[:, 5], "real-normal")
    say("acquisition", 16 / seconds(lambda: acquire(*arguments, generator=generator)), "images/s")


def test_training(tmp_path) -> None:
    network = build_network("small", n_domains=len(DOMAINS), in_channels=4)
    method = FlowMatching(network, PatchCodec(2), DOMAINS)
    images, labels = torch.randn(32, 1, SIZE, SIZE), torch.arange(32) % len(DOMAINS)
    config = TrainConfig(steps=8, checkpoint_every=100)
    times = [r.seconds for r in train(method, lambda step, generator: (images, labels), folder=tmp_path, config=config)]
    say(
        "training, batch 32",
        32 / sorted(times[1:])[len(times) // 2 - 1],
        f"images/s in {autocast_dtype('cpu') or 'fp32'}",
    )


@pytest.mark.parametrize("batch", [1, 8, 32])
def test_translation(batch: int) -> None:
    network = build_network("small", n_domains=len(DOMAINS), in_channels=4).eval()
    model = MedShift(network, PatchCodec(2), len(DOMAINS), DOMAINS)
    images = torch.randn(batch, 1, SIZE, SIZE)
    taken = seconds(lambda: model.translate(images, 1, 3, tau=0.05), repeats=3)
    say(f"translation, batch {batch}, {model.nfe(0.05)} evaluations", batch / taken, "images/s")
