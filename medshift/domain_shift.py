r"""Diffusion that shifts a domain while it adds noise: the process of CDTSDE and its exact sampler, pixel by pixel.

With y the source's latent, x_0 the target's, a_t = √ᾱ_t and σ_t² = 1 - ᾱ_t, a mixing field Λ_t ∈ [0,1]^{C×H×W} makes

    d_t = Λ_t ⊙ y + (1 - Λ_t) ⊙ x_0,      q(x_t | x_0, y) = N(a_t d_t, σ_t² I),      Λ_0 = 0,  Λ_t = 1 for t ≥ t_1.

Its forward SDE is dx = [f x + a_t Λ̇_t ⊙ (y - x_0)] dt + g dw with f = d log a / dt and g² = dσ²/dt - 2 f σ². In the
coordinates u = x ⊘ Υ, Υ_t = a_t (1 - Λ_t), less ρ_t y with ρ = Λ ⊘ (1 - Λ), it is the variance-exploding process
x_0 + λ̃_t ε, λ̃ = σ ⊘ Υ, whose reverse step is known in closed form for a frozen data prediction x̂. Υ is 0 where Λ is 1,
which is where sampling starts, so the step is written with κ = Υ_t ⊘ Υ_s, s < t, and the means m_t(x̂) of the marginals:

    A = (σ_s²/σ_t²) κ,    r = (σ_s/σ_t) κ,
    x_s = m_s(x̂) + A ⊙ (x_t - m_t(x̂)) + σ_s √(1 - r²) ⊙ z,    z ~ N(0, I).

Everywhere Λ < 1 it equals the four terms of the paper's Proposition 1. From Λ_t = 1 it is finite: κ = 0 there, so the
first step predicts x̂ and draws from the marginal. Without noise, A = σ_s/σ_t and the last term goes (the flow of the
same marginals). The second order adds x̂'s slope in log λ̃, from the step before.

A field that averages Λ over space and channels, as the released code samples with, is one of the fields; it is not done
here. T = 1000 and Stable Diffusion's β, as released; t_1 = 500, and times are the integers 0..t_1.

References:
    Adaptive Domain Shift in Diffusion Models for Cross-Modality Image Translation, ICLR 2026, arXiv:2601.18623.
    Cui et al., DoSSR: Taming Diffusion Prior for Image Super-Resolution with Domain Shift SDEs, NeurIPS 2024,
    arXiv:2409.17778 (the same with one scalar for all pixels).
    Lu et al., DPM-Solver++, 2022, arXiv:2211.01095 (the multistep second order).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medshift.errors import ParameterError

__all__ = [
    "ShiftSchedule",
    "Step",
    "marginal_mean",
    "path_weight",
    "reverse_step",
    "sample",
    "second_order",
    "step_grid",
]

BETA_FIRST, BETA_LAST = 0.00085, 0.012  # of Stable Diffusion's scaled-linear schedule


@dataclass(frozen=True)
class ShiftSchedule:
    """a, σ and the scalar λ of every time 0..t_1, in float64.

    Args:
        length: T, times of the noise schedule.
        last: t_1, where the field is 1 and sampling starts.

    Raises:
        ParameterError: t_1 beyond T, or below 2.
    """

    length: int = 1000
    last: int = 500

    def __post_init__(self) -> None:
        if not 2 <= self.last < self.length:
            raise ParameterError(
                f"t1 is {self.last}; it must lie within the noise schedule, from 2 to {self.length - 1}."
            )

    def signal(self, t: Tensor) -> Tensor:
        """a_t = √ᾱ_t at integer times, in their shape."""
        beta = torch.linspace(BETA_FIRST**0.5, BETA_LAST**0.5, self.length, dtype=torch.float64).square()
        return (1 - beta).log().cumsum(0).mul(0.5).exp().to(t.device)[self._checked(t)]

    def noise(self, t: Tensor) -> Tensor:
        """σ_t = √(1 - ᾱ_t) at integer times, in their shape."""
        return (1 - self.signal(t).square()).sqrt()

    def mixing(self, t: Tensor) -> Tensor:
        """λ_t at integer times: half a cosine in time, the same for all pixels, and exactly 1 from t_1 on."""
        t = self._checked(t)
        share = 0.001 + 0.998 * t.double() / (self.last - 1)
        return torch.where(t >= self.last, 1.0, (1 - torch.cos(math.pi * share)) / 2)

    def _checked(self, t: Tensor) -> Tensor:
        if t.is_floating_point() or (t.numel() and not 0 <= int(t.min()) <= int(t.max()) < self.length):
            raise ParameterError(f"Times are integers from 0 to {self.length - 1}; got {t.dtype} {t.tolist()[:5]}.")
        return t


@dataclass(frozen=True)
class Step:
    """From time t to an earlier time s.

    Attributes:
        x: x_s (B,C,H,W).
        clamped: how many of its pixels had a field that did not rise from s to t, so that r would have been above 1.
    """

    x: Tensor
    clamped: int


def marginal_mean(x0: Tensor, y: Tensor, *, lam: Tensor, alpha: Tensor) -> Tensor:
    """m = a (Λ ⊙ y + (1 - Λ) ⊙ x_0), the mean of q(x_t | x_0, y); Λ (B|1,C,H,W), a () or (B,1,1,1)."""
    return alpha * (lam * y + (1 - lam) * x0)


def reverse_step(
    x_t: Tensor,
    x_hat: Tensor,
    y: Tensor,
    *,
    lam_t: Tensor,
    lam_s: Tensor,
    alpha_t: Tensor,
    alpha_s: Tensor,
    sigma_t: Tensor,
    sigma_s: Tensor,
    noise: Tensor | None,
) -> Step:
    """The exact step from t to s < t for a data prediction that is constant on it; see the module.

    Args:
        x_t: (B,C,H,W).
        x_hat: data prediction at t, (B,C,H,W).
        y: source (B,C,H,W).
        lam_t: Λ_t (B|1,C,H,W) in [0,1].
        lam_s: Λ_s, likewise, nowhere above Λ_t.
        alpha_t: a_t, ().
        alpha_s: a_s, ().
        sigma_t: σ_t, ().
        sigma_s: σ_s, ().
        noise: z (B,C,H,W), standard normal; None for the deterministic form.

    Raises:
        ParameterError: a field outside [0,1].
    """
    for lam in (lam_t, lam_s):
        if not bool(((lam >= 0) & (lam <= 1)).all()):
            raise ParameterError(
                f"The mixing field runs from {lam.min():.3g} to {lam.max():.3g}; it must stay in [0, 1]."
            )
    mean_t = marginal_mean(x_hat, y, lam=lam_t, alpha=alpha_t)
    mean_s = marginal_mean(x_hat, y, lam=lam_s, alpha=alpha_s)
    ratio = sigma_s / sigma_t
    wide_t, wide_s = alpha_t * (1 - lam_t), alpha_s * (1 - lam_s)
    # Where both are 1 nothing of x_0 is there yet and Υ cancels.
    kappa = torch.where((lam_t == 1) & (lam_s == 1), alpha_t / alpha_s, wide_t / wide_s)
    over = kappa * ratio > 1 + 1e-9
    kappa = torch.where(over, 1 / ratio, kappa)
    if noise is None:
        return Step(mean_s + ratio * (x_t - mean_t), int(over.sum()))
    spread = sigma_s * (1 - (ratio * kappa).square()).clamp(min=0).sqrt()
    return Step(mean_s + ratio.square() * kappa * (x_t - mean_t) + spread * noise, int(over.sum()))


def second_order(
    x_hat: Tensor,
    before: Tensor,
    *,
    lam: Sequence[Tensor],
    alpha: Sequence[Tensor],
    sigma: Sequence[Tensor],
    stochastic: bool,
) -> Tensor:
    """What the second order adds to `reverse_step`: Υ_s c (x̂_t - x̂_u) / log(λ̃_u/λ̃_t), u the time before t.

    c = h - (1 - e^{-2h}) / 2 with h = log(λ̃_t/λ̃_s), and h - (1 - e^{-h}) without noise: the integral of x̂'s linear
    part against the kernel of the first order. 0 where the field at u or t is 1, as λ̃ is infinite there.

    Args:
        x_hat: data prediction at t.
        before: data prediction at u > t.
        lam: Λ at u, t, s.
        alpha: a at u, t, s.
        sigma: σ at u, t, s.
        stochastic: whether the step has noise.
    """
    log_u, log_t, log_s = (torch.log(n / (a * (1 - k))) for n, a, k in zip(sigma, alpha, lam, strict=True))
    h, h_before = log_t - log_s, log_u - log_t
    kernel = (1 - torch.exp(-2 * h)) / 2 if stochastic else 1 - torch.exp(-h)
    factor = alpha[2] * (1 - lam[2]) * (h - kernel) / h_before
    usable = torch.isfinite(h) & torch.isfinite(h_before) & (h > 0) & (h_before > 0)
    return torch.where(usable, factor, 0.0) * (x_hat - before)


def step_grid(schedule: ShiftSchedule, steps: int) -> list[int]:
    """The integers of K equal steps from t_1 to 0, K + 1 of them.

    Raises:
        ParameterError: K below 1 or above t_1.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= schedule.last:
        raise ParameterError(f"steps is {steps!r}; expected a whole number from 1 to {schedule.last}.")
    return [round(schedule.last * (1 - k / steps)) for k in range(steps + 1)]


