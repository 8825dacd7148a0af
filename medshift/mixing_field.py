r"""Mixing fields Λ_t of `medshift.domain_shift`: how far each pixel and channel has gone from target to source.

All are functions of the scalar λ_t and keep its ends. Three learn, or hold, a modulation g in (-1, 1):

    Λ = λ [1 + g (1 - λ)],      λ² ≤ Λ ≤ 2λ - λ²,      dΛ/dλ = 1 + g (1 - 2λ) > 0 for a g that does not depend on λ.

- `ConstantField`: one g for all; g = 0 is DoSSR's process, g near -1 the lowest path of the family.
- `PixelField`: g = g_max tanh(S_θ(λ, π(p))), a small convolutional network on λ and on positional encodings of the
  pixel. It may depend on λ, so that Λ rises in t is not given but measured (`falls`). It sees no image, as published:
  one field for all. With ``content`` it also sees the source y, which is our extension.
- `RandomField`: a smooth g of the same size that nobody learned, the control of what is learned.
- `ChannelField`: a polynomial of degree five per channel, the same for all pixels, in Bernstein's basis with rising
  coefficients from 0 to 1, so that it rises.

What deviates from the released S_θ: coordinates follow the latent's height and width instead of a fixed 64×64 buffer;
they enter as four channels beside λ instead of one sum; there is no second sigmoid behind, which moves the released
field's ends to .047 and .953; and |g| may reach .9 instead of .46.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medshift.domain_shift import ShiftSchedule
from medshift.errors import ParameterError

__all__ = [
    "ChannelField",
    "ConstantField",
    "MixingField",
    "PixelField",
    "RandomField",
    "falls",
    "modulated",
    "pixel_mean",
]

G_MAX = 0.9
DEGREE = 5
WAVES = 12  # of a random field, per channel


class MixingField(nn.Module):
    """Λ as a function of λ; subclasses say how.

    Attributes:
        channels: C of the latents.
        content: whether it sees the source.
    """

    content = False

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, lam: Tensor, y: Tensor) -> Tensor:
        """Λ (B,C,H,W) in [0,1] of λ (B,), for sources y (B,C,H,W), of which most fields use the size alone."""
        return modulated(lam, self.modulation(lam, y))

    def modulation(self, lam: Tensor, y: Tensor) -> Tensor:
        """g (B|1,C,H,W) in (-1,1), for pictures and regularisers."""
        raise NotImplementedError


class ConstantField(MixingField):
    """The same g for all pixels, channels and times; 0 is the linear field of DoSSR."""

    def __init__(self, channels: int, g: float = 0.0) -> None:
        super().__init__(channels)
        if not -1 < g < 1:
            raise ParameterError(f"g is {g}; expected a number between -1 and 1.")
        self.register_buffer("g", torch.tensor(float(g)))

    g: Tensor

    def modulation(self, lam: Tensor, y: Tensor) -> Tensor:
        """See `MixingField`."""
        return self.g.to(y).expand(1, *y.shape[1:])


class PixelField(MixingField):
    """g by a convolutional network on λ, positions and, with ``content``, the source.

    Args:
        channels: C of the latents.
        content: whether the network sees y.
        g_max: bound of |g|.
    """

    def __init__(self, channels: int, *, content: bool = False, g_max: float = G_MAX) -> None:
        super().__init__(channels)
        self.content, self.g_max = content, g_max
        self.network = nn.Sequential(
            nn.Conv2d(5 + content * channels, 8, 5, padding=2, padding_mode="replicate"),
            nn.GroupNorm(1, 8),
            nn.GELU(),
            nn.Conv2d(8, 16, 3, padding=1, padding_mode="replicate"),
            nn.GroupNorm(1, 16),
            nn.GELU(),
            nn.Conv2d(16, channels, 3, padding=1, padding_mode="replicate"),
        )

    def modulation(self, lam: Tensor, y: Tensor) -> Tensor:
        """See `MixingField`."""
        batch, _, height, width = y.shape
        entered = [
            lam.to(y).view(-1, 1, 1, 1).expand(batch, 1, height, width),
            positions(height, width, y).expand(batch, -1, -1, -1),
        ]
        if self.content:
            entered.append(y)
        elif bool((lam == lam[0]).all()):
            entered = [part[:1] for part in entered]  # one field for the batch
        return self.g_max * torch.tanh(self.network(torch.cat(entered, dim=1)).float())


class RandomField(MixingField):
    """A smooth g that is drawn once and stays: sums of waves of up to three periods over the image."""

    waves: Tensor
    phases: Tensor

    def __init__(self, channels: int, *, seed: int = 0, g_max: float = G_MAX) -> None:
        super().__init__(channels)
        generator = torch.Generator().manual_seed(seed)
        self.g_max = g_max
        self.register_buffer("waves", 2 * math.pi * 3 * (2 * torch.rand(channels, WAVES, 2, generator=generator) - 1))
        self.register_buffer("phases", 2 * math.pi * torch.rand(channels, WAVES, generator=generator))

    def modulation(self, lam: Tensor, y: Tensor) -> Tensor:
        """See `MixingField`."""
        height, width = y.shape[2:]
        rows, columns = torch.meshgrid(_centres(height, y), _centres(width, y), indexing="ij")
        angle = self.waves[..., 0, None, None] * rows + self.waves[..., 1, None, None] * columns
        g = torch.cos(angle + self.phases[..., None, None]).sum(1) * math.sqrt(2 / WAVES)
        return self.g_max * torch.tanh(g)[None]


class ChannelField(MixingField):
    """Λ_c = p_c(λ), a rising polynomial of degree five with p(0) = 0 and p(1) = 1; it starts as λ itself."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.rises = nn.Parameter(torch.zeros(channels, DEGREE))
        self.register_buffer("binomials", torch.tensor([math.comb(DEGREE, k) for k in range(DEGREE + 1)]).float())

    binomials: Tensor

    def forward(self, lam: Tensor, y: Tensor) -> Tensor:
        """See `MixingField`."""
        lam = lam.to(y).view(-1, 1, 1)
        powers = torch.arange(DEGREE + 1, device=y.device)
        basis = self.binomials.to(y) * lam**powers * (1 - lam) ** (DEGREE - powers)
        heights = F.pad(self.rises.softmax(1).cumsum(1), (1, 0))
        heights = torch.cat([heights[:, :-1], torch.ones_like(heights[:, :1])], dim=1)  # 1 but for rounding
        # Rounding may leave [0, 1] by one unit in the last place.
        return (basis @ heights.to(y).T).clamp(0, 1).view(-1, self.channels, 1, 1).expand(-1, -1, *y.shape[2:])

    def modulation(self, lam: Tensor, y: Tensor) -> Tensor:
        """The g that would give this Λ, which may lie outside (-1,1); 0 where λ is at an end."""
        value, lam = self(lam, y), lam.to(y).view(-1, 1, 1, 1)
        inner = (lam > 0) & (lam < 1)
        return torch.where(inner, (value - lam) / (lam * (1 - lam)).where(inner, torch.ones_like(lam)), 0.0)


