r"""DBIM: implicit sampling of a denoising diffusion bridge model (DDBM) from a source to its target.

The bridge is the variance-preserving diffusion, held at both ends: x_0, the target's latent, at t = 0, and x_T, the
source's, at T = 1. With α_t = exp(-t/20 - t²/2), ρ_t² = exp(t/10 + t²) - 1, ρ̄_t² = ρ_T² - ρ_t² and ᾱ_t = α_t / α_T,

    x_t = a_t x_T + b_t x_0 + c_t ε,    a = ᾱ ρ² / ρ_T²,    b = α ρ̄² / ρ_T²,    c = α ρ̄ ρ / ρ_T.

The network F is wrapped as in EDM, x̂_0 = c_skip x_t + c_out F(c_in x_t, t, x_T). For ends of mean 0, variance σ² each
and covariance κ, the variance of x_t is A, the best linear guess of x_0 is c_skip x_t, and its error is c_out:

    A = (a² + b²) σ² + 2 a b κ + c²,    c_in = 1 / √A,    c_skip = (b σ² + a κ) / A,
    c_out² = σ² - (b σ² + a κ)² / A = (a² (σ⁴ - κ²) + σ² c²) / A.

So F sees and is asked for variance 1, and the loss E |x̂_0 - x_0|² / c_out² weighs all t alike; t is uniform on
[1e-4, 1]. Latents are standardised, so σ is 1, and κ is σ² / 2: of the two published choices, 0 and this, the one that
suits images of the same view.

Translation takes K evaluations. The first, at t = T, is the booting one. There x_T is the state and c_T is 0, so a step
would divide by it; instead the state at T - 1e-3 is a x_T + b x̂_0 + c ε, with the one noise that is always drawn.
Further times are uniform down to 1e-4, and a step from s to t < s is

    x_t = a_t x_T + b_t x̂_0 + √(c_t² - ω²) / c_s (x_s - a_s x_T - b_s x̂_0) + ω z,    ω = η α_t ρ_t √(1 - ρ_t² / ρ_s²).

Any η in [0, 1] keeps the law of x_t if x̂_0 = x_0; η = 1 is the posterior of the bridge, η = 0 is deterministic. The
last step returns x̂_0, so the last time is not evaluated; K = 1 is the booting evaluation alone, without noise.

With η = 0 the step integrates an equation in λ = log(b / c), of which b_t x̂_0 (1 - e^(λ_s - λ_t)) is the first order:

    (x_t - a_t x_T) / c_t = (x_s - a_s x_T) / c_s + ∫ e^λ x̂_0(λ) dλ  from λ_s to λ_t.

Orders 2 and 3 replace x̂_0(λ) by the polynomial in λ through the last two or three predictions, which cost nothing
more; the first steps have fewer of them and are of lower order.

Not as published: the network of all methods here, of 1 M parameters and on latents, takes t itself instead of
(1/4) log t, and the last step returns x̂_0 instead of the mean at 1e-4, from which it differs by about c, 0.003.

References:
    Zheng et al., Diffusion Bridge Implicit Models, 2025, arXiv:2405.15885.
    Zhou et al., Denoising Diffusion Bridge Models, 2024, arXiv:2309.16948.
    Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, 2022, arXiv:2206.00364.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from medshift.conditional import ConditionalNetwork
from medshift.errors import ParameterError
from medshift.pairwise import Pair, Recipe, encoded_halves, method_state, through_codec
from medshift.translate import Codec, Domain

# Beside these: the mathematics as functions, for whoever draws or tests it.
__all__ = ["DBIM", "DDBMConfig", "DDBMTraining"]

BETA_MIN, BETA_D = 0.1, 2.0
T_MIN, T_START = 1e-4, 1 - 1e-3  # where times end, and where the booting step leads to
DEFAULT_STEPS, MOST_STEPS = 20, 1000

Network = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class DDBMConfig:
    """How the bridge's network is wrapped, built and trained.

    Args:
        sigma_data: σ, standard deviation of the latents of both ends.
        covariance: κ of the two ends, between -σ² and σ².
        channels: width of each level of the network; 1.0 M parameters with four latent channels.
        norm_groups: of its group normalisation.
        head_channels: of its attention heads.
        learning_rate: peak, of AdamW.
        weight_decay: of AdamW.
    """

    sigma_data: float = 1.0
    covariance: float = 0.5
    channels: tuple[int, ...] = (24, 32, 48, 64)
    norm_groups: int = 8
    head_channels: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 1e-5

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))
        if not 0 < self.sigma_data < math.inf or not abs(self.covariance) < self.sigma_data**2:
            raise ParameterError(
                f"sigma_data and covariance are {self.sigma_data} and {self.covariance}; expected a number above 0, "
                "and one that is nearer to 0 than its square."
            )


class Scalings(NamedTuple):
    """Of x_t beside the network, of the network's output, and of x_t into it; shaped like t."""

    skip: Tensor
    out: Tensor
    into: Tensor


