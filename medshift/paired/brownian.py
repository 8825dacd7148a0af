r"""Brownian bridges from a source to its target: BBDM and ABridge, one code path with two laws of m and δ.

With y the source's latent, x_0 the target's and T = 1000 integer times, the noisy latent of time t is

    x_t = (1 - m_t) x_0 + m_t y + √δ_t ε,

    BBDM:     m_t from 0.001 at t = 1 to 0.999 at t = T, linear;    δ_t = 2 s m_t (1 - m_t), s = 1,
    ABridge:  m_t = t / T;                                          δ_t = s m_t (1 - m_t),   s = 1.

The network F predicts x_t - x_0 from (x_t, t, y) and descends the mean absolute error; x̂_0 = x_t - F. Translation
starts at x_T = y and goes through K of the times. A step from t to s < t is

    x_s = (1 - m_s) x̂_0 + m_s y + √((δ_s - η² σ̃²) / δ_t) (x_t - (1 - m_t) x̂_0 - m_t y) + η σ̃ z,
    σ̃² = (δ_t - δ_s (1 - m_t)² / (1 - m_s)²) δ_s / δ_t = δ_s - δ_s² (1 - m_t)² / ((1 - m_s)² δ_t).

With η = 1 it is the posterior of a Brownian bridge whose clock is m, and with x̂_0 = x_0 it leads from the law of x_t
to that of x_s whatever η in [0, 1] is, since η stands in both places. The released BBDM multiplies the last term
alone, so there only η = 1 keeps the law. K evaluations take place at K equal parts of T, rounded; the last x̂_0 is the
result, as m and δ are 0 at t = 0.

Both ends of ABridge are exact, so at t = T its δ is 0: x_T = y says nothing of x_0, σ̃² is δ_s, and the first step draws
all of its noise, whatever η. BBDM has m_T = 0.999 and starts at y nevertheless, where training had a thousandth of
x_0 and √δ_T = 0.045 of noise; that is the published start.

The released ABridge steps otherwise, by Euler and Maruyama, x_{t-1} = x_t - (x_t - x̂_0) / t + √(1/T) z: the mean is
that of the posterior, the variance 1/T instead of (1/T)(t-1)/t. It is here as ``sampler="euler-maruyama"``; between
other times it reads x_s = x_t - (1 - m_s / m_t) (x_t - x̂_0) + √(s (m_t - m_s)) z, s under the root being the scale.

Not as published: y enters by the channels in both. BBDM does so on pixels and has no condition on latents; ABridge is
described without one, its released configuration concatenates y. The network, its optimiser and the moving average
are those of all methods here, and K is 20 by default, where BBDM takes 200 and ABridge 1000.

References:
    Li et al., BBDM: Image-to-Image Translation with Brownian Bridge Diffusion Models, 2023, arXiv:2205.07680.
    Wang et al., Amenable Brownian Bridges (ABridge), ACM Multimedia, 2024.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.optim import AdamW, Optimizer

from medshift.conditional import ConditionalNetwork
from medshift.errors import ParameterError
from medshift.pairwise import Pair, Recipe, encoded_halves, method_state, through_codec
from medshift.translate import Codec, Domain

# Beside these: the mathematics as functions, for whoever draws or tests it.
__all__ = ["BrownianBridge", "BrownianConfig", "BrownianTraining"]

Kind = Literal["bbdm", "abridge"]
Sampler = Literal["posterior", "euler-maruyama"]
NAMES: Mapping[str, str] = {"bbdm": "BBDM", "abridge": "ABridge"}
FIRST, LAST = 0.001, 0.999  # m of BBDM at t = 1 and t = T
DEFAULT_STEPS = 20
DEVIATIONS: Mapping[str, str] = {
    "bbdm": (
        "The source enters by channels, where the original on latents has no condition; a network of 1 M parameters "
        "with AdamW at 1e-3, 20 equal steps by default instead of 200, and eta in both of its places."
    ),
    "abridge": (
        "The source enters by channels, where the paper has no condition; a network of 1 M parameters with AdamW at "
        "1e-3, 20 steps by default instead of 1000, and the exact posterior unless the released step is asked for."
    ),
}


@dataclass(frozen=True, kw_only=True)
class BrownianConfig:
    """Which bridge it is, how its network is built and how it is trained.

    Args:
        variance: "bbdm" or "abridge"; says m as well.
        times: T, at least 2.
        scale: s, factor of the variance δ; 1 as published.
        channels: width of each level of the network; 1.0 M parameters with four latent channels.
        norm_groups: of its group normalisation.
        head_channels: of its attention heads.
        learning_rate: peak, of AdamW.
        weight_decay: of AdamW.
    """

    variance: Kind = "bbdm"
    times: int = 1000
    scale: float = 1.0
    channels: tuple[int, ...] = (24, 32, 48, 64)
    norm_groups: int = 8
    head_channels: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 1e-5

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))
        if self.variance not in NAMES or self.times < 2 or not 0 < self.scale < math.inf:
            raise ParameterError(
                f"variance, times and scale are {self.variance!r}, {self.times} and {self.scale}; expected one of "
                f"{', '.join(NAMES)}, a whole number from 2, and a number above 0."
            )


def mixture(t: Tensor, kind: Kind = "bbdm", times: int = 1000) -> Tensor:
    """m_t, the share of the source, at times t of 0 ... T, float of any shape; 0 at t = 0."""
    if kind == "abridge":
        return t / times
    return torch.where(t == 0, torch.zeros_like(t), FIRST + (LAST - FIRST) * ((t - 1) / (times - 1)))


def variance(t: Tensor, kind: Kind = "bbdm", times: int = 1000, scale: float = 1.0) -> Tensor:
    """δ_t, the variance of the noise, at times t of 0 ... T, float of any shape."""
    m = mixture(t, kind, times)
    return (2 if kind == "bbdm" else 1) * scale * m * (1 - m)


def posterior_variance(*, m_t: float, m_s: float, delta_t: float, delta_s: float) -> float:
    """σ̃², the variance of x_s if x_t, x_0 and y are known, s < t; δ_s where δ_t is 0."""
    if delta_t == 0:
        return delta_s
    return (delta_t - delta_s * ((1 - m_t) / (1 - m_s)) ** 2) * delta_s / delta_t


def posterior_step(
    x_t: Tensor,
    x_hat: Tensor,
    y: Tensor,
    *,
    m_t: float,
    m_s: float,
    delta_t: float,
    delta_s: float,
    eta: float = 1.0,
    noise: Tensor | float = 0.0,
) -> Tensor:
    """x_s from x_t, s < t, if the target is `x_hat`; all latents of one shape.

    `noise` is standard normal, or 0 for the mean. `eta` is 1 for the posterior of the bridge, 0 for no fresh noise, or
    between; but where `delta_t` is 0, x_t is y, and all of δ_s is drawn.
    """
    mean = (1 - m_s) * x_hat + m_s * y
    if delta_t == 0:
        return mean + math.sqrt(delta_s) * noise
    drawn = eta**2 * posterior_variance(m_t=m_t, m_s=m_s, delta_t=delta_t, delta_s=delta_s)
    kept = math.sqrt(max(delta_s - drawn, 0.0) / delta_t)
    return mean + kept * (x_t - (1 - m_t) * x_hat - m_t * y) + math.sqrt(max(drawn, 0.0)) * noise


def euler_maruyama_step(
    x_t: Tensor, x_hat: Tensor, *, m_t: float, m_s: float, scale: float = 1.0, noise: Tensor | float = 0.0
) -> Tensor:
    """x_s from x_t as ABridge was released: the posterior's mean with variance `scale` (m_t - m_s); see there."""
    return x_t - (1 - m_s / m_t) * (x_t - x_hat) + math.sqrt(scale * (m_t - m_s)) * noise


