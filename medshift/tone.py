"""Tone curves between sets of images, and Gaussian blur: what the floors are made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from medshift.errors import ParameterError
from medshift.translate import Domain

QUANTILES = 1024


def quantiles(images: Tensor, n: int = QUANTILES) -> Tensor:
    """``n`` quantiles of all pixels, strictly increasing (ties are spread by float rounding)."""
    values = images.flatten().sort().values
    position = torch.linspace(0, len(values) - 1, n, dtype=torch.float64)
    q = values.double()[position.round().long()]
    return q + torch.arange(n, dtype=torch.float64) * 1e-9


def apply_curve(images: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Map pixel values piecewise linearly so that quantiles ``source`` become ``target``; ends are extended flat."""
    x = images.double().clamp(float(source[0]), float(source[-1]))
    i = torch.searchsorted(source, x.contiguous()).clamp(1, len(source) - 1)
    weight = (x - source[i - 1]) / (source[i] - source[i - 1])
    return (target[i - 1] + weight * (target[i] - target[i - 1])).to(images.dtype)


def blurred(images: Tensor, sigma: float) -> Tensor:
    """Images (N,1,H,W) blurred by a Gaussian of ``sigma`` pixels; unchanged at 0."""
    if sigma == 0:
        return images
    return gaussian_blur(images, [2 * int(4 * sigma + 1) + 1] * 2, [sigma, sigma])


class ToneCurves:
    """Tone curves between domains, each pair's fitted to all pixels of two unpaired training sets.

    Args:
        training: one tensor (N,1,H,W) a domain, in label order.
        domains: their names.
    """

    def __init__(self, training: Sequence[Tensor], domains: Sequence[str]):
        if len(training) != len(domains):
            raise ParameterError(f"{len(training)} training sets do not fit {len(domains)} domains.")
        self.domains = list(domains)
        self.quantiles = [quantiles(images) for images in training]

    def index(self, domain: Domain) -> int:
        """The label of a domain given by name or label; ParameterError for any other."""
        if isinstance(domain, str) and domain in self.domains:
            return self.domains.index(domain)
        if isinstance(domain, int) and 0 <= domain < len(self.domains):
            return domain
        raise ParameterError(f"No domain is called {domain!r}; the domains are {', '.join(self.domains)}.")

    def apply(self, images: Tensor, source: Domain, target: Domain) -> Tensor:
        """Images (N,1,H,W) of ``source`` with the tone of ``target``."""
        return apply_curve(images, self.quantiles[self.index(source)], self.quantiles[self.index(target)])
