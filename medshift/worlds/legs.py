"""Points through a flow: sampling from noise, and the two legs of a translation.

The same three steps that `medshift.translate` takes with images, on points (B, 2) and without a codec.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from medshift.flow import Velocity, interpolate
from medshift.guidance import guided
from medshift.ode import integrate, leg_knots, time_grid
from medshift.translate import check_tau

__all__ = ["STEPS", "Legs", "from_noise", "fresh_noise", "two_legs"]

STEPS = 40  # Heun intervals on the refined grid: in these worlds an error far below any figure's line


class Legs(NamedTuple):
    """z_tau and the translation, both (B, 2)."""

    z_tau: Tensor
    out: Tensor


@torch.no_grad()
def from_noise(
    velocity: Velocity, noise: Tensor, label: int, *, steps: int = STEPS, solver: str = "heun", grid: str = "refined"
) -> list[Tensor]:
    """The states (B, 2) of particles that start as `noise` (B, 2), one at each knot of the grid, t = 0 first.

    Args:
        velocity: the field.
        noise: standard normal, where the particles start.
        label: the domain, or the null label.
        steps: intervals on [0, 1].
        solver: one of `medshift.ode.SOLVERS`.
        grid: one of `medshift.ode.GRIDS`.
    """
    knots = time_grid(grid, steps)
    return [state.x for state in integrate(velocity, noise, _labels(noise, label), knots, solver=solver)]


@torch.no_grad()
def two_legs(
    velocity: Velocity,
    x: Tensor,
    source: int,
    target: int,
    tau: float,
    *,
    guidance: tuple[float, float] = (1.0, 1.0),
    null_label: int = 2,
    steps: int = STEPS,
    solver: str = "heun",
    grid: str = "refined",
) -> Legs:
    """MedShift on points: from t = 1 back to tau under one label, forward again under the other.

    Args:
        velocity: the field.
        x: points of the source (B, 2).
        source: label of the leg to noise.
        target: label of the leg to data.
        tau: where they meet, in [0, 1].
        guidance: scale on the first and on the second leg.
        null_label: of the field.
        steps: intervals on the whole of [0, 1], of which a leg runs those above tau.
        solver: see `from_noise`.
        grid: see `from_noise`.

    Raises:
        ParameterError: tau outside [0, 1], or another argument out of its range.
    """
    knots = leg_knots(check_tau(tau), grid, steps)
    first, second = (guided(velocity, scale, null_label) for scale in guidance)
    *_, z_tau = integrate(first, x, _labels(x, source), knots[::-1], solver=solver)
    *_, out = integrate(second, z_tau.x, _labels(x, target), knots, solver=solver)
    return Legs(z_tau.x, out.x)


@torch.no_grad()
def fresh_noise(velocity: Velocity, x: Tensor, target: int, tau: float, generator: torch.Generator) -> Legs:
    """The same second leg from freshly noised points, (1-tau) ε + tau x: SDEdit on the same field.

    With the exact field its outputs have the law of `two_legs`, whatever tau; only who becomes what differs.
    """
    noise = torch.randn(x.shape, generator=generator).to(x)
    z_tau = interpolate(x, noise, torch.tensor(check_tau(tau)).to(x))
    *_, out = integrate(velocity, z_tau, _labels(x, target), leg_knots(tau, "refined", STEPS))
    return Legs(z_tau, out.x)


def _labels(x: Tensor, label: int) -> Tensor:
    return torch.full((len(x),), label, dtype=torch.int64)
