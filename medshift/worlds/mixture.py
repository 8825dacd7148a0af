r"""Gaussian mixtures in the plane and their exact velocity.

A component N(mu, s² I) is, noised along x_t = (1-t) ε + t x_1, again a Gaussian, N(t mu, c² I) with
c² = (1-t)² + t² s². Given x_t and the component, x_1 and ε are jointly Gaussian with x_t, so

    E[v | x_t, component] = mu + (t s² - (1-t)) / c² (x_t - t mu),      v = x_1 - ε,

and the marginal velocity, which the flow-matching loss has as its minimiser, is the average of these with the
posterior weights of the components, their *responsibilities*. With s = 0 the component is one target point, c is
1 - t, and the line above is (x_1 - x_t) / (1-t): the velocity of a straight path that must arrive in time. So any
finite set of points, blurred or not, has an exact field.

References:
    Lipman et al., Flow Matching for Generative Modeling, 2022, arXiv:2210.02747 (theorem 1: the average of the
    conditional fields is the marginal field).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medshift.errors import ParameterError
from medshift.flow import Velocity

__all__ = ["Mixture", "conditional_velocity", "exact_velocity"]


@dataclass(frozen=True)
class Mixture:
    """A law in the plane: isotropic Gaussians of these means (K, 2), standard deviations (K,) and weights (K,).

    Weights are normalised to sum 1. A spread of 0 is a point.

    Raises:
        ParameterError: shapes that do not fit, values that are not finite, a negative spread or weight.
    """

    means: Tensor
    spreads: Tensor
    weights: Tensor

    def __post_init__(self) -> None:
        k = len(self.means) if self.means.ndim == 2 else 0
        shapes = tuple(tuple(part.shape) for part in (self.means, self.spreads, self.weights))
        if not k or shapes != ((k, 2), (k,), (k,)):
            raise ParameterError(
                f"Means, spreads and weights have shapes {shapes}; expected (K, 2), (K,), (K,), K > 0."
            )
        if not all(bool(part.isfinite().all()) for part in (self.means, self.spreads, self.weights)):
            raise ParameterError("A mean, spread or weight is not finite; give numbers.")
        if float(self.spreads.min()) < 0 or float(self.weights.min()) < 0 or not float(self.weights.sum()) > 0:
            raise ParameterError("A spread or weight is negative, or all weights are 0; give none below 0.")
        for name in ("means", "spreads", "weights"):
            object.__setattr__(self, name, getattr(self, name).double())
        object.__setattr__(self, "weights", self.weights / self.weights.sum())

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Points (n, 2), float32."""
        chosen = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        return self._about(chosen, generator)

    def sample_evenly(self, n: int, generator: torch.Generator) -> Tensor:
        """Points (n, 2), float32, in random order, of which each component has its share up to one point.

        Each point alone has the same law as before. Together they differ less from it than independent ones, of which
        one component may get far more than its share, and that is what distances between samples mostly measure.
        """
        quantile = (torch.randperm(n, generator=generator) + torch.rand(1, generator=generator)) / n
        chosen = torch.searchsorted(self.weights.cumsum(0), quantile.double()).clamp(max=len(self.weights) - 1)
        return self._about(chosen, generator)

    def noised(self, t: float) -> Mixture:
        """The law of x_t at a time t in [0, 1]: means t mu, spreads c(t)."""
        return Mixture(t * self.means, ((1 - t) ** 2 + t**2 * self.spreads.square()).sqrt(), self.weights)

    def log_density(self, x: Tensor, t: float = 1.0) -> Tensor:
        """log p_t(x) [nat per unit area] of points (B, 2), as (B,) in their precision.

        Raises:
            ParameterError: a component is a point at that time and has no density.
        """
        law = self.noised(t)
        if not float(law.spreads.min()) > 0:
            raise ParameterError(f"At t = {t:g} the mixture has points without a density; take t < 1 or spreads > 0.")
        return (_log_joint(x, law.means.to(x), law.spreads.to(x)) + law.weights.to(x).log()).logsumexp(1)

    def responsibilities(self, x: Tensor, t: float) -> Tensor:
        """p(component | x_t) of points (B, 2), (B, K); rows sum to 1."""
        law = self.noised(t)
        return (_log_joint(x, law.means.to(x), law.spreads.to(x)) + law.weights.to(x).log()).softmax(1)

    def component_velocities(self, x: Tensor, t: float) -> Tensor:
        """E[v | x_t, component] at points (B, 2), (B, K, 2): what is averaged."""
        return _component_velocities(x, torch.as_tensor(t).to(x), self.means.to(x), self.spreads.to(x))

    def _about(self, chosen: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(len(chosen), 2, generator=generator, dtype=torch.float64)
        return (self.means[chosen] + self.spreads[chosen, None] * noise).float()

    @staticmethod
    def joined(parts: Sequence[Mixture], priors: Sequence[float] | None = None) -> Mixture:
        """All parts as one mixture, each with its prior; equal ones if none are given."""
        shares = _checked_priors(parts, priors)
        return Mixture(
            torch.cat([part.means for part in parts]),
            torch.cat([part.spreads for part in parts]),
            torch.cat([share * part.weights for share, part in zip(shares, parts, strict=True)]),
        )


def conditional_velocity(x: Tensor, t: float, target: Tensor) -> Tensor:
    """(x_1 - x_t) / (1-t) at points (B, 2) for one target point (2,) or one each (B, 2).

    Raises:
        ParameterError: t outside [0, 1), as nothing is left of the way at t = 1.
    """
    if not 0 <= t < 1:
        raise ParameterError(f"t is {t:g}; the velocity towards one target needs a time in [0, 1).")
    return (target - x) / (1 - t)


def exact_velocity(domains: Sequence[Mixture], priors: Sequence[float] | None = None) -> Velocity:
    """The marginal velocity of each domain, a closed form, as a velocity(x, t, label).

    Args:
        domains: label k is the k-th; the null label, ``len(domains)``, is all of them together.
        priors: probability of each under the null label, not necessarily of sum 1; equal ones if none are given.

    Returns:
        A velocity for points (B, 2), in their precision. Label k never sees components of another domain.

    Raises:
        ParameterError: no domains, priors that do not fit; from the velocity: labels outside 0..len(domains).
    """
    shares = _checked_priors(domains, priors)
    whole = Mixture.joined(domains, shares)
    weights = torch.zeros(len(domains) + 1, len(whole.weights), dtype=torch.float64)
    start = 0
    for k, domain in enumerate(domains):
        weights[k, start : start + len(domain.weights)] = domain.weights
        start += len(domain.weights)
    weights[-1] = whole.weights
    log_weights = weights.log()

    def velocity(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        if len(label) and not 0 <= int(label.min()) <= int(label.max()) <= len(domains):
            raise ParameterError(f"Labels run from {label.min()} to {label.max()}; expected 0..{len(domains)}.")
        used = (weights[label.unique()] > 0).any(0)  # the other domains' components have weight 0 and cost as much
        means, spreads = whole.means[used].to(x), whole.spreads[used].to(x)
        t = t.to(x).reshape(-1, 1)
        c = ((1 - t).square() + (t * spreads).square()).sqrt()
        joint = _log_joint(x, t[..., None] * means, c) + log_weights[:, used].to(x)[label]
        return (joint.softmax(1)[..., None] * _component_velocities(x, t, means, spreads)).sum(1)

    return velocity


def _checked_priors(domains: Sequence[Mixture], priors: Sequence[float] | None) -> list[float]:
    shares = [1.0] * len(domains) if priors is None else [float(p) for p in priors]
    if not domains or len(shares) != len(domains) or min(shares) < 0 or not 0 < sum(shares) < math.inf:
        raise ParameterError(
            f"{len(domains)} domains with priors {shares}; expected one prior >= 0 for each, not all 0."
        )
    return [share / sum(shares) for share in shares]


def _log_joint(x: Tensor, means: Tensor, spreads: Tensor) -> Tensor:
    """log N(x; mean, spread² I), (B, K), for points (B, 2), means (K, 2) or (B, K, 2), spreads (K,) or (B, K)."""
    distance = (x[:, None] - means).square().sum(-1)
    return -distance / (2 * spreads.square()) - 2 * spreads.log() - math.log(2 * math.pi)


def _component_velocities(x: Tensor, t: Tensor, means: Tensor, spreads: Tensor) -> Tensor:
    """mu + (t s² - (1-t)) / c² (x - t mu), (B, K, 2), for a time () or times (B, 1)."""
    rate = (t * spreads.square() - (1 - t)) / ((1 - t).square() + (t * spreads).square())
    return means + rate[..., None] * (x[:, None] - t[..., None] * means)
