r"""Who goes with whom: optimal transport, the static Schrödinger bridge, and MedShift, on two finite sets.

A coupling of x_i with y_j is a plan P (n, m), the mass that goes from each to each, with rows of sum 1/n and columns
of sum 1/m. Three are compared by their cost Σ P_ij ‖x_i - y_j‖² and by how far their second marginal is from a fresh
sample of the target:

* *optimal transport* has the least cost of all;
* the *static Schrödinger bridge* of Brownian motion dX = σ dW over unit time is the plan nearest in KL to its
  endpoints' law, ∝ exp(-‖x - y‖² / 2σ²); this is entropic transport, min Σ P ‖x - y‖² + ε Σ P log P, with
  ε = 2σ². As σ → 0 it becomes optimal transport, as σ → ∞ independence;
* *MedShift* at tau is a map, x to out(x). At tau = 0 and with the exact field it is a coupling of the two laws, but
  neither of the two above. At tau > 0 it is no coupling of the two: its outputs' law is not the target's, so a cost
  below that of optimal transport is no triumph but a way not gone.

References:
    Léonard, A survey of the Schrödinger problem and some of its connections with optimal transport, 2014.
    Cuturi, Sinkhorn Distances, 2013, arXiv:1306.0895. Flamary et al., POT, JMLR 22, 2021.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from medshift.errors import ParameterError
from medshift.flow import Velocity
from medshift.worlds.gallery import Coloured
from medshift.worlds.legs import fresh_noise, two_legs

__all__ = ["Coupling", "as_table", "bridge_plan", "compared", "marginal_error", "optimal_plan", "plan_cost"]

PROJECTIONS = 50  # of the sliced distance, the same ones for every pair of sets
FRESH = 2  # times as many points has the sample that outputs are judged by
SLACK = 1e-3  # in L1: what a plan's first marginal may lack after Sinkhorn's last iteration


@dataclass(frozen=True)
class Coupling:
    """Sources with one partner each, for a picture, and what the whole coupling costs.

    Attributes:
        name: as it stands in the table.
        x: sources (n, 2).
        y: a map's values, or of a plan one target for each source, drawn from its row (n, 2).
        cost: Σ P ‖x - y‖² of the whole plan.
        changed: share of the mass that changes its anatomy.
        error: sliced W2 of the second marginal to a fresh sample of the target.
    """

    name: str
    x: Tensor
    y: Tensor
    cost: float
    changed: float
    error: float


def optimal_plan(x: Tensor, y: Tensor) -> Tensor:
    """The plan (n, m) of least Σ P ‖x - y‖² between equal weights on points (n, 2) and (m, 2); exact, by POT."""
    import ot

    return torch.from_numpy(ot.emd([], [], _squared(x, y).numpy()))


def bridge_plan(x: Tensor, y: Tensor, sigma: float) -> Tensor:
    """The static Schrödinger bridge (n, m) of Brownian motion with standard deviation σ at t = 1; by POT's Sinkhorn.

    Raises:
        ParameterError: σ is not above 0, or so small that Sinkhorn's iteration does not settle.
    """
    import ot

    if not 0 < sigma < math.inf:
        raise ParameterError(f"sigma is {sigma}; a bridge needs a number above 0. optimal_plan is its limit at 0.")
    n, m = len(x), len(y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of not having converged, which is checked below
        cost, epsilon = _squared(x, y).numpy(), 2 * sigma**2
        # In logarithms where exp(-cost / epsilon) would underflow, which takes a hundred times as long.
        how = "sinkhorn" if cost.max() < 500 * epsilon else "sinkhorn_log"
        made = ot.sinkhorn([1 / n] * n, [1 / m] * m, cost, epsilon, how, 3000, 1e-7)
    plan = torch.as_tensor(made)
    if not float((plan.sum(1) - 1 / n).abs().sum() + (plan.sum(0) - 1 / m).abs().sum()) < SLACK:
        raise ParameterError(f"Sinkhorn's iteration has not settled at sigma = {sigma:g}; take a larger one.")
    return plan


def plan_cost(plan: Tensor, x: Tensor, y: Tensor) -> float:
    """Σ P ‖x - y‖², with the plan's mass taken as 1."""
    return float((plan * _squared(x, y)).sum() / plan.sum())


