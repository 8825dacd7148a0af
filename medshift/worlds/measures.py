"""What is measured in a world: densities on a lattice, errors of solvers, spreads, the noise that Euler loses,
CDTSDE's mean path.

What is measured on points has its known answer beside it: the order of a solver, the spread of the tilted law, the gain
of an Euler leg.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from medshift.domain_shift import ShiftSchedule, marginal_mean
from medshift.flow import Velocity
from medshift.mixing_field import modulated
from medshift.ode import integrate, stages, time_grid
from medshift.theory import mode_retention
from medshift.worlds.gallery import coloured
from medshift.worlds.legs import two_legs
from medshift.worlds.mixture import Mixture, exact_velocity

__all__ = [
    "Lattice",
    "ShiftPath",
    "colour_kept",
    "density",
    "fitted_order",
    "lattice",
    "lost_noise",
    "rms",
    "shift_path",
    "solver_errors",
    "spread_of",
    "tilted",
]


class Lattice(NamedTuple):
    """A function on a square lattice: coordinates of either axis (G,), values (G, G), rows along the second axis."""

    axis: np.ndarray
    values: np.ndarray


def lattice(limit: float = 3.2, n: int = 81) -> Tensor:
    """The lattice's points (n², 2), float64, on [-limit, limit]²; row by row upwards."""
    axis = torch.linspace(-limit, limit, n, dtype=torch.float64)
    return torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).reshape(-1, 2)


def density(law: Mixture, t: float = 1.0, *, limit: float = 3.2, n: int = 81) -> Lattice:
    """p_t on a lattice."""
    values = law.log_density(lattice(limit, n), t).exp().reshape(n, n)
    return Lattice(np.linspace(-limit, limit, n), values.numpy())


def tilted(domains: Sequence[Mixture], label: int, w: float, *, limit: float = 4.0, n: int = 161) -> Lattice:
    """The law that guidance is often taken to sample, p(x | c)^w p(x)^(1-w) normalised on the lattice."""
    points = lattice(limit, n)
    log = w * domains[label].log_density(points) + (1 - w) * Mixture.joined(domains).log_density(points)
    values = log.softmax(0).reshape(n, n) / (2 * limit / (n - 1)) ** 2
    return Lattice(np.linspace(-limit, limit, n), values.numpy())


def spread_of(law: Tensor | Lattice) -> float:
    """√E ‖x - E x‖² of points (N, 2), or of a density on a lattice."""
    if isinstance(law, Tensor):
        return float((law - law.mean(0)).square().sum(1).mean().sqrt())
    x, y = np.meshgrid(law.axis, law.axis)
    share = law.values / law.values.sum()
    mean = (share * x).sum(), (share * y).sum()
    return float(np.sqrt((share * ((x - mean[0]) ** 2 + (y - mean[1]) ** 2)).sum()))


def rms(a: Tensor, b: Tensor) -> float:
    """√ mean ‖a - b‖² of points (N, 2)."""
    return float((a - b).square().sum(1).mean().sqrt())


@torch.no_grad()
def solver_errors(
    velocity: Velocity,
    noise: Tensor,
    label: int,
    counts: Sequence[int],
    solvers: Sequence[str] = ("euler", "midpoint", "heun"),
) -> pd.DataFrame:
    """How far particles end from where the exact flow takes them, on equal steps in double precision.

    The reference is dopri5 at a tolerance of 1e-9.

    Args:
        velocity: the field.
        noise: where particles start (N, 2).
        label: the domain.
        counts: numbers of steps.
        solvers: see `medshift.ode.SOLVERS`; not dopri5.

    Returns:
        Columns solver, steps, evaluations (of the field), error (RMS distance at t = 1).
    """
    x, labels = noise.double(), torch.full((len(noise),), label)
    *_, reference = integrate(velocity, x, labels, (0.0, 1.0), solver="dopri5", tolerance=1e-9)
    rows = []
    for solver in solvers:
        for steps in counts:
            *_, end = integrate(velocity, x, labels, time_grid("uniform", steps), solver=solver)
            rows.append((solver, steps, steps * stages(solver), rms(end.x, reference.x)))
    return pd.DataFrame(rows, columns=["solver", "steps", "evaluations", "error"])