def modulated(lam: Tensor, g: Tensor) -> Tensor:
    """Λ = λ [1 + g (1 - λ)] of λ (B,) and g (B|1,C,H,W); exactly 0 and 1 at the ends."""
    lam = lam.to(g).view(-1, 1, 1, 1)
    return lam * (1 + g * (1 - lam))


def pixel_mean(field: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """A field as the released code samples with it: its mean over channels and pixels, everywhere."""

    def mean(lam: Tensor, y: Tensor) -> Tensor:
        value = field(lam, y)
        return value.mean((1, 2, 3), keepdim=True).expand_as(value)

    return mean


@torch.no_grad()
def falls(field: Callable[[Tensor, Tensor], Tensor], y: Tensor, schedule: ShiftSchedule) -> float:
    """Share of pixels, channels and unit steps of time in which Λ falls although t rises; 0 for a monotone field."""
    lam = schedule.mixing(torch.arange(schedule.last + 1)).to(y)
    values = [field(part.expand(len(y)), y) for part in lam.split(1)]
    fallen = [float((b < a - 1e-6).float().mean()) for a, b in zip(values[:-1], values[1:], strict=True)]
    return sum(fallen) / len(fallen)


def positions(height: int, width: int, like: Tensor) -> Tensor:
    """Sine and cosine of both coordinates (1,4,H,W); a coordinate runs over half a period, so that ends differ."""
    rows, columns = torch.meshgrid(_centres(height, like), _centres(width, like), indexing="ij")
    parts = [f(math.pi * axis) for axis in (rows, columns) for f in (torch.sin, torch.cos)]
    return torch.stack(parts)[None]


def _centres(n: int, like: Tensor) -> Tensor:
    """Pixel centres from 0 to 1."""
    return ((torch.arange(n, device=like.device) + 0.5) / n).to(like.dtype)
