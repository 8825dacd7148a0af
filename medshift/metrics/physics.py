"""What noise looks like: its high-pass strength and its power spectrum.

A translated image should have the target's noise, no more and no less. Inside one image noise and fine structure
cannot be told apart, so both measures are taken of output and truth alike and compared.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from medshift.errors import ParameterError


def eroded(mask: Tensor, pixels: int) -> Tensor:
    """The pixels of ``mask`` (N,1,H,W) further than ``pixels`` from its border and from the image's."""
    shut = F.pad((~mask).float(), [pixels] * 4, value=1.0)
    return F.max_pool2d(shut, 2 * pixels + 1, stride=1) == 0


def high_pass_std(image: Tensor, mask: Tensor) -> Tensor:
    """Standard deviation (N,) of what a Gaussian blur of one pixel removes, over ``mask`` (N,1,H,W) eroded by 4."""
    inner = eroded(mask, 4)
    if not inner.flatten(1).any(dim=1).all():
        raise ParameterError("The open field of an image is narrower than 9 pixels; its noise cannot be measured.")
    residual = image - gaussian_blur(image, [9, 9], [1.0, 1.0])
    count = inner.flatten(1).sum(1)
    mean = (residual * inner).flatten(1).sum(1) / count
    return (((residual - mean[:, None, None, None]) ** 2 * inner).flatten(1).sum(1) / count).sqrt()


def radial_power_spectrum(image: Tensor) -> tuple[Tensor, Tensor]:
    """Radially averaged power spectrum of the central half of each image under a Hann window.

    Returns:
        Spatial frequencies (K,) [cycles/pixel] and power (N, K) [display units² pixel²].
    """
    side = min(image.shape[-2:]) // 2
    top, left = (image.shape[-2] - side) // 2, (image.shape[-1] - side) // 2
    patch = image[..., top : top + side, left : left + side]
    window = torch.hann_window(side, periodic=False, device=image.device)
    window = window[:, None] * window[None, :]
    patch = (patch - patch.mean(dim=(-2, -1), keepdim=True)) * window
    power = torch.fft.fft2(patch).abs().square().squeeze(1) / window.square().sum()
    frequency = torch.fft.fftfreq(side, device=image.device)
    radius = (frequency[:, None] ** 2 + frequency[None, :] ** 2).sqrt()
    bins = (radius * side).round().long().clamp(max=side // 2)
    k = torch.arange(1, side // 2, device=image.device)
    spectrum = torch.stack([power[:, bins == i].mean(dim=1) for i in k], dim=1)
    return k / side, spectrum