def marginal_error(made: Tensor, fresh: Tensor, weights: Tensor | None = None) -> float:
    """Sliced Wasserstein-2 distance between points (n, 2), of these weights if given, and a fresh sample (m, 2)."""
    import ot

    a = None if weights is None else (weights / weights.sum()).double().numpy()
    return float(
        ot.sliced_wasserstein_distance(
            made.double().numpy(), fresh.double().numpy(), a=a, n_projections=PROJECTIONS, p=2, seed=0
        )
    )


def compared(
    world: Coloured,
    velocities: Mapping[str, Velocity],
    *,
    n: int = 256,
    taus: Sequence[float] = (0.0, 0.3),
    sigmas: Sequence[float] = (0.5, 1.0),
    seed: int = 0,
) -> list[Coupling]:
    """Couplings of n points of A with n of B: each kind above, independence, and fresh noise at the last tau.

    The last entry is the floor: another sample of B in place of an output, without cost or change (NaN).

    Args:
        world: the two domains.
        velocities: the fields that MedShift integrates, by name; the first starts from fresh noise too.
        n: points of either.
        taus: of MedShift.
        sigmas: of the bridges.
        seed: of all samples.
    """
    generator = torch.Generator().manual_seed(seed)
    a, b = world.domains
    x, y, other = (law.sample_evenly(n, generator) for law in (a, b, b))
    fresh = b.sample_evenly(FRESH * n, generator)
    plans = {"optimal transport": optimal_plan(x, y)}
    plans |= {f"Schrödinger bridge, σ = {sigma:g}": bridge_plan(x, y, sigma) for sigma in sigmas}
    plans["independent"] = torch.full((n, n), 1 / n**2, dtype=torch.float64)
    other_anatomy = (world.anatomy(x, 0)[:, None] != world.anatomy(y, 1)).double()
    made = []
    for name, plan in plans.items():
        partner = y[torch.multinomial(plan, 1, generator=generator)[:, 0]]
        changed = float((plan * other_anatomy).sum() / plan.sum())
        error = marginal_error(y, fresh, plan.sum(0))
        made.append(Coupling(name, x, partner, plan_cost(plan, x, y), changed, error))
    outputs = {
        f"MedShift {name}, τ = {tau:g}": two_legs(v, x, 0, 1, tau).out for name, v in velocities.items() for tau in taus
    }
    first = next(iter(velocities))
    fresh_out = fresh_noise(velocities[first], x, 1, taus[-1], generator).out
    outputs[f"fresh noise {first}, τ = {taus[-1]:g}"] = fresh_out
    for name, out in outputs.items():
        cost = float((x - out).square().sum(1).mean())
        changed = float((world.anatomy(x, 0) != world.anatomy(out, 1)).double().mean())
        made.append(Coupling(name, x, out, cost, changed, marginal_error(out, fresh)))
    return [*made, Coupling("B itself", other, other, math.nan, math.nan, marginal_error(other, fresh))]


def as_table(couplings: Sequence[Coupling]) -> pd.DataFrame:
    """Columns coupling, cost, changed, error."""
    rows = [(coupling.name, coupling.cost, coupling.changed, coupling.error) for coupling in couplings]
    return pd.DataFrame(rows, columns=["coupling", "cost", "changed", "error"])


def _squared(x: Tensor, y: Tensor) -> Tensor:
    """Squared distances (n, m), in double precision and without the rounding of a matrix product."""
    mode = "donot_use_mm_for_euclid_dist"
    return torch.cdist(x.double(), y.double(), compute_mode=mode).square()