def step_times(steps: int, times: int = 1000) -> tuple[int, ...]:
    """The K + 1 times T ... 0 of K steps, in equal parts, rounded; all differ.

    Raises:
        ParameterError: `steps` is no whole number from 1 to T.
    """
    if steps not in range(1, times + 1):
        raise ParameterError(f"steps is {steps!r}, expected a whole number from 1 to {times}.")
    return tuple((times * (steps - k) + steps // 2) // steps for k in range(steps + 1))


class BrownianBridge:
    """Translation by K steps along the bridge of a network F(x_t, t / T, y); its `name` is "BBDM" or "ABridge"."""

    needs_pairs = True

    def __init__(
        self, network: Callable[[Tensor, Tensor, Tensor], Tensor], codec: Codec, pair: Pair, config: BrownianConfig
    ) -> None:
        self.network, self.codec, self.pair, self.config = network, codec, pair, config
        self.name = NAMES[config.variance]

    def nfe(self, *, steps: int = DEFAULT_STEPS, eta: float = 1.0, sampler: Sampler = "posterior") -> int:
        """Network evaluations per image: `steps`.

        Raises:
            ParameterError: `steps` outside 1 ... T, `eta` outside [0, 1], or a sampler that does not exist here.
        """
        if not 0 <= eta <= 1:
            raise ParameterError(f"eta is {eta}, expected a number in [0, 1].")
        if sampler != "posterior" and (sampler, self.config.variance, eta) != ("euler-maruyama", "abridge", 1):
            raise ParameterError(
                f"The sampler is {sampler!r} for {self.name} with eta={eta}; expected 'posterior', or for ABridge with "
                "eta=1 'euler-maruyama', its released step."
            )
        return len(step_times(steps, self.config.times)) - 1

    def draws(self, *, steps: int = DEFAULT_STEPS, eta: float = 1.0, sampler: Sampler = "posterior") -> int:
        """Draws of noise per image: one for each step but the last; without `eta` only ABridge's first one."""
        random = self.nfe(steps=steps, eta=eta, sampler=sampler) - 1
        return random if eta else min(random, int(self.config.variance == "abridge"))

    @torch.no_grad()
    def translate(
        self,
        images: Tensor,
        source: Domain,
        target: Domain,
        *,
        noise: Tensor | None = None,
        steps: int = DEFAULT_STEPS,
        eta: float = 1.0,
        sampler: Sampler = "posterior",
    ) -> Tensor:
        """Images (B,1,H,W) of `source` as `target` would show them, same shape, not clamped.

        Args:
            images: (B,1,H,W), about [-1, 1].
            source: the domain that the bridge was trained from.
            target: the one that it was trained to.
            noise: standard normal (B, S, C, h, w), shaped like the latents, S = `draws`. Nothing else is random.
            steps: K, 1 to T; with 1 the source alone decides.
            eta: 1 for the posterior of the bridge, 0 without fresh noise, or between.
            sampler: "posterior", or for ABridge "euler-maruyama", its released step.

        Raises:
            ParameterError: another pair, knobs out of their range, or noise missing or of another shape.
        """
        self.pair.check(source, target)
        draws = self.draws(steps=steps, eta=eta, sampler=sampler)

        def change(latents: Tensor) -> Tensor:
            checked = _checked(noise, (len(latents), draws, *latents.shape[1:])).to(latents)
            return self._walk(latents, checked, steps, eta, sampler)

        return through_codec(self.codec, images, change)

    def _walk(self, y: Tensor, noise: Tensor, steps: int, eta: float, sampler: Sampler) -> Tensor:
        c, nodes = self.config, step_times(steps, self.config.times)
        exact = torch.tensor(nodes, dtype=torch.float64)
        m = mixture(exact, c.variance, c.times).tolist()
        delta = variance(exact, c.variance, c.times, c.scale).tolist()
        x = y
        for k in range(steps):
            x_hat = x - self.network(x, torch.tensor(nodes[k] / c.times, device=y.device), y).to(x)
            if k == steps - 1:
                break
            clock = {"m_t": m[k], "m_s": m[k + 1]}
            z: Tensor | float = noise[:, k] if k < noise.shape[1] else 0.0
            if sampler == "euler-maruyama":
                x = euler_maruyama_step(x, x_hat, **clock, scale=c.scale, noise=z)
            else:
                law = {"delta_t": delta[k], "delta_s": delta[k + 1], "eta": eta}
                x = posterior_step(x, x_hat, y, **clock, **law, noise=z)
        return x_hat


class BrownianTraining:
    """BBDM or ABridge as a trainable method; the codec is frozen here."""

    kind = "brownian-bridge"
    needs_pairs = True
    recipe = Recipe(batch=32)
    averaged: tuple[str, ...] = ("network",)
    kept: tuple[str, ...] = ("network",)

    def __init__(self, codec: Any, pair: Pair, config: BrownianConfig = BrownianConfig()) -> None:  # noqa: B008
        self.codec, self.pair, self.config = codec.requires_grad_(False).eval(), pair, config
        self.name, self.deviation = NAMES[config.variance], DEVIATIONS[config.variance]
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
        """The loss, "network", of images (2B,1,H,W): B of the source, then the same B views in the target."""
        y, x0 = encoded_halves(self.codec, batch)
        c = self.config
        t = torch.randint(1, c.times + 1, (len(y),), generator=generator, device=generator.device).to(y)
        noise = torch.randn(y.shape, generator=generator, device=generator.device).to(y)
        m = mixture(t, c.variance, c.times)[:, None, None, None]
        delta = variance(t, c.variance, c.times, c.scale)[:, None, None, None]
        x_t = (1 - m) * x0 + m * y + delta.sqrt() * noise
        return {"network": F.l1_loss(self.network(x_t, t / c.times, y).float(), x_t - x0)}

    def state(self) -> dict[str, Any]:
        """JSON values that rebuild the method."""
        return method_state(self, self.codec, dataclasses.asdict(self.config))

    def translator(self) -> BrownianBridge:
        """The bridge of the network as it is now."""
        return BrownianBridge(self.network, self.codec, self.pair, self.config)


def _checked(noise: Tensor | None, expected: tuple[int, ...]) -> Tensor:
    """The noise, or none of it, if that is what is expected."""
    if noise is None and expected[1] == 0:
        return torch.empty(expected)
    if noise is None or noise.shape != expected:
        given = "missing" if noise is None else str(tuple(noise.shape))
        raise ParameterError(f"The noise is {given}, expected {expected}: (B, draws, C, h, w), standard normal.")
    return noise
