"""Does a translation have the target's noise: its spectrum, its dependence on the signal, the histogram it leaves?

Noise is what differs between two exposures of one view, so `noise_from_pair` is its definition and to be used wherever
there are two. `noise_from_residual` is for single images: what a Gaussian blur of one pixel removes, which is noise and
fine structure alike, so it serves to compare images of the same anatomy and no more. Spectra are those of
`medshift.metrics.physics`; every one of them is taken in display units, range 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import wasserstein_distance
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from medshift.errors import ParameterError
from medshift.metrics.physics import eroded, radial_power_spectrum

# Sides of the blur's window and the distance from a border at which the residual holds no step of it.
WINDOW, MARGIN = 9, 4
GREY_BINS = 4096  # 0.0005 of the display range each


@dataclass(frozen=True)
class VarianceCurve:
    """Variance between exposures against their mean, (B,) each, of ``count`` pixels in each bin of the mean."""

    mean: np.ndarray
    variance: np.ndarray
    count: np.ndarray


def _checked(*images: Tensor) -> None:
    for image in images:
        if image.ndim != 4 or image.shape[1] != 1 or image.shape != images[0].shape or not image.numel():
            raise ParameterError(f"Images must be (N,1,H,W), all of one shape, not {[tuple(i.shape) for i in images]}.")
        if not torch.isfinite(image).all():
            raise ParameterError("An image holds NaN or infinity; a translation diverged, or a file is damaged.")


def _open(image: Tensor, mask: Tensor | None) -> Tensor:
    mask = torch.ones_like(image, dtype=torch.bool) if mask is None else mask
    if mask.shape != image.shape or mask.dtype != torch.bool:
        raise ParameterError(f"The mask must be boolean, {tuple(image.shape)}, not {mask.dtype}, {tuple(mask.shape)}.")
    return mask


def noise_from_pair(a: Tensor, b: Tensor) -> Tensor:
    """Noise (N,1,H,W) of one exposure from two of the same views: (a-b)/√2, anatomy cancelled.

    For independent noise of equal variance. Where the display saturates there is no noise to find: mask such pixels.
    """
    _checked(a, b)
    return (a - b) / 2**0.5


def noise_from_residual(image: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """High-pass residual (N,1,H,W) of single images, and where it is free of borders, to be used as its mask.

    What `medshift.metrics.physics.high_pass_std` takes the standard deviation of. A filter cancels in a ratio of
    spectra: the blur keeps a mask's border out of them, it does not part noise from fine structure.

    Raises:
        ParameterError: an image's open field is narrower than 9 pixels.
    """
    _checked(image)
    inner = eroded(_open(image, mask), MARGIN)
    if not inner.flatten(1).any(dim=1).all():
        raise ParameterError("The open field of an image is narrower than 9 pixels; its noise cannot be measured.")
    return image - gaussian_blur(image, [WINDOW, WINDOW], [1.0, 1.0]), inner


def noise_power_spectrum(noise: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Radial power spectrum of noise with mean zero, in the open part of the central half of each image.

    White noise of variance s² has power s² at every frequency. Closed pixels are set to zero and the power is divided
    by the open share of the Hann window's energy; a small open part blurs the spectrum.

    Args:
        noise: of `noise_from_pair` or `noise_from_residual` (N,1,H,W).
        mask: True where the field is open (N,1,H,W); None for everywhere.

    Returns:
        Frequencies (K,) [cycles/pixel] and power (N,K) [display units² pixel²], as `radial_power_spectrum`.

    Raises:
        ParameterError: less than a tenth of the window's energy is open in an image, or it is smaller than 8 x 8.
    """
    _checked(noise)
    mask = _open(noise, mask)
    side = min(noise.shape[-2:]) // 2
    if side < 4:
        raise ParameterError(f"A spectrum needs images of at least 8 x 8 pixels, not {tuple(noise.shape[-2:])}.")
    frequency, power = radial_power_spectrum(noise.double() * mask)
    top, left = (noise.shape[-2] - side) // 2, (noise.shape[-1] - side) // 2
    patch = mask[:, 0, top : top + side, left : left + side].double()
    window = torch.hann_window(side, periodic=False, dtype=torch.float64, device=noise.device) ** 2
    share = torch.einsum("nhw,h,w->n", patch, window, window) / window.sum() ** 2
    if (share < 0.1).any():
        raise ParameterError(f"Image {int(share.argmin())} is almost closed in its central half; drop that image.")
    return frequency, power / share[:, None]


def spectrum_distance(
    output: Tensor, target: Tensor, mask_output: Tensor | None = None, mask_target: Tensor | None = None
) -> float:
    """Root mean square over frequencies of 10 log10(mean power of ``output`` / mean power of ``target``) [dB].

    0 for equal spectra; noise of twice the variance and the same colour is 3.01 dB away. All frequencies count alike.
    Two exposures of the target are apart by more than zero: show their distance beside it.

    Args:
        output: noise, not images, of the translations (N,1,H,W), see `noise_power_spectrum`.
        target: noise of the target domain (M,1,H,W), obtained in the same way; H and W as above.
        mask_output: where ``output``'s field is open.
        mask_target: where ``target``'s field is open.

    Raises:
        ParameterError: sizes differ, or one has no noise at all at a frequency.
    """
    if output.shape[1:] != target.shape[1:]:
        raise ParameterError(f"Noise {tuple(output.shape)} and {tuple(target.shape)} must have equal height and width.")
    ours, theirs = noise_power_spectrum(output, mask_output)[1], noise_power_spectrum(target, mask_target)[1]
    return power_distance(ours.cpu().numpy(), theirs.cpu().numpy())


