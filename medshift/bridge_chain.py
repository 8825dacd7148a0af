r"""A chain of Brownian bridges whose end a generator predicts from each state, and that generator.

The chain has T steps at harmonic times: t_0 = 0, and t_1 ... t_T are the partial sums of 0, 1, 1/2, ..., 1/(T-1),
scaled to [½, 1]; so 0, .5, .74, .86, .94, 1 for T = 5. From the state X_t of time t and the end x̂_1 predicted there,

    X_s = (1-i) X_t + i x̂_1 + √(τ (s-t) (1-i)) ε,    i = (s-t) / (1-t),

which is the law at time s of a Brownian bridge of variance τ from X_t to x̂_1. If x̂_1 is the same at all steps, X_t is
N((1-t) X_0 + t x̂_1, τ t (1-t)).

References:
    Kim et al., Unpaired Image-to-Image Translation via Neural Schrödinger Bridge, 2024, arXiv:2305.15086.
    Karras et al., A Style-Based Generator Architecture for Generative Adversarial Networks, 2018, arXiv:1812.04948
    (noise that modulates).
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medshift.adversarial import ResNetGenerator
from medshift.errors import ParameterError

__all__ = ["StepGenerator", "at_step", "bridge_step", "code_of", "harmonic_times", "walk"]


class StepGenerator(nn.Module):
    """`medshift.adversarial.ResNetGenerator` whose residual blocks are modulated by step and code.

    Args:
        channels: of the latents.
        steps: T.
        width: channels after the first convolution, doubled by each downsampling.
        blocks: residual blocks.
        downs: convolutions of stride 2, and as many upwards.
        code: length of z and of the modulating vector.

    Attributes:
        feature_channels: channels of each of `features`.
    """

    def __init__(self, channels: int, *, steps: int, width: int, blocks: int, downs: int, code: int) -> None:
        super().__init__()
        self.steps, self.code = steps, code
        self.outer = ResNetGenerator(channels, width=width, blocks=1, downs=downs)
        self.outer.encoder = self.outer.encoder[:-1]  # the modulated blocks take the place of the plain one
        top = width * self.outer.stride
        self.blocks = nn.ModuleList(_ModulatedBlock(top, code) for _ in range(blocks))
        self.embedding = nn.Embedding(steps, code)
        self.mapping = nn.Sequential(
            nn.Linear(2 * code, code), nn.LeakyReLU(0.2), nn.Linear(code, code), nn.LeakyReLU(0.2)
        )
        self.kept = sorted({0, blocks // 2})  # blocks whose outputs are features
        self.feature_channels = (channels, *(width * 2**k for k in range(downs + 1)), *(top for _ in self.kept))

    def forward(self, x: Tensor, step: int, code: Tensor) -> Tensor:
        """The end (B,C,h,w) of the chain, predicted from its state x (B,C,h,w) at a step with codes (B, code)."""
        return self.outer.decoder(self._encode(x, step, code)[-1])[..., : x.shape[-2], : x.shape[-1]]

    def features(self, x: Tensor, step: int, code: Tensor) -> list[Tensor]:
        """Input, first convolution, downsamplings, first and middle block: what `PatchNCE` compares."""
        held = self._encode(x, step, code)
        first = len(held) - len(self.blocks)
        return [*held[:first], *(held[first + k] for k in self.kept)]

    def _encode(self, x: Tensor, step: int, code: Tensor) -> list[Tensor]:
        held = self.outer.features(x, range(len(self.outer.encoder) + 1))
        direction = code * torch.rsqrt(code.square().mean(1, keepdim=True) + 1e-8)
        style = self.mapping(torch.cat([direction, self.embedding.weight[step].expand_as(code)], dim=1))
        for block in self.blocks:
            held.append(block(held[-1], style))
        return held


class _ModulatedBlock(nn.Module):
    """x + norm(conv(relu(gain norm(conv(x)) + offset))), gain and offset by channel, linear in the style."""

    def __init__(self, width: int, style: int) -> None:
        super().__init__()
        self.first, self.second = (
            nn.Conv2d(width, width, 3, padding=1, padding_mode="reflect", bias=False) for _ in range(2)
        )
        self.norm, self.modulation = nn.InstanceNorm2d(width), nn.Linear(style, 2 * width)
        for layer in (self.first, self.second, self.modulation):
            nn.init.normal_(layer.weight, 0.0, 0.02)
        with torch.no_grad():
            self.modulation.bias.copy_(torch.tensor([1.0, 0.0]).repeat_interleave(width))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        gain, offset = self.modulation(style)[..., None, None].chunk(2, dim=1)
        return x + self.norm(self.second(F.relu(gain * self.norm(self.first(x)) + offset)))


def harmonic_times(steps: int) -> tuple[float, ...]:
    """t_0 = 0, then t_1 ... t_T from ½ to 1, at distances as 1, 1/2, ..., 1/(T-1); for T = 1, (0, 1)."""
    sums = [0.0, *itertools.accumulate(1 / k for k in range(1, steps))]
    return (0.0, *(0.5 + 0.5 * part / sums[-1] for part in sums)) if steps > 1 else (0.0, 1.0)


def bridge_step(x: Tensor, end: Tensor, step: int, noise: Tensor, tau: float, steps: int) -> Tensor:
    """The state of step + 1 from x at `step`, on a Brownian bridge to `end`; all (B,C,h,w), noise standard normal."""
    now, then = harmonic_times(steps)[step : step + 2]
    part = (then - now) / (1 - now)
    return (1 - part) * x + part * end + math.sqrt(tau * (then - now) * (1 - part)) * noise


def walk(generator: StepGenerator, x: Tensor, step: int, noise: Tensor, tau: float) -> Tensor:
    """The state (B,C,h,w) of the chain from x at `step`; of noise (B,S,C,h,w), S at least 2 `step`, two per step."""
    for k in range(step):
        end = generator(x, k, code_of(noise[:, 2 * k], generator.code))
        x = bridge_step(x, end, k, noise[:, 2 * k + 1], tau, generator.steps)
    return x


def code_of(noise: Tensor, length: int) -> Tensor:
    """Standard normal codes (B, length) from standard normal latents (B,C,h,w): sums of equally many of them, scaled.

    Raises:
        ParameterError: fewer components than the code is long.
    """
    flat = noise.flatten(1)
    many = flat.shape[1] // length
    if not many:
        raise ParameterError(
            f"Latents {tuple(noise.shape[1:])} have fewer components than a code of {length}; choose a shorter code."
        )
    return flat[:, : many * length].unflatten(1, (length, many)).sum(2) / math.sqrt(many)


def at_step(x: Tensor, step: int, steps: int) -> Tensor:
    """x (B,C,h,w) with T more channels, all 0 but that of the step, which is 1."""
    planes = x.new_zeros(len(x), steps, *x.shape[2:])
    planes[:, step] = 1
    return torch.cat([x, planes], dim=1)
