"""Ways to train the same network on the same kind of images: ours as the stage does it, and the peers' own loops.

*As released*: single precision, AdamW as torch makes it by default, every batch encoded again. *At its best*: what a
user of it could turn on by hand: bfloat16 autocast, channels-last, fused AdamW, latents encoded once. No peer draws
noise of an acquisition, for which ours pays at every step, unless its row says so.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from peers.roster import BASE, make
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from medshift.codec import KLCodec, PatchCodec
from medshift.data.domains import DOMAINS, ViewCounts, plan_views, render
from medshift.data.heads import Heads, HeadSplit
from medshift.flow_training import FlowMatching
from medshift.network import VelocityNetwork
from medshift.schedules import TrainConfig, autocast_dtype
from medshift.stages.images import RenderedImages
from medshift.train import train

RELEASED, BEST, OURS, ECHOED = "as released", "at its best", "ours", "ours, echoed"
SERVED = 2  # steps that an exposure serves where it is echoed
VIEWS = 4  # of each domain; the work of a batch does not depend on how many there are
Step = Callable[[], object]
Codec = PatchCodec | KLCodec


@dataclass
class Way:
    """One way to train.

    Args:
        basis: `OURS`, `ECHOED`, `RELEASED` or `BEST`.
        dtype: of its products.
        start: makes the optimiser step, with a network of its own.
    """

    basis: str
    dtype: torch.dtype
    start: Callable[[], Step]


def rendered(folder: Path, size: int, *, spacing: float = 2.0) -> Path:
    """A few training views of every domain, as the stage `views` writes them, of procedural heads."""
    if not (folder / "views.csv").exists():
        counts = ViewCounts(train=VIEWS, validation=2, T0=2, T1=2, T2=2, T3=2)
        heads = Heads("phantom", phantom_spacing_mm=spacing)
        render(plan_views(counts, HeadSplit(2, 2, 2), 0), heads, size, folder)
    return folder


def stepping(module: torch.nn.Module, loss: Callable[[], Tensor], *, fused: bool) -> Step:
    """An optimiser step: loss, gradient, clipping, AdamW, moving average."""
    module.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-5, weight_decay=1e-5, fused=fused)
    average = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.999))

    def step() -> None:
        loss().backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(module)

    return step


def endless(echo: int = 1) -> TrainConfig:
    """A run that is never finished, so that no checkpoint is written."""
    return TrainConfig(steps=10**6, checkpoint_every=10**6, echo=echo)


class Trainings:
    """All ways for one network, codec and size of image.

    Args:
        network: whose weights everybody starts with, on its device.
        codec: images to latents, on the same device.
        views: folder of rendered views, see `rendered`.
        batch: images of an optimiser step.
        names: of the peers, see `peers.roster`.
        place: folder of our runs, which write nothing there.
    """

    def __init__(
        self, network: VelocityNetwork, codec: Codec, views: Path, batch: int, names: tuple[str, ...], place: Path
    ) -> None:
        self.network, self.codec, self.views, self.batch, self.place = network, codec, views, batch, place
        self.device = next(network.parameters()).device
        self.dtype = autocast_dtype(self.device)
        self.generator = torch.Generator(self.device).manual_seed(0)
        self.draw = RenderedImages(views).batches(batch, str(self.device))
        self.images, self.label = self.draw(0, self.generator)
        with torch.no_grad():
            self.latents = codec.encode(self.images)
        self.names = names

    def ways(self) -> Mapping[str, Way]:
        """Name -> way, the predecessor's as released first: ratios are taken to it."""
        plain, half = torch.float32, self.dtype or torch.float32
        found = {"predecessor's way, as released": Way(RELEASED, plain, partial(self.theirs, BASE, RELEASED))}
        found["predecessor's way, at its best"] = Way(BEST, half, partial(self.theirs, BASE, BEST))
        found["the same, drawing noise and encoding every batch"] = Way(BEST, half, partial(self.theirs, BASE, OURS))
        for name, said in (("torchcfm", "torchcfm"), ("diffusers", "diffusers' U-Net")):
            if name in self.names:
                found[f"{said}, as released"] = Way(RELEASED, plain, partial(self.theirs, name, RELEASED))
                found[f"{said}, at its best"] = Way(BEST, half, partial(self.theirs, name, BEST))
        found["medshift.train, every exposure new"] = Way(OURS, half, self.ours)
        if isinstance(self.codec, KLCodec) and self.batch % SERVED == 0:  # patches cost nothing to make
            found["medshift.train, an exposure serves two steps"] = Way(ECHOED, half, partial(self.ours, SERVED))
        return found

    def ours(self, echo: int = 1) -> Step:
        """`medshift.train.train` over the stage's own batches: noise drawn and images encoded at every step.

        With ``echo`` that is done for so great a part of a batch, and the rest is of the steps before.
        """
        network = copy.deepcopy(self.network).requires_grad_(True).train()
        method = FlowMatching(network, copy.deepcopy(self.codec), DOMAINS)  # which arranges its weights otherwise
        draw = RenderedImages(self.views).batches(self.batch // echo, str(self.device))
        return partial(next, train(method, draw, folder=self.place, config=endless(echo)))

    def theirs(self, name: str, way: str) -> Step:
        """A peer's step; as `OURS` says, the fast one on batches like ours."""
        peer, quick = make(name, self.network), way != RELEASED
        codec = copy.deepcopy(self.codec)
        if quick:
            peer.module.to(memory_format=torch.channels_last)
            codec.to(memory_format=torch.channels_last)

        def loss() -> Tensor:
            latents, label = self.latents, self.label
            enabled = quick and self.dtype is not None
            with torch.autocast(self.device.type, self.dtype or torch.bfloat16, enabled=enabled):
                if way != BEST:
                    images, label = self.draw(0, self.generator) if way == OURS else (self.images, label)
                    with torch.no_grad():
                        latents = codec.encode(images)
                return peer.loss(latents, label, self.generator)

        return stepping(peer.module, loss, fused=quick and self.device.type in ("cpu", "cuda"))


def autoencoder(widths: tuple[int, ...], channels: int, device: torch.device) -> KLCodec:
    """An untrained KL autoencoder, for which encoding costs what it costs a trained one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return KLCodec.build(widths, channels).to(device).requires_grad_(False).eval()


def batches(images: Tensor, label: Tensor) -> Callable[[int, torch.Generator], tuple[Tensor, Tensor]]:
    """The same batch at every step, for trainings of which only the step is timed."""
    return lambda step, generator: (images, label)
