r"""What a Gaussian model of two domains says about a translation, before any training.

Domain k is N(mu_k, Sigma_k) in latent space, so that its noised law at time t is N(t mu_k, C_k(t)) with
C_k(t) = (1-t)² I + t² Sigma_k, and both legs are affine:

    out = mu_B + Sigma_B^½ C_B^-½ [tau (mu_A - mu_B) + C_A^½ Sigma_A^-½ (x - mu_A)].

Three things follow. The mean moves by the share :math:`\phi = 1 - \tau s / c(\tau)`, where s is the spread of the
*whole latent* along mu_B - mu_A in the target, not the spread of a pixel. The law of the output is that of the decode
leg from freshly noised data, since encoding A reaches exactly A's noised law. And because the decode leg is a
bijection that carries B's noised law to B, every f-divergence of the output to B equals that between the two noised
laws: how real the output is, is decided by the data and by tau. Only its agreement with the source is the method's.

A mode of standard deviation s, whatever the solver, is multiplied by the product of its steps' gains; exact steps keep
it. `mode_retention` runs the solvers of `medshift.ode` themselves on such modes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from medshift.errors import ParameterError
from medshift.ode import DEFAULT_STEPS, integrate, leg_knots

COMPONENTS = 128  # of a domain, beyond which its covariance counts as white


@dataclass(frozen=True)
class Gaussian:
    """N(mean, covariance): mean (D,), covariance (D, D), both float64."""

    mean: Tensor
    covariance: Tensor

    def noised(self, t: float) -> Gaussian:
        """The law of (1-t) noise + t x."""
        return Gaussian(t * self.mean, t**2 * self.covariance + (1 - t) ** 2 * torch.eye(len(self.mean)).to(self.mean))


def shift_spread(source: Tensor, target: Tensor) -> float:
    """The spread s_Δ of the target's latents along the difference of the two domains' means.

    Args:
        source: latents (N, ...), flattened.
        target: latents (M, ...), M >= 2.

    Raises:
        ParameterError: too few latents, or domains of equal means, between which there is no direction.
    """
    a, b = source.flatten(1).double(), target.flatten(1).double()
    if len(a) < 1 or len(b) < 2 or a.shape[1] != b.shape[1]:
        raise ParameterError(
            f"Latents {tuple(a.shape)} and {tuple(b.shape)} give no spread; two sets of one width, two or more each."
        )
    delta = b.mean(0) - a.mean(0)
    if not float(delta.norm()) > 0:
        raise ParameterError("The two domains have the same mean latent, so there is no direction of the shift.")
    return float(((b - b.mean(0)) @ (delta / delta.norm())).std())


def shift_share(tau: float, spread: float) -> float:
    r"""The share :math:`\phi(\tau)` of the way from the source's mean to the target's that a translation goes."""
    return 1 - tau * spread / math.hypot(1 - tau, tau * spread)


def half_shift_tau(spread: float) -> float:
    """The tau at which half of the shift is done: tau / (1 - tau) = 1 / (sqrt(3) s)."""
    odds = 1 / (math.sqrt(3) * spread)
    return odds / (1 + odds)


def translated_law(source: Gaussian, target: Gaussian, tau: float) -> Gaussian:
    """The law of translations of `source` to `target` by exact legs that meet at `tau`."""
    gain = _root(target.covariance) @ _root(target.noised(tau).covariance, inverse=True)
    mean = target.mean + gain @ (tau * (source.mean - target.mean))
    return Gaussian(mean, gain @ source.noised(tau).covariance @ gain.T)


def kl_divergence(p: Gaussian, q: Gaussian) -> float:
    """KL(p ‖ q) [nat]."""
    return float(
        torch.distributions.kl_divergence(
            torch.distributions.MultivariateNormal(p.mean, p.covariance),
            torch.distributions.MultivariateNormal(q.mean, q.covariance),
        )
    )


def mode_retention(
    spread: Tensor, tau: float, *, solver: str = "heun", grid: str = "refined", steps: int = DEFAULT_STEPS
) -> Tensor:
    """What is left of centred Gaussian modes of standard deviation `spread` (S,) after encode and decode, (S,).

    1 is exact; the steps are those of `medshift.ode` on the field (c'/c) x of the mode.
    """
    s = spread.double().reshape(-1, 1)
    label = torch.zeros(len(s), dtype=torch.int64)

    def velocity(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        c2 = (1 - t) ** 2 + t**2 * s**2
        return (t * s**2 - (1 - t)) / c2 * x

    knots = leg_knots(tau, grid, steps)
    *_, z_tau = integrate(velocity, torch.ones_like(s), label, knots[::-1], solver=solver)
    *_, end = integrate(velocity, z_tau.x, label, knots, solver=solver)
    return end.x.reshape(-1)


def _root(matrix: Tensor, *, inverse: bool = False) -> Tensor:
    """The symmetric square root of a positive definite matrix, or its inverse."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * (values.rsqrt() if inverse else values.sqrt())) @ vectors.T


@dataclass(frozen=True)
class Components:
    """N(mean, U diag(v) Uᵀ + rest (I - U Uᵀ)): mean (D,), orthonormal U (D,K), v (K,), all float64."""

    mean: Tensor
    basis: Tensor
    variances: Tensor
    rest: float

    @classmethod
    def fit(cls, latents: Tensor, components: int = COMPONENTS) -> Components:
        """Mean, leading components and the mean variance of all others of latents (N,D).

        At most half as many components as latents: beyond, a sample's own directions pass for the domain's.

        Raises:
            ParameterError: fewer than four latents.
        """
        if len(latents) < 4:
            raise ParameterError(f"{len(latents)} latents give no covariance; give four or more.")
        x = latents.double()
        mean = x.mean(0)
        _, values, vectors = torch.linalg.svd(x - mean, full_matrices=False)
        variances, k = values.square() / (len(x) - 1), min(components, len(x) // 2)
        rest = float(variances[k:].sum() / (x.shape[1] - k))
        return cls(mean, vectors[:k].T.contiguous(), variances[:k], rest)

    def of_covariance(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """``function`` of the covariance, taken of its eigenvalues, applied to vectors x (N,D)."""
        outside = function(torch.tensor(self.rest, dtype=x.dtype))
        return outside * x + (x @ self.basis) * (function(self.variances) - outside) @ self.basis.T

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Vectors (n,D)."""
        white = torch.randn(n, len(self.mean), generator=generator, dtype=torch.float64)
        return self.mean + self.of_covariance(torch.sqrt, white)


def exact_translation(x: Tensor, source: Components, target: Components, tau: float) -> Tensor:
    """Vectors x (N,D) of ``source`` taken to ``target`` by exact legs that meet at ``tau`` (N,D)."""

    def noised(v: Tensor) -> Tensor:
        return (1 - tau) ** 2 + tau**2 * v

    z = source.of_covariance(lambda v: (noised(v) / v).sqrt(), x - source.mean)
    z = z + tau * (source.mean - target.mean)
    return target.mean + target.of_covariance(lambda v: (v / noised(v)).sqrt(), z)
