r"""A flow that widens: additive couplings that keep their input among their outputs, and adaptive normalisation.

A `HierarchicalCoupling` maps x (B,C,h,w) to K chunks of C channels, each less than the one before by a feature:

    y_0 = x,   y_k = y_{k-1} - f_k(x),   k = 1 .. K-1,   y = (y_0, ..., y_{K-1}).

From any y of that shape, made by the coupling or changed since, every chunk gives an estimate of x, and the inverse
averages them from the deepest to the shallowest, with weight γ for what comes from below:

    e_k = y_k + Σ_{j≤k} f_j(y_0),   s_{K-1} = e_{K-1},   s_k = γ s_{k+1} + (1-γ) e_k,   x = s_0.

It is a true inverse for any features: y_0 is x, so the f_j(y_0) are those that were subtracted, every e_k is x, and so
is any average of them. Nothing is remembered from the forward pass. The widened tensors form a set of the dimension
of x: forward(inverse(y)) is the point of that set which the average chooses, not y.

A `HierarchicalFlow` stacks couplings. Its way back may set mean and standard deviation of every channel to those that
a style code stands for (`adaptive_normalisation`) before each coupling is inverted; without a code it returns x. A
`StyleEncoder` makes codes.

References:
    Fan, Chen and Liu, Hierarchy Flow For High-Fidelity Image-to-Image Translation, 2023, arXiv:2308.06909.
    Dinh, Krueger and Bengio, NICE: Non-linear Independent Components Estimation, 2014, arXiv:1410.8516.
    Huang and Belongie, Arbitrary Style Transfer in Real-time with Adaptive Instance Normalization, 2017,
    arXiv:1703.06868.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medshift.errors import ParameterError

__all__ = ["HierarchicalCoupling", "HierarchicalFlow", "StyleEncoder", "adaptive_normalisation", "channel_statistics"]

MEMORY = 0.01  # share of a batch in the running mean of style codes
EPSILON = 1e-5  # added to variances, so that flat channels have a standard deviation


def channel_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (B,C) of every channel of x (B,C,h,w) over its pixels."""
    variance, mean = torch.var_mean(x, dim=(2, 3), correction=0)
    return mean, (variance + EPSILON).sqrt()