def fitted_order(steps: Sequence[int], errors: Sequence[float], last: int = 3) -> float:
    """The order p of error ∝ steps^-p, by least squares in logarithms over the most numerous steps."""
    finest = np.argsort(steps)[-last:]
    return float(-np.polyfit(np.log(np.asarray(steps)[finest]), np.log(np.asarray(errors)[finest]), 1)[0])


def lost_noise(
    spreads: Sequence[float], counts: Sequence[int], tau: float, solvers: Sequence[str] = ("euler", "heun")
) -> pd.DataFrame:
    """What a translation A to A by the exact field keeps of a spread: in closed form, and measured on 500 points.

    The points are domain A's of `coloured`. Their colour is one Gaussian whatever the anatomy, so what is kept of its
    standard deviation is `medshift.theory.mode_retention` to the last digit.

    Args:
        spreads: standard deviations of the colour.
        counts: numbers of equal steps on [0, 1].
        tau: where the legs meet.
        solvers: of both legs.

    Returns:
        Columns solver, spread, steps, exact, measured.
    """
    rows = []
    for solver, s, steps in product(solvers, spreads, counts):
        domains = coloured(s).domains
        x = domains[0].sample(500, torch.Generator().manual_seed(0)).double()
        exact = float(
            mode_retention(torch.tensor([s], dtype=torch.float64), tau, solver=solver, grid="uniform", steps=steps)
        )
        rows.append((solver, s, steps, exact, colour_kept(exact_velocity(domains), x, tau, steps=steps, solver=solver)))
    return pd.DataFrame(rows, columns=["solver", "spread", "steps", "exact", "measured"])


def colour_kept(velocity: Velocity, x: Tensor, tau: float, *, steps: int, solver: str = "euler") -> float:
    """Standard deviation of the vertical coordinate after a translation A to A on equal steps, over that before."""
    out = two_legs(velocity, x, 0, 0, tau, steps=steps, solver=solver, grid="uniform").out
    return float(out[:, 1].std() / x[:, 1].std())


class ShiftPath(NamedTuple):
    """CDTSDE's law of x_t between one source and one target, at T times from 0 to t_1.

    Attributes:
        t: times (T,), in units of t_1.
        mixing: Λ of either coordinate (T, 2).
        shifted: Λ y + (1 - Λ) x_0 (T, 2).
        mean: a_t times that, the mean of x_t (T, 2).
        noise: σ_t (T,).
    """

    t: np.ndarray
    mixing: np.ndarray
    shifted: np.ndarray
    mean: np.ndarray
    noise: np.ndarray


def shift_path(source: Sequence[float], target: Sequence[float], g: Sequence[float], *, every: int = 10) -> ShiftPath:
    """CDTSDE's path from a target point (2,) at t = 0 to a source point (2,) at t_1, in a latent of two pixels.

    Args:
        source: y.
        target: x_0.
        g: modulation of either coordinate, in (-1, 1); twice 0 is the straight path.
        every: unit times between two of the T.
    """
    schedule = ShiftSchedule()
    times = torch.arange(0, schedule.last + 1, every)
    y, x0, modulation = (torch.tensor(v, dtype=torch.float64).reshape(1, 1, 1, 2) for v in (source, target, g))
    mixing = modulated(schedule.mixing(times), modulation)
    alpha = schedule.signal(times).reshape(-1, 1, 1, 1)
    shifted = marginal_mean(x0, y, lam=mixing, alpha=torch.ones_like(alpha))
    mean = marginal_mean(x0, y, lam=mixing, alpha=alpha)
    lam, moved, centre = (part.reshape(-1, 2).numpy() for part in (mixing, shifted, mean))
    return ShiftPath(times.numpy() / schedule.last, lam, moved, centre, schedule.noise(times).numpy())
