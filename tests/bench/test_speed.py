"""Speeds of this machine, printed and never asserted: `make bench`."""

import resource
from collections.abc import Callable

import pytest
import torch
from measuring import Timing, in_turns

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


def timed(function: Callable[[], object], repeats: int = 5) -> Timing:
    """Turns of a function after one that is not counted."""
    return in_turns({"": function}, turns=repeats)[""]


def say(what: str, images: int, timing: Timing, unit: str) -> None:
    speed, turns = images / timing.median, timing.spread(lambda seconds: images / seconds)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"\n{what}: {speed:.3g} {unit}, turns {turns} ({torch.get_num_threads()} threads, peak so far {peak:.1f} GiB)"
    )


def test_projections() -> None:
    generator = torch.Generator().manual_seed(0)
    level = level_for(phantom(0), 220 / SIZE)
    poses = draw_trained(16, generator)
    say("projections", 16, timed(lambda: project(level, poses, SIZE)), "views/s")
    views = project(level, poses, SIZE)
    arguments = (views.line_integrals, views.open_field, poses[:, 5], "real-normal")
    say("acquisition", 16, timed(lambda: acquire(*arguments, generator=generator)), "images/s")


def test_training(tmp_path) -> None:
    network = build_network("small", n_domains=len(DOMAINS), in_channels=4)
    method = FlowMatching(network, PatchCodec(2), DOMAINS)
    images, labels = torch.randn(32, 1, SIZE, SIZE), torch.arange(32) % len(DOMAINS)
    config = TrainConfig(steps=8, checkpoint_every=100)
    times = [r.seconds for r in train(method, lambda step, generator: (images, labels), folder=tmp_path, config=config)]
    say("training, batch 32", 32, Timing(times[1:]), f"images/s in {autocast_dtype('cpu') or 'fp32'}")


@pytest.mark.parametrize("batch", [1, 8, 32])
def test_translation(batch: int) -> None:
    network = build_network("small", n_domains=len(DOMAINS), in_channels=4).eval()
    model = MedShift(network, PatchCodec(2), len(DOMAINS), DOMAINS)
    images = torch.randn(batch, 1, SIZE, SIZE)
    taken = timed(lambda: model.translate(images, 1, 3, tau=0.05), repeats=3)
    say(f"translation, batch {batch}, {model.nfe(0.05)} evaluations", batch, taken, "images/s")
