r"""CDTSDE: translation of pairs by a diffusion whose domain shifts at a speed of its own at each pixel.

`medshift.domain_shift` has the process and its sampler, `medshift.mixing_field` the fields. Network and field learn
together, by the error of the data prediction,

    x_t = a_t (Λ_t ⊙ y + (1 - Λ_t) ⊙ x_0) + σ_t ε,   x̂ = (x_t - σ_t F(x_t, t, y)) / a_t,   L = E |x̂ - x_0|²,

with t uniform on {0..t_1}. This loss falls wherever Λ falls, as x_t then holds more of x_0, so by itself it drives g to
its lower bound at every pixel; a path energy, as in the paper's Theorem 1, is not part of it. Two terms that hold
against that are offered, both off as published: ``gauge``, (mean g)², and ``energy``, (a²/g²) |Λ̇ ⊙ (y - x_0)|², what
the SDE itself charges for a path. `step` tells how far g saturates.

With the field ``linear`` this is DoSSR's process, trained by CDTSDE's loss.

What deviates from the paper and its code: the shared network of 1 M weights, which sees the source by its channels,
instead of Stable Diffusion with a ControlNet branch; t on {0..t_1}, where the released half of {0..T-1} has Λ = 1 and
teaches nothing of the shift; a moving average of the weights; the result is x̂ itself and not x at σ = .029. The field
learns ten times as fast as the network, as released.

References:
    Adaptive Domain Shift in Diffusion Models for Cross-Modality Image Translation, ICLR 2026, arXiv:2601.18623.
    Cui et al., DoSSR, NeurIPS 2024, arXiv:2409.17778.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from medshift.conditional import ConditionalNetwork
from medshift.domain_shift import ShiftSchedule, marginal_mean, path_weight, sample, step_grid
from medshift.errors import ParameterError
from medshift.mixing_field import ChannelField, ConstantField, MixingField, PixelField, RandomField, pixel_mean
from medshift.pairwise import Pair, Recipe, encoded_halves, method_state, through_codec
from medshift.translate import Codec, Domain

__all__ = ["CDTSDE", "CDTSDEConfig", "CDTSDETraining", "Field"]

Field = Literal["linear", "lowest", "channel", "pixel", "content", "random"]
NAMES: Mapping[str, str] = {
    "linear": "DOSSR (linear field)",
    "lowest": "CDTSDE, lowest field",
    "channel": "CDTSDE, channel field",
    "pixel": "CDTSDE",
    "content": "CDTSDE, field of the source",
    "random": "CDTSDE, random field",
}
SATURATED = 0.9  # of g's bound
LOWEST = -0.9
FIELD_RATE = 10.0  # times the network's learning rate


@dataclasses.dataclass(frozen=True, kw_only=True)
class CDTSDEConfig:
    """How CDTSDE is built and trained.

    Args:
        field: "pixel" as published, "channel" as in its ablation, "linear" for DoSSR; ours are "content", which sees
            the source, "random", which does not learn, and "lowest", g = -.9 everywhere.
        averaged: whether training, too, mixes by the mean of the field, as the released code samples.
        gauge: weight of (mean g)².
        energy: weight of the SDE's own path energy.
        length: T.
        last: t_1.
        channels: width of each level of the network; 1.0 M parameters with four latent channels.
        norm_groups: of its group normalisation.
        head_channels: of its attention heads.
        learning_rate: peak, of AdamW; the field's is ten times this.
        weight_decay: of AdamW.
    """

    field: Field = "pixel"
    averaged: bool = False
    gauge: float = 0.0
    energy: float = 0.0
    length: int = 1000
    last: int = 500
    channels: tuple[int, ...] = (24, 32, 48, 64)
    norm_groups: int = 8
    head_channels: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 1e-5

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))
        if self.field not in get_args(Field) or not (self.gauge >= 0 and self.energy >= 0):
            raise ParameterError(
                f"field, gauge and energy are {self.field!r}, {self.gauge} and {self.energy}; expected one of "
                f"{', '.join(get_args(Field))}, and numbers at or above 0."
            )
        ShiftSchedule(self.length, self.last)


class CDTSDE:
    """Translation by K reverse steps from noise about the source.

    Args:
        network: F(x_t, t, y).
        field: Λ of λ and y.
        codec: images to latents and back.
        pair: what it was trained for.
        schedule: a, σ, t_1.
        name: as it stands in tables.

    Attributes:
        clamped: pixels, over all translations so far, in which a step met a field that fell so far in time that its
            noise had to be held at that of the marginal.
    """

    needs_pairs = True

    def __init__(
        self,
        network: ConditionalNetwork,
        field: MixingField,
        codec: Codec,
        pair: Pair,
        schedule: ShiftSchedule,
        name: str,
    ) -> None:
        self.network, self.field, self.codec, self.pair = network, field, codec, pair
        self.schedule, self.name, self.clamped = schedule, name, 0

    def nfe(self, *, steps: int = 5, order: int = 1, stochastic: bool = True, average: bool = False) -> int:
        """Network evaluations per image: one a step, whatever the order."""
        return len(step_grid(self.schedule, steps)) - 1

    def draws(self, *, steps: int = 5, order: int = 1, stochastic: bool = True, average: bool = False) -> int:
        """Standard normal latents an image takes: of the start, and of each step but the last."""
        return self.nfe(steps=steps) if stochastic else 1

    @torch.no_grad()
    def translate(
        self,
        images: Tensor,
        source: Domain,
        target: Domain,
        *,
        noise: Tensor | None = None,
        steps: int = 5,
        order: int = 1,
        stochastic: bool = True,
        average: bool = False,
    ) -> Tensor:
        """Images (B,1,H,W) of `source` as `target` would show them, not clamped.

        Args:
            images: (B,1,H,W), about [-1, 1].
            source: the domain that it was trained from, by name or label.
            target: the one that it was trained to.
            noise: standard normal (B,S,C,h,w), S of `draws`; there is no translation without.
            steps: K, from 1 to t_1.
            order: 1, the paper's, or 2.
            stochastic: whether steps draw noise, as in the paper.
            average: sample with the mean of the field over pixels and channels, as the released code does.

        Raises:
            ParameterError: another pair than in training, or steps, an order or noise that do not fit.
        """
        self.pair.check(source, target)
        if noise is None:
            draws = self.draws(steps=steps, stochastic=stochastic)
            raise ParameterError(f"CDTSDE starts from noise: give noise (B,{draws},C,h,w), standard normal.")

        def change(y: Tensor) -> Tensor:
            y = y.float()
            made = sample(
                lambda x, t: predicted(self.network, x, y, torch.full((len(y),), t, device=y.device), self.schedule),
                lambda t: self.mixed(t, y, average=average),
                y,
                schedule=self.schedule,
                steps=steps,
                noise=noise,
                order=order,
                stochastic=stochastic,
            )
            self.clamped += made.clamped
            return made.x

        return through_codec(self.codec, images, change)

    @torch.no_grad()
    def mixed(self, t: int, y: Tensor, *, average: bool = False) -> Tensor:
        """Λ_t (B|1,C,h,w) of latents y (B,C,h,w), at an integer time."""
        lam = self.schedule.mixing(torch.tensor([t])).to(y).expand(len(y))
        field: Callable[[Tensor, Tensor], Tensor] = pixel_mean(self.field) if average else self.field
        return field(lam, y)


def predicted(network: ConditionalNetwork, x_t: Tensor, y: Tensor, t: Tensor, schedule: ShiftSchedule) -> Tensor:
    """x̂ = (x_t - σ F) / a for latents (B,C,h,w) and integer times t (B,), in float32."""
    alpha, sigma = (f(t).float().view(-1, 1, 1, 1) for f in (schedule.signal, schedule.noise))
    return (x_t - sigma * network(x_t, t.float() / schedule.length, y).float()) / alpha


class CDTSDETraining:
    """Training of a `CDTSDE`; see `medshift.pairwise.PairMethod`.

    Args:
        codec: frozen here.
        pair: source and target.
        config: hyper-parameters.
    """

    kind = "cdtsde"
    needs_pairs = True
    deviation = (
        "A network of 1 M weights on exact latents, the source by its channels, instead of Stable Diffusion with "
        "ControlNet; t within 0..t1; the field's ends are exact; a moving average."
    )
    recipe = Recipe(batch=32)
    kept: tuple[str, ...] = ("network", "field")

    def __init__(self, codec: Any, pair: Pair, config: CDTSDEConfig = CDTSDEConfig()) -> None:  # noqa: B008  frozen
        self.codec, self.pair, self.config = codec.requires_grad_(False).eval(), pair, config
        self.name = NAMES[config.field] + (", averaged in training" if config.averaged else "")
        self.schedule = ShiftSchedule(config.length, config.last)
        self.network = ConditionalNetwork(
            codec.channels, config.channels, norm_groups=config.norm_groups, head_channels=config.head_channels
        ).to(codec.mean.device)
        self.field = _field(config.field, codec.channels).to(codec.mean.device)
        groups = [{"params": list(self.network.parameters()), "lr": config.learning_rate}]
        learned = list(self.field.parameters())
        if learned:
            groups.append({"params": learned, "lr": FIELD_RATE * config.learning_rate})
        self.optimizer = AdamW(groups, weight_decay=config.weight_decay, fused=True)
        self.averaged: tuple[str, ...] = ("network", "field") if learned else ("network",)

    def modules(self) -> Mapping[str, nn.Module]:
        """The network, the field and the frozen codec."""
        return {"network": self.network, "field": self.field, "codec": self.codec}

    def optimizers(self) -> Mapping[str, Optimizer]:
        """One AdamW for both, of two rates; it descends the loss of its name."""
        return {"network": self.optimizer}

    def step(self, batch: Sequence[Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Losses of images (2B,1,H,W): B of the source, then the same B views in the target.

        Returns:
            "network", which is descended, "data", the error of x̂, "g", the mean of g, and "saturated", the share of
            pixels whose |g| is above nine tenths of its bound of .9.
        """
        source, target = encoded_halves(self.codec, batch)
        device = generator.device
        t = torch.randint(self.schedule.last + 1, (len(source),), generator=generator, device=device).to(source.device)
        noise = torch.randn(source.shape, generator=generator, device=device).to(source)
        lam = self.schedule.mixing(t).to(source)
        field: Callable[[Tensor, Tensor], Tensor] = pixel_mean(self.field) if self.config.averaged else self.field
        alpha, sigma = (f(t).to(source).view(-1, 1, 1, 1) for f in (self.schedule.signal, self.schedule.noise))
        x_t = marginal_mean(target, source, lam=field(lam, source), alpha=alpha) + sigma * noise
        x_hat = predicted(self.network, x_t, source, t, self.schedule)
        losses = {"data": (x_hat - target).square().mean()}
        g = self.field.modulation(lam, source)
        total = losses["data"] + self.config.gauge * g.mean().square()
        if self.config.energy:
            losses["energy"] = self._energy(field, t, source, target)
            total = total + self.config.energy * losses["energy"]
        saturated = (g.detach().abs() > SATURATED * abs(LOWEST)).float().mean()
        return {"network": total, **losses, "g": g.detach().mean(), "saturated": saturated}

    def _energy(self, field: Callable[[Tensor, Tensor], Tensor], t: Tensor, source: Tensor, target: Tensor) -> Tensor:
        """E (a²/g²) |Λ̇ ⊙ (y - x_0)|² at times t (B,), time in units of T."""
        earlier = t.clamp(max=self.schedule.last - 1)
        ends = [field(self.schedule.mixing(s).to(source), source) for s in (earlier, earlier + 1)]
        speed = (ends[1] - ends[0]) * self.schedule.length * (source - target)
        weight = path_weight(self.schedule, earlier).to(source).view(-1, 1, 1, 1)
        return (weight * speed.square()).mean()

    def state(self) -> dict[str, Any]:
        """JSON values that rebuild it and say how it was trained."""
        return method_state(self, self.codec, dataclasses.asdict(self.config))

    def translator(self) -> CDTSDE:
        """The translator of network and field as they are now."""
        return CDTSDE(self.network, self.field, self.codec, self.pair, self.schedule, self.name)


def _field(name: Field, channels: int) -> MixingField:
    makers: Mapping[str, Callable[[int], MixingField]] = {
        "linear": ConstantField,
        "lowest": lambda c: ConstantField(c, LOWEST),
        "channel": ChannelField,
        "pixel": PixelField,
        "content": lambda c: PixelField(c, content=True),
        "random": RandomField,
    }
    return makers[name](channels)
