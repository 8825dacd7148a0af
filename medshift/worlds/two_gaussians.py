"""What the checks of the exercises measure: two domains in the plane, a Gaussian each, whose flows are known.

Samples of domain k that started at noise ε end at mu_k + s_k ε, exactly: a Gaussian's flow is affine.
"""

from __future__ import annotations

import torch
from torch import Tensor

from medshift.flow import Velocity
from medshift.guidance import guided
from medshift.ode import integrate, leg_knots, time_grid
from medshift.theory import Gaussian
from medshift.worlds.answers import rms
from medshift.worlds.mixture import Mixture, exact_velocity

__all__ = [
    "MEANS",
    "NULL",
    "SPREADS",
    "as_gaussians",
    "domains",
    "end_error",
    "exact_ends",
    "moved",
    "seeded",
    "spread_along",
]

MEANS, SPREADS, NULL = torch.tensor([[-1.0, 0.0], [1.0, 0.5]]), torch.tensor([0.5, 0.4]), 2


def seeded(seed: int) -> torch.Generator:
    """A generator of this seed."""
    return torch.Generator().manual_seed(seed)


def domains() -> Velocity:
    """The exact field of the two domains and, under the null label, of both together."""
    one = torch.ones(1)
    return exact_velocity([Mixture(MEANS[k : k + 1], SPREADS[k : k + 1], one) for k in range(2)])


def as_gaussians() -> list[Gaussian]:
    """The two domains as laws."""
    eye = torch.eye(2, dtype=torch.float64)
    return [Gaussian(mean.double(), float(s) ** 2 * eye) for mean, s in zip(MEANS, SPREADS, strict=True)]


def exact_ends(noise: Tensor, label: Tensor) -> Tensor:
    """Where the exact flow carries `noise` (B, 2) under labels (B,) of the two domains."""
    return MEANS[label] + SPREADS[label, None] * noise


def end_error(solver: str, steps: int) -> float:
    """The RMS distance of samples of domain 0, by equal steps from t = 0 to t = 1, from where the exact flow ends."""
    noise = torch.randn(256, 2, generator=seeded(5)).double()
    label = torch.zeros(256, dtype=torch.int64)
    *_, end = integrate(domains(), noise, label, time_grid("uniform", steps), solver=solver)
    return rms(end.x, exact_ends(noise, label))


def spread_along(velocity: Velocity) -> float:
    """The standard deviation of samples of domain 1 along the line through both domains' means."""
    noise, label = torch.randn(1000, 2, generator=seeded(8)), torch.ones(1000, dtype=torch.int64)
    *_, end = integrate(velocity, noise, label, time_grid("refined", 20))
    line = MEANS[1] - MEANS[0]
    return float((end.x @ (line / line.norm())).std())


def moved(out: float, back: float, tau: float) -> float:
    """How far (RMS) points of domain 0 come back from themselves, by guidance `out` down to tau and `back` up again."""
    label, knots = torch.zeros(400, dtype=torch.int64), leg_knots(tau, "refined", 30)
    x = exact_ends(torch.randn(400, 2, generator=seeded(9)), label)
    *_, z_tau = integrate(guided(domains(), out, NULL), x, label, knots[::-1])
    *_, end = integrate(guided(domains(), back, NULL), z_tau.x, label, knots)
    return rms(end.x, x)