def exponent(t: Tensor) -> Tensor:
    """-2 log α_t, which is log(1 + ρ_t²), at times t in [0, 1], float of any shape."""
    return BETA_MIN * t + BETA_D / 2 * t**2


def coefficients(t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """a, b and c of x_t = a x_T + b x_0 + c ε at times t in [0, 1], exact at both ends."""
    now, full = exponent(t), exponent(torch.ones_like(t))
    rho2, total = now.expm1(), full.expm1()
    left = now.exp() * (full - now).expm1()  # ρ̄², without the difference of two numbers that are alike
    alpha = (-now / 2).exp()
    return ((full - now) / 2).exp() * rho2 / total, alpha * left / total, alpha * (left * rho2 / total).sqrt()


def preconditioning(t: Tensor, sigma_data: float, covariance: float) -> Scalings:
    """c_skip, c_out and c_in at times t in [0, 1]; see the module."""
    a, b, c = coefficients(t)
    s2 = sigma_data**2
    power = (a**2 + b**2) * s2 + 2 * a * b * covariance + c**2
    error = (a**2 * (s2**2 - covariance**2) + s2 * c**2) / power
    return Scalings((b * s2 + a * covariance) / power, error.sqrt(), power.rsqrt())


def denoised(network: Network, x: Tensor, t: Tensor, y: Tensor, config: DDBMConfig) -> Tensor:
    """x̂_0 of noisy latents x (B,C,h,w) at t, () or (B,), with the source's y (B,C,h,w)."""
    scale = preconditioning(t.to(x), config.sigma_data, config.covariance)
    skip, out, into = (part.reshape(-1, 1, 1, 1) for part in scale)
    return skip * x + out * network(into * x, t, y).to(x)


def transition(
    x: Tensor, x_hat: Tensor, y: Tensor, *, s: float, t: float, eta: float = 0.0, noise: Tensor | float = 0.0
) -> Tensor:
    """x_t from x at s > t, both in (0, 1), if the target is `x_hat`; noise is standard normal, or 0 for the mean."""
    times = torch.tensor([s, t], dtype=torch.float64)
    (a_s, a_t), (b_s, b_t), (c_s, c_t) = (values.tolist() for values in coefficients(times))
    now, then = exponent(times).tolist()
    # α² ρ² = 1 - α²
    omega2 = eta**2 * -math.expm1(-then) * (1 - math.expm1(then) / math.expm1(now))
    kept = math.sqrt(max(c_t**2 - omega2, 0.0)) / c_s
    return a_t * y + b_t * x_hat + kept * (x - a_s * y - b_s * x_hat) + math.sqrt(omega2) * noise


def multistep(x: Tensor, y: Tensor, predictions: Sequence[Tensor], times: Sequence[float], t: float) -> Tensor:
    """x_t without noise from x at `times[0]` > t, by the polynomial in λ through the predictions at `times`.

    Args:
        x: noisy latents, of any shape.
        y: the source's, as `x`.
        predictions: one to three x̂_0, as `x`, the newest first; as many as the order.
        times: of the predictions, falling towards the first of them, all in (0, 1).
        t: where to.
    """
    a, b, c = coefficients(torch.tensor([t, *times], dtype=torch.float64))
    to, *at = (b / c).log().tolist()
    h, left = to - at[0], math.exp(at[0] - to)
    moments = (1 - left, h - 1 + left, h**2 - 2 * h + 2 - 2 * left)  # of (λ - λ_s)^k e^(λ - λ_t)
    integral = moments[0] * predictions[0]
    if len(predictions) > 1:
        slopes = [(predictions[k] - predictions[k + 1]) / (at[k] - at[k + 1]) for k in range(len(predictions) - 1)]
        integral = integral + moments[1] * slopes[0]
    if len(predictions) > 2:
        bend = (slopes[0] - slopes[1]) / (at[0] - at[2])
        integral = integral + (moments[2] + (at[0] - at[1]) * moments[1]) * bend
    kept = float(c[0] / c[1])
    return kept * x + (float(a[0]) - kept * float(a[1])) * y + float(b[0]) * integral


def step_times(steps: int) -> tuple[float, ...]:
    """The times of K evaluations, T = 1 of the booting one first; the next in line, 1e-4, is not evaluated.

    Raises:
        ParameterError: `steps` is no whole number from 1 to 1000.
    """
    if steps not in range(1, MOST_STEPS + 1):
        raise ParameterError(f"steps is {steps!r}, expected a whole number from 1 to {MOST_STEPS}.")
    return (1.0, *torch.linspace(T_START, T_MIN, steps, dtype=torch.float64)[:-1].tolist())


class DBIM:
    """Translation by K evaluations along the bridge of a network F(c_in x_t, t, x_T), from source to target."""

    name = "DBIM"
    needs_pairs = True

    def __init__(self, network: Network, codec: Codec, pair: Pair, config: DDBMConfig) -> None:
        self.network, self.codec, self.pair, self.config = network, codec, pair, config

    def nfe(self, *, steps: int = DEFAULT_STEPS, order: int = 1, eta: float = 0.0) -> int:
        """Network evaluations per image: `steps`, the booting one among them.

        Raises:
            ParameterError: `steps` outside 1 ... 1000, `eta` outside [0, 1], or an order that does not exist.
        """
        if not 0 <= eta <= 1 or order not in (1, 2, 3) or (order > 1 and eta):
            raise ParameterError(
                f"order and eta are {order!r} and {eta}; expected order 1 with eta in [0, 1], or 2 or 3 with eta=0."
            )
        return len(step_times(steps))

    def draws(self, *, steps: int = DEFAULT_STEPS, order: int = 1, eta: float = 0.0) -> int:
        """Draws of noise per image: the booting one and, with `eta`, one for each further step but the last."""
        many = self.nfe(steps=steps, order=order, eta=eta) - 1
        return many if eta else min(many, 1)

    @torch.no_grad()
    def translate(
        self,
        images: Tensor,
        source: Domain,
        target: Domain,
        *,
        noise: Tensor | None = None,
        steps: int = DEFAULT_STEPS,
        order: int = 1,
        eta: float = 0.0,
    ) -> Tensor:
        """Images (B,1,H,W) of `source` as `target` would show them, same shape, not clamped.

        Args:
            images: (B,1,H,W), about [-1, 1].
            source: the domain that the bridge was trained from.
            target: the one that it was trained to.
            noise: standard normal (B, S, C, h, w), shaped like the latents, S = `draws`. Nothing else is random.
            steps: K, evaluations; with 1 the source alone decides.
            order: 1, or 2 or 3 with `eta` 0.
            eta: 0 without fresh noise after the first, 1 for the posterior of the bridge, or between.

        Raises:
            ParameterError: another pair, knobs out of their range, or noise missing or of another shape.
        """
        self.pair.check(source, target)
        draws = self.draws(steps=steps, order=order, eta=eta)

        def change(latents: Tensor) -> Tensor:
            checked = _checked(noise, (len(latents), draws, *latents.shape[1:])).to(latents)
            return self._walk(latents, checked, step_times(steps), order, eta)

        return through_codec(self.codec, images, change)

    def _walk(self, y: Tensor, noise: Tensor, times: Sequence[float], order: int, eta: float) -> Tensor:
        def guess(x: Tensor, t: float) -> Tensor:
            return denoised(self.network, x, torch.tensor(t, dtype=y.dtype, device=y.device), y, self.config)

        held = [guess(y, times[0])]
        if len(times) == 1:
            return held[0]
        a, b, c = (float(value) for value in coefficients(torch.tensor(times[1], dtype=torch.float64)))
        x = a * y + b * held[0] + c * noise[:, 0]
        held = []  # at t = T λ is minus infinity, so this prediction is no part of a polynomial
        for k, (s, t) in enumerate(zip(times[1:], times[2:], strict=False), start=1):
            held = [guess(x, s), *held][:order]
            if order == 1:
                x = transition(x, held[0], y, s=s, t=t, eta=eta, noise=noise[:, k] if eta else 0.0)
            else:
                x = multistep(x, y, held, times[k::-1][: len(held)], t)
        return guess(x, times[-1])


class DDBMTraining:
    """A denoising diffusion bridge model as a trainable method; the codec is frozen here."""

    kind = "ddbm"
    name = DBIM.name
    needs_pairs = True
    deviation = (
        "On latents with a network of 1 M parameters that takes t itself, AdamW at 1e-3, the preconditioning for "
        "standardised ends with half their variance in common, and a last step that returns the prediction."
    )
    recipe = Recipe(batch=32)
    averaged: tuple[str, ...] = ("network",)
    kept: tuple[str, ...] = ("network",)

    def __init__(self, codec: Any, pair: Pair, config: DDBMConfig = DDBMConfig()) -> None:  # noqa: B008
        self.codec, self.pair, self.config = codec.requires_grad_(False).eval(), pair, config
        shape = {name: getattr(config, name) for name in ("channels", "norm_groups", "head_channels")}
        self.network = ConditionalNetwork(codec.channels, **shape)
        rate, decay = config.learning_rate, config.weight_decay
        self.optimizer = AdamW(self.network.parameters(), lr=rate, weight_decay=decay, fused=True)

    def modules(self) -> Mapping[str, nn.Module]:
        """The network and the frozen codec."""
        return {"network": self.network, "codec": self.codec}

    def optimizers(self) -> Mapping[str, Optimizer]:
        """One AdamW; it descends the loss of its name, "network"."""
        return {"network": self.optimizer}

    def step(self, batch: Sequence[Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Losses of images (2B,1,H,W): B of the source, then the same B views in the target.

        Returns:
            "network", the weighted loss, and the mean squared error of x̂_0, "denoising".
        """
        y, x0 = encoded_halves(self.codec, batch)
        t = torch.rand(len(y), generator=generator, device=generator.device).to(y) * (1 - T_MIN) + T_MIN
        noise = torch.randn(y.shape, generator=generator, device=generator.device).to(y)
        a, b, c = (value[:, None, None, None] for value in coefficients(t))
        x_t = a * y + b * x0 + c * noise
        error = (denoised(self.network, x_t, t, y, self.config) - x0).square()
        weight = preconditioning(t, self.config.sigma_data, self.config.covariance).out[:, None, None, None] ** -2
        return {"network": (weight * error).mean(), "denoising": error.mean().detach()}

    def state(self) -> dict[str, Any]:
        """JSON values that rebuild the method."""
        return method_state(self, self.codec, dataclasses.asdict(self.config))

    def translator(self) -> DBIM:
        """The sampler of the network as it is now."""
        return DBIM(self.network, self.codec, self.pair, self.config)


def _checked(noise: Tensor | None, expected: tuple[int, ...]) -> Tensor:
    """The noise, or none of it, if that is what is expected."""
    if noise is None and expected[1] == 0:
        return torch.empty(expected)
    if noise is None or noise.shape != expected:
        given = "missing" if noise is None else str(tuple(noise.shape))
        raise ParameterError(f"The noise is {given}, expected {expected}: (B, draws, C, h, w), standard normal.")
    return noise