def sample(
    predict: Callable[[Tensor, int], Tensor],
    field: Callable[[int], Tensor],
    y: Tensor,
    *,
    schedule: ShiftSchedule,
    steps: int,
    noise: Tensor,
    order: int = 1,
    stochastic: bool = True,
) -> Step:
    """Translate y: from x at t_1, drawn about a y, in K steps to the last data prediction.

    Args:
        predict: x̂(x_t, t), of (B,C,H,W).
        field: Λ at an integer time, (B|1,C,H,W).
        y: source's latents (B,C,H,W).
        schedule: a, σ and t_1.
        steps: K, and so many evaluations of `predict`.
        noise: standard normal (B,S,C,H,W): S = K, the first for the start; without noise in the steps S = 1.
        order: 1 or 2.
        stochastic: whether the steps draw noise.

    Raises:
        ParameterError: steps, an order or noise that do not fit.
    """
    grid = step_grid(schedule, steps)
    needed = (y.shape[0], steps if stochastic else 1, *y.shape[1:])
    if tuple(noise.shape) != needed or order not in (1, 2):
        raise ParameterError(
            f"order is {order} and the noise has the shape {tuple(noise.shape)}; expected 1 or 2, and {needed}."
        )
    times = torch.tensor(grid)
    alpha, sigma = list(schedule.signal(times).to(y)), list(schedule.noise(times).to(y))
    lam = [field(t).to(y) for t in grid[:-1]]
    x, clamped, before = alpha[0] * y + sigma[0] * noise[:, 0].to(y), 0, y
    for k, t in enumerate(grid[:-1]):
        x_hat = predict(x, t)
        if k == steps - 1:
            return Step(x_hat, clamped)
        z = noise[:, k + 1].to(y) if stochastic else None
        ends = {"lam_t": lam[k], "lam_s": lam[k + 1], "alpha_t": alpha[k], "alpha_s": alpha[k + 1]}
        made = reverse_step(x, x_hat, y, **ends, sigma_t=sigma[k], sigma_s=sigma[k + 1], noise=z)
        x, clamped = made.x, clamped + made.clamped
        if order == 2 and k:
            three = slice(k - 1, k + 2)
            x = x + second_order(
                x_hat, before, lam=lam[three], alpha=alpha[three], sigma=sigma[three], stochastic=stochastic
            )
        before = x_hat
    raise AssertionError("the last step returns")


def path_weight(schedule: ShiftSchedule, t: Tensor) -> Tensor:
    """a²/g² at integer times: what the SDE itself charges for |Λ̇ ⊙ (y - x_0)|², with time in units of T."""
    beta = torch.linspace(BETA_FIRST**0.5, BETA_LAST**0.5, schedule.length, dtype=torch.float64).square()
    return schedule.signal(t).square() / (beta.to(t.device)[t] * schedule.length)
