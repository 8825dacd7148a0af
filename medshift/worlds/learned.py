r"""A small network that learns the velocity of a world, and its distance to the exact one.

The flow-matching loss has two parts,

    E ‖v_θ - v‖² = E ‖v_θ(x_t, t) - v*(x_t, t)‖² + E ‖v - v*(x_t, t)‖²,

with v* the marginal velocity. The second does not depend on the network: several targets lie behind one x_t, and no
field can serve them all. So a loss that stops falling far above 0 may still belong to a perfect network; what tells is
the first part, and in a world with a closed form it can be measured (`field_error`), as can the second (`loss_floor`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from medshift.errors import ParameterError
from medshift.flow import Velocity, flow_matching_loss, interpolate, velocity_target
from medshift.worlds.mixture import Mixture, exact_velocity

__all__ = ["LearnedVelocity", "Snapshot", "field_error", "loss_floor", "train"]

WAVES = 6  # of time, as sines and cosines: half a period up to three periods over [0, 1]

LABEL_DROPOUT = 0.2  # a fifth of the samples teaches the null label


class LearnedVelocity(nn.Module):
    """A velocity(x, t, label): three hidden layers on the point, waves of time and the label's embedding.

    Args:
        n_domains: label ``n_domains`` is the null label.
        width: of the hidden layers.
        seed: of the first weights.
    """

    def __init__(self, n_domains: int, *, width: int = 128, seed: int = 0) -> None:
        super().__init__()
        self.n_domains = n_domains
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.label = nn.Embedding(n_domains + 1, 16)
            layers: list[nn.Module] = [nn.Linear(2 + 2 * WAVES + 16, width), nn.SiLU()]
            for _ in range(2):
                layers += [nn.Linear(width, width), nn.SiLU()]
            self.layers = nn.Sequential(*layers, nn.Linear(width, 2))

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """v (B, 2) of points x (B, 2), times t () or (B,) and labels (B,)."""
        phase = math.pi * t.to(x).reshape(-1, 1) * torch.arange(1, WAVES + 1).to(x)
        waves = torch.cat([phase.sin(), phase.cos()], 1).expand(len(x), -1)
        return self.layers(torch.cat([x, waves, self.label(label)], 1))


class Snapshot(NamedTuple):
    """Where training is.

    Attributes:
        step: steps done.
        loss: mean loss of the steps since the snapshot before; NaN at step 0.
        velocity: a copy of the network as it was, which records no gradients.
    """

    step: int
    loss: float
    velocity: LearnedVelocity


def train(
    velocity: LearnedVelocity,
    domains: Sequence[Mixture],
    *,
    steps: int,
    batch: int = 512,
    seed: int = 0,
    every: int = 50,
    learning_rate: float = 1e-2,
    label_dropout: float = LABEL_DROPOUT,
) -> Iterator[Snapshot]:
    """Train a network in place on fresh samples of all domains, yielding a snapshot before, between and after.

    Adam, the learning rate falling to 0 along half a cosine, on `medshift.flow.flow_matching_loss`.

    Args:
        velocity: trained in place.
        domains: label k is the k-th; each sample's label is drawn with equal chances.
        steps: of the optimiser.
        batch: samples a step.
        seed: of samples, noise, times and dropped labels.
        every: steps between snapshots; the last step has one whatever `every` says.
        learning_rate: at the start.
        label_dropout: probability that a sample trains the null label.

    Raises:
        ParameterError: not as many domains as the network has labels for, or `steps`, `batch` or `every` below 1.
    """
    if len(domains) != velocity.n_domains or min(steps, batch, every) < 1:
        raise ParameterError(
            f"{len(domains)} domains for a network of {velocity.n_domains}, steps {steps}, batch {batch}, "
            f"every {every}; expected as many domains and numbers of 1 or more."
        )
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(velocity.parameters(), lr=learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    yield Snapshot(0, math.nan, copy.deepcopy(velocity).requires_grad_(False))
    losses: list[float] = []
    for step in range(1, steps + 1):
        x1, label = sample_domains(domains, batch, generator)
        loss = flow_matching_loss(velocity, x1, label, generator, null_label=len(domains), label_dropout=label_dropout)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if step % every == 0 or step == steps:
            yield Snapshot(step, sum(losses) / len(losses), copy.deepcopy(velocity).requires_grad_(False))
            losses = []


def sample_domains(domains: Sequence[Mixture], n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points (n, 2) and their labels (n,), each label with equal chances."""
    label = torch.randint(len(domains), (n,), generator=generator)
    points = torch.stack([domain.sample(n, generator) for domain in domains])
    return points[label, torch.arange(n)], label


@torch.no_grad()
def field_error(velocity: Velocity, domains: Sequence[Mixture], label: int, *, n: int = 20_000, seed: int = 0) -> float:
    """RMS difference of a velocity to the exact one under a label, √E ‖v_θ(x_t, t) - v*(x_t, t)‖².

    The mean is over t uniform in [0, 1] and x_t from that label's law at t, the same weights as the loss has. Its unit
    is that of velocities, world units per unit of time, and n samples give it to about 1 in √n.

    Args:
        velocity: the field to judge.
        domains: of the world.
        label: 0..len(domains), the last being the null label.
        n: Monte-Carlo samples.
        seed: of these.
    """
    x_t, t, labels, _ = _noised(domains, label, n, seed)
    return float((velocity(x_t, t, labels) - exact_velocity(domains)(x_t, t, labels)).square().sum(1).mean().sqrt())


@torch.no_grad()
def loss_floor(
    domains: Sequence[Mixture], *, label_dropout: float = LABEL_DROPOUT, n: int = 20_000, seed: int = 0
) -> float:
    """The loss of `train` at the exact field, which no network goes below but by chance, by n samples a label."""
    shares = [(1 - label_dropout) / len(domains)] * len(domains) + [label_dropout]
    exact, floor = exact_velocity(domains), 0.0
    for label, share in enumerate(shares):
        x_t, t, labels, target = _noised(domains, label, n, seed)
        floor += share * float((exact(x_t, t, labels) - target).square().mean())
    return floor


def _noised(domains: Sequence[Mixture], label: int, n: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x_t (n, 2), t (n,), labels (n,) and the path's velocity (n, 2), t in equal strata."""
    generator = torch.Generator().manual_seed(seed)
    law = Mixture.joined(domains) if label == len(domains) else domains[label]
    x1, noise = law.sample(n, generator), torch.randn(n, 2, generator=generator)
    t = (torch.arange(n) + torch.rand(n, generator=generator)) / n
    return interpolate(x1, noise, t), t, torch.full((n,), label), velocity_target(x1, noise)
