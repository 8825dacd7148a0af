"""The flow-matching loss on unseen heads, with the same images, noises and times at every look.

Fixed draws make a curve of ten looks readable: what moves between two of them is the network, not the sampling.
"""

from __future__ import annotations

from pathlib import Path

import torch

from medshift.codec import KLCodec, PatchCodec
from medshift.data.domains import DOMAINS, EvaluationSet
from medshift.flow import Velocity, interpolate, velocity_target
from medshift.ode import at_time

VIEWS, TIMES, SEED = 24, 4, 20_24


class ValidationLoss:
    """Mean squared error of the velocity on validation views, by head.

    The times are the middles of four equal strata of [0, 1], so the loss is that of a uniform law of times, whatever
    law a network was trained under; networks of different laws can be compared by it.

    Args:
        views: folder of the stage ``views``.
        codec: images to latents; its device is where losses are computed.
    """

    def __init__(self, views: Path, codec: PatchCodec | KLCodec):
        some = EvaluationSet(views, "validation", limit=VIEWS)
        self.device = codec.mean.device
        self.heads = some.table["head"].tolist() * len(DOMAINS)
        generator = torch.Generator().manual_seed(SEED)
        with torch.no_grad():
            images = torch.cat([some.exposure(domain, 0) for domain in DOMAINS])
            self.latents = codec.encode(images.to(self.device))
        self.noise = torch.randn(self.latents.shape, generator=generator).to(self.device)
        self.labels = torch.arange(len(DOMAINS)).repeat_interleave(len(some)).to(self.device)

    @torch.no_grad()
    def __call__(self, velocity: Velocity) -> dict[str, float]:
        """Head -> loss, over domains and times; the caller's random numbers stay as they are."""
        target = velocity_target(self.latents, self.noise)
        errors = torch.zeros(len(self.latents), device=self.device)
        for k in range(TIMES):
            t = at_time((k + 0.5) / TIMES, self.latents)
            x = interpolate(self.latents, self.noise, t)
            parts = [velocity(a, t, b) for a, b in zip(x.split(40), self.labels.split(40), strict=True)]
            errors += (torch.cat(parts) - target).square().flatten(1).mean(dim=1) / TIMES
        by_head: dict[str, list[float]] = {}
        for head, error in zip(self.heads, errors.tolist(), strict=True):
            by_head.setdefault(str(head), []).append(error)
        return {head: round(sum(values) / len(values), 6) for head, values in by_head.items()}