def adaptive_normalisation(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """x (B,C,h,w) with every channel moved and scaled to `mean` and `std` (B,C); with its own, x itself."""
    own_mean, own_std = (value[:, :, None, None] for value in channel_statistics(x))
    return (x - own_mean) / own_std * std[:, :, None, None] + mean[:, :, None, None]


class _Normalised(nn.Module):
    """Instance normalisation without parameters, also of a single pixel."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[2:], eps=EPSILON)


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, padding_mode="replicate")


class HierarchicalCoupling(nn.Module):
    """One widening block, C channels to `chunks` · C; see the module.

    Args:
        channels: C.
        chunks: K, at least 2.
        averaging: γ, in [0, 1).

    Raises:
        ParameterError: fewer chunks, or γ out of its range.
    """

    weights: Tensor

    def __init__(self, channels: int, chunks: int, averaging: float = 0.5) -> None:
        super().__init__()
        if chunks < 2 or not 0 <= averaging < 1:
            raise ParameterError(
                f"A coupling has {chunks} chunks and averages with {averaging}; expected 2 chunks or more and a "
                "weight in [0, 1): one chunk would be the input alone."
            )
        self.channels, self.chunks = channels, chunks
        hidden = 2 * channels
        self.net = nn.Sequential(
            _conv(channels, hidden),
            _Normalised(),
            nn.ReLU(),
            _conv(hidden, hidden),
            _Normalised(),
            nn.ReLU(),
            _conv(hidden, (chunks - 1) * channels),
            nn.ReLU(),
        )
        shares = [(1 - averaging) * averaging**k for k in range(chunks - 1)] + [averaging ** (chunks - 1)]
        self.register_buffer("weights", torch.tensor(shares), persistent=False)

    def _subtracted(self, x: Tensor) -> Tensor:
        """f_1, f_1 + f_2, ... of x, (B, K-1, C, h, w), in the precision of x.

        In bfloat16 the rounding of x on the way back would be another than on the way there, and its features too.
        """
        with torch.autocast(x.device.type, enabled=False):
            features = self.net(x)
        return features.unflatten(1, (self.chunks - 1, self.channels)).cumsum(dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """The widened y (B, K·C, h, w) of x (B,C,h,w)."""
        return torch.cat([x, (x[:, None] - self._subtracted(x)).flatten(1, 2)], dim=1)

    def inverse(self, y: Tensor) -> Tensor:
        """The x (B,C,h,w) of any y (B, K·C, h, w); exact for a y of `forward`."""
        first, others = y[:, : self.channels], y[:, self.channels :]
        estimates = others.unflatten(1, (self.chunks - 1, self.channels)) + self._subtracted(first)
        weights = self.weights.to(y)
        return weights[0] * first + (weights[1:, None, None, None] * estimates).sum(dim=1)


class HierarchicalFlow(nn.Module):
    """Couplings one on the other, C to C·K_1 to C·K_1·K_2 channels ..., and what a style code means to each.

    A three-layer perceptron for each coupling makes mean and standard deviation of its widened channels of a code. Its
    last bias starts at mean 0 and deviation 1, those of standardised latents.

    Args:
        channels: C.
        chunks: K of each coupling.
        code_channels: length S of a style code.
        averaging: γ of the couplings.

    Raises:
        ParameterError: as `HierarchicalCoupling`, or there is no coupling.
    """

    def __init__(self, channels: int, chunks: Sequence[int], code_channels: int, averaging: float = 0.5) -> None:
        super().__init__()
        if not chunks:
            raise ParameterError("A flow without couplings changes nothing; give it the chunks of one or more.")
        self.couplings, self.styles = nn.ModuleList(), nn.ModuleList()
        for count in chunks:
            self.couplings.append(HierarchicalCoupling(channels, count, averaging))
            channels *= count
            self.styles.append(_perceptron(code_channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """The widened tensor of x (B,C,h,w)."""
        for coupling in self.couplings:
            x = coupling(x)
        return x

    def inverse(self, y: Tensor, code: Tensor | None = None) -> Tensor:
        """The x (B,C,h,w) of a widened tensor; with a style code (B,S) every coupling's tensor is restyled first."""
        for coupling, style in zip(reversed(self.couplings), reversed(self.styles), strict=True):
            if code is not None:
                with torch.autocast(y.device.type, enabled=False):  # bfloat16 would round an image's brightness
                    mean, std = style(code.to(y.dtype)).chunk(2, dim=1)
                y = adaptive_normalisation(y, mean, std)
            assert isinstance(coupling, HierarchicalCoupling)
            y = coupling.inverse(y)
        return y

    def restyled(self, x: Tensor, code: Tensor) -> Tensor:
        """x (B,C,h,w) in the style of codes (B,S)."""
        return self.inverse(self(x), code)


class StyleEncoder(nn.Module):
    """Latents (B,C,h,w) of images to style codes (B,S), and the running mean `code` (S) of those seen in training."""

    code: Tensor
    batches: Tensor

    def __init__(self, channels: int, width: int, code_channels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(channels, width, 7, padding=3, padding_mode="replicate"),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1, padding_mode="replicate"),
            nn.ReLU(),
            nn.Conv2d(2 * width, 4 * width, 4, stride=2, padding=1, padding_mode="replicate"),
            nn.ReLU(),
        )
        self.head = nn.Linear(4 * width, code_channels)
        self.register_buffer("code", torch.zeros(code_channels))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def forward(self, latent: Tensor) -> Tensor:
        """Codes (B,S) of latents of any size."""
        bottom, right = -latent.shape[2] % 4, -latent.shape[3] % 4
        features = self.net(F.pad(latent, (0, right, 0, bottom), mode="replicate"))
        return self.head(features.mean(dim=(2, 3)))

    @torch.no_grad()
    def remember(self, codes: Tensor) -> None:
        """Take codes (B,S) into the running mean; the first batches count alike."""
        self.batches += 1
        share = torch.clamp(1 / self.batches, min=MEMORY)
        self.code.lerp_(codes.float().mean(dim=0), share.to(self.code))


def _perceptron(inputs: int, channels: int) -> nn.Sequential:
    last = nn.Linear(3 * channels, 2 * channels)
    with torch.no_grad():
        last.bias.copy_(torch.cat([torch.zeros(channels), torch.ones(channels)]))
    hidden = (nn.Linear(inputs, 3 * channels), nn.ReLU(), nn.Linear(3 * channels, 3 * channels), nn.ReLU())
    return nn.Sequential(*hidden, last)
