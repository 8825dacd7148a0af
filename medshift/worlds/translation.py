r"""Translations between the coloured domains against tau: in closed form, and measured.

Anatomy and colour are independent in either domain, so the exact field moves each coordinate by itself.

* Colour is one Gaussian in each domain. Its mean moves by the share 1 - tau s / c(tau) of the way
  (`medshift.theory.shift_share`).
* Anatomy is a mixture on a line. There a flow keeps the order of points, so it takes quantiles to quantiles: z_tau has
  the rank in p_tau^A that x has in A, and the result has the rank in B that z_tau has in p_tau^B. Clusters far
  narrower than their distance are intervals of ranks, cut where the proportions add up. So the share of points whose
  anatomy changes is a sum over one line, without a differential equation (`exact_change`).

References:
    Meng et al., SDEdit, 2021, arXiv:2108.01073 (translation from fresh noise).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from scipy.stats import binomtest, norm
from scipy.stats import t as student
from torch import Tensor

from medshift.flow import Velocity
from medshift.ode import integrate, leg_knots, states_at, time_grid
from medshift.theory import shift_share
from medshift.worlds.couplings import FRESH, marginal_error
from medshift.worlds.gallery import Coloured
from medshift.worlds.legs import STEPS, Legs, fresh_noise
from medshift.worlds.mixture import Mixture

__all__ = ["exact_change", "journeys", "known_answers", "noised_divergence", "tau_sweep"]

LINE = np.linspace(-8.0, 8.0, 16_001)  # of the horizontal coordinate, for sums over it


def exact_change(world: Coloured, tau: float, *, fresh: bool = False) -> float:
    """The share of points whose anatomy an exact translation A to B at tau changes, to about 1e-3.

    Args:
        world: the two domains; its clusters must be far narrower than their distance.
        tau: where the legs meet; 1 changes nothing.
        fresh: whether z_tau is freshly noised instead of inverted.
    """
    laws = [domain.noised(tau) for domain in world.domains]
    masses = [law.weights.numpy() * norm.cdf(LINE[:, None], law.means[:, 0], law.spreads) for law in laws]
    cuts = [law.weights.numpy().cumsum()[:-1] for law in laws]
    # Ranks of the middle of each small interval, and so the anatomy on either side of it.
    before, after = (
        np.searchsorted(cut, (mass[1:] + mass[:-1]).sum(1) / 2) for cut, mass in zip(cuts, masses, strict=True)
    )
    steps = np.diff(masses[0], axis=0)  # mass of A's components (L, K) in each interval
    kept = steps[np.arange(len(after)), after].sum() if fresh else steps.sum(1)[before == after].sum()
    return float(1 - kept)


def noised_divergence(domains: Sequence[Mixture], tau: float, *, n: int = 20_000, seed: int = 0) -> float:
    """KL(p_tau^A ‖ p_tau^B) [nat] by n samples: with an exact field also KL(translations at tau ‖ p_B).

    The second leg is a bijection that takes p_tau^B to p_B, and no bijection changes a divergence.
    """
    x = domains[0].noised(tau).sample(n, torch.Generator().manual_seed(seed)).double()
    return float((domains[0].log_density(x, tau) - domains[1].log_density(x, tau)).mean())


def known_answers(world: Coloured, taus: Sequence[float]) -> pd.DataFrame:
    """Known before any translation: columns tau, changed and fresh, shift (of colour), all shares; divergence [nat]."""
    spread = float(world.domains[1].spreads[0])
    rows = [
        (
            tau,
            exact_change(world, tau),
            exact_change(world, tau, fresh=True),
            shift_share(tau, spread),
            noised_divergence(world.domains, tau),
        )
        for tau in taus
    ]
    return pd.DataFrame(rows, columns=["tau", "changed", "fresh", "shift", "divergence"])


@torch.no_grad()
def journeys(velocity: Velocity, x: Tensor, taus: Sequence[float]) -> list[Legs]:
    """Translations of points (B, 2) of A to B at each tau: `legs.two_legs`, the first leg shared."""
    a, b = (torch.full((len(x),), label) for label in (0, 1))
    met = states_at(velocity, x, a, time_grid("refined", STEPS)[::-1], taus)
    made = []
    for z, tau in zip(met, taus, strict=True):
        *_, end = integrate(velocity, z, b, leg_knots(tau, "refined", STEPS))
        made.append(Legs(z, end.x))
    return made


def tau_sweep(
    world: Coloured, velocities: Mapping[str, Velocity], taus: Sequence[float], *, n: int = 400, repeats: int = 12
) -> pd.DataFrame:
    """Share of the colour shift that is done, of points whose anatomy changes, and distance to B's law, at each tau.

    Args:
        world: the two domains.
        velocities: the fields by name; the first also translates from fresh noise.
        taus: where the legs meet.
        n: points a repeat, each anatomy with its share.
        repeats: independent sets of points.

    Returns:
        Columns method, tau, shift (of the mean colour, 1 being all of it), changed, error (sliced W2), the last two
        with their 95 % intervals as _low and _high: of Wilson over all points, of Student over repeats. The method "B
        itself" is a sample of B in place of outputs: the floor of the error, as low as that of a sample with even
        shares can be; outputs scatter somewhat more.
    """
    a, b = world.domains
    generator = torch.Generator().manual_seed(0)
    x, again = (torch.cat([law.sample_evenly(n, generator) for _ in range(repeats)]) for law in (a, b))
    fresh = [b.sample_evenly(FRESH * n, generator) for _ in range(repeats)]

    def errors(out: Tensor) -> tuple[float, float, float]:
        return _mean([marginal_error(part, other) for part, other in zip(out.split(n), fresh, strict=True)])

    first, *_ = velocities
    colours = [float(law.means[0, 1]) for law in (a, b)]
    outs = {name: [legs.out for legs in journeys(field, x, taus)] for name, field in velocities.items()}
    outs[f"fresh noise, {first}"] = [fresh_noise(velocities[first], x, 1, tau, generator).out for tau in taus]
    floor = errors(again)
    rows: list[tuple[object, ...]] = [("B itself", tau, *(np.nan,) * 4, *floor) for tau in taus]
    for name, made in outs.items():
        for tau, out in zip(taus, made, strict=True):
            rows.append(
                (
                    name,
                    tau,
                    _shift(x, out, colours),
                    *_share(world.anatomy(x, 0) != world.anatomy(out, 1)),
                    *errors(out),
                )
            )
    columns = [f"{value}{end}" for value in ("changed", "error") for end in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=["method", "tau", "shift", *columns])


def _shift(x: Tensor, out: Tensor, colours: Sequence[float]) -> float:
    """The share of the way from one mean colour to the other that these points have gone, on average."""
    return float((out - x)[:, 1].mean()) / (colours[1] - colours[0])


def _share(events: Tensor) -> tuple[float, float, float]:
    """A share with Wilson's 95 % interval."""
    result = binomtest(int(events.sum()), len(events))
    interval = result.proportion_ci(method="wilson")
    return float(result.statistic), float(interval.low), float(interval.high)


def _mean(values: Sequence[float]) -> tuple[float, float, float]:
    """A mean with Student's 95 % interval."""
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(len(values)))
    reach = float(student.ppf(0.975, len(values) - 1)) * error
    return mean, mean - reach, mean + reach