def power_distance(output: np.ndarray, target: np.ndarray) -> float:
    """`spectrum_distance` of the powers (N,K) and (M,K) of two sets, of which the means are taken.

    Raises:
        ParameterError: numbers of frequencies differ, or a set has no noise at all at one of them.
    """
    if output.ndim != 2 or target.ndim != 2 or output.shape[1] != target.shape[1]:
        raise ParameterError(f"Powers {output.shape} and {target.shape} must be (N,K) and (M,K), K the same.")
    power, reference = output.mean(axis=0), target.mean(axis=0)
    if not ((power > 0).all() and (reference > 0).all()):
        raise ParameterError("One set has no noise at all at a frequency, and no ratio exists; was noise ever added?")
    return float(np.sqrt(np.square(10.0 * np.log10(power / reference)).mean()))


def variance_against_mean(stack: Tensor, mask: Tensor | None = None, bins: int = 20) -> VarianceCurve:
    """Variance between exposures of the same views against their mean, in bins of equal numbers of pixels.

    Every second exposure, from the second on, chooses the bin; the others give mean and variance. Were the same ones
    used, a pixel bright by chance would stand in too bright a bin, and the slope would be too small.

    Args:
        stack: exposures (K,N,1,H,W), three at least, independent. Quanta make a line of linear signals only: a display
            curve bends it, and saturated pixels, which have no variance, are to be masked.
        mask: True where the field is open (N,1,H,W); None for everywhere.
        bins: number of bins.

    Raises:
        ParameterError: too few exposures, bins, or open pixels (two a bin), or a value is not finite.
    """
    if stack.ndim != 5 or len(stack) < 3:
        raise ParameterError(f"The stack must be (K,N,1,H,W) with at least three exposures, not {tuple(stack.shape)}.")
    _checked(*stack)
    chosen = _open(stack[0], mask)
    pixels = stack[:, chosen].double().cpu().numpy()
    if bins < 2 or pixels.shape[1] < 2 * bins:
        raise ParameterError(f"{pixels.shape[1]} open pixels cannot fill {bins} bins; two bins and two pixels each.")
    order = np.argsort(pixels[1::2].mean(axis=0), kind="stable")
    measured = pixels[0::2]
    mean, variance = measured.mean(axis=0), measured.var(axis=0, ddof=1)
    parts = np.array_split(order, bins)
    return VarianceCurve(
        np.array([mean[part].mean() for part in parts]),
        np.array([variance[part].mean() for part in parts]),
        np.array([len(part) for part in parts]),
    )


def histogram_w1(a: Tensor, b: Tensor, mask_a: Tensor | None = None, mask_b: Tensor | None = None) -> float:
    """1-Wasserstein distance between the values of all open pixels of two sets [display units].

    Every pixel counts alike, wherever it lies and whatever its image; the sets may differ in size. A shift of all
    values is its own distance.

    Args:
        a: images (N,1,H,W).
        b: images (M,1,H,W).
        mask_a: True where ``a``'s field is open (N,1,H,W); None for everywhere.
        mask_b: True where ``b``'s field is open.
    """
    _checked(a)
    _checked(b)
    first, other = a[_open(a, mask_a)], b[_open(b, mask_b)]
    if not (len(first) and len(other)):
        raise ParameterError("A mask leaves no pixel of a set open; drop the mask or the set.")
    return float(wasserstein_distance(first.double().cpu().numpy(), other.double().cpu().numpy()))


def grey_histograms(
    a: Tensor, b: Tensor, mask_a: Tensor | None = None, mask_b: Tensor | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts (N,4096) and (M,4096) of the open pixels of each image, and the middles of the bins (4096,).

    The bins span the values of both sets. `histograms_w1` is then `histogram_w1` to a bin's width, and quick where
    images are left out in turn.

    Args:
        a: images (N,1,H,W).
        b: images (M,1,H,W).
        mask_a: True where ``a``'s field is open (N,1,H,W); None for everywhere.
        mask_b: True where ``b``'s field is open.

    Raises:
        ParameterError: shapes do not fit, or a value is not finite.
    """
    _checked(a)
    _checked(b)
    low = float(min(a.min(), b.min()))
    edges = np.linspace(low, max(low + 1e-6, float(a.max()), float(b.max())), GREY_BINS + 1)
    first, other = (
        np.stack([np.histogram(image[field], edges)[0] for image, field in zip(_array(x), _array(m), strict=True)])
        for x, m in ((a.double(), _open(a, mask_a)), (b.double(), _open(b, mask_b)))
    )
    return first, other, (edges[1:] + edges[:-1]) / 2


def histograms_w1(a: np.ndarray, b: np.ndarray, middles: np.ndarray) -> float:
    """`histogram_w1` from the counts (N,B) and (M,B) of two sets in bins with these ``middles`` (B,).

    Raises:
        ParameterError: a set has no pixel.
    """
    if not (a.any() and b.any()):
        raise ParameterError("A mask leaves no pixel of a set open; drop the mask or the set.")
    return float(wasserstein_distance(middles, middles, a.sum(axis=0), b.sum(axis=0)))


def _array(x: Tensor) -> np.ndarray:
    return x.detach().cpu().numpy()
