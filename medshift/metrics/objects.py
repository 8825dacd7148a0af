r"""What a translation makes of objects that no training head has: their contrast and their detectability.

Contrast recovery compares what the object changes in the output, D = with - without, to what it changes in the truth,
T, over the open field:

    recovery = <D, T> / <T, T>      1 right, 0 erased, above 1 exaggerated, below 0 inverted

Detectability is that of the channelised Hotelling observer: an image g gives channel responses v = Uᵀg; with Δ the mean
response to the object and S the covariance of responses over repeated exposures,

    d'² = Δᵀ S⁻¹ Δ

A finite sample has too large a d'²: its mean is ν/(ν-C-1) (d'² + C(1/K₁ + 1/K₀)) for C channels, K₁ and K₀ exposures
and ν degrees of freedom of S, from the noncentral F distribution of Hotelling's T². `hotelling_dprime` takes that off,
so its square is unbiased. All of it holds for Gaussian responses and exposures that are *independent*: give the images
with and without the object noise of their own, not one seed for both.

Channels are the object's own contrast and smoothed copies of it (`template_channels`). An observer for stationary
noise filters the object with the inverse of the noise's spectrum (Barrett & Myers, ch. 13), and few smoothings suffice
to build a smooth filter; Laguerre-Gauss channels would do for round objects, not for wires and fractures.

References:
    Myers & Barrett, Addition of a channel mechanism to the ideal-observer model, JOSA A 4, 2447 (1987)
    Gallas & Barrett, Validating the use of channels to estimate the ideal linear observer, JOSA A 20, 1725 (2003)
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from medshift.errors import ParameterError
from medshift.metrics.structure import _checked

__all__ = ["contrast_recovery", "hotelling_dprime", "template_channels"]

FAINTEST = 0.02  # display units; an object is fainter than that nowhere
SMOOTHINGS = (0.0, 1.0, 2.0, 4.0)  # pixels


def contrast_recovery(
    out_with: Tensor, out_without: Tensor, truth_with: Tensor, truth_without: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Share (N,) of an object's contrast that the output shows; NaN where the truth does not show the object.

    That is where the truth changes by less than `FAINTEST` at every pixel of the mask. Truths should be free of noise:
    theirs does not average out of <T, T> and lowers the recovery. The outputs' does, image by image.

    Args:
        out_with: (N,1,H,W) translations of the views with the object.
        out_without: (N,1,H,W) of the same views without it.
        truth_with: (N,1,H,W).
        truth_without: (N,1,H,W).
        mask: (N,1,H,W) bool, True in the open field, or in a part of it about the object.

    Raises:
        ParameterError: shapes differ, a value is not finite, or a mask is empty.
    """
    _checked(out_with, out_without, mask)
    _checked(truth_with, truth_without, mask)
    mask = _checked(out_with, truth_with, mask)
    shown = ((out_with.double() - out_without.double()) * mask).flatten(1)
    true = ((truth_with.double() - truth_without.double()) * mask).flatten(1)
    recovery = (shown * true).sum(1) / true.square().sum(1)
    return torch.where(true.abs().amax(1) >= FAINTEST, recovery, torch.nan).float()


def template_channels(
    template: Tensor, mask: Tensor | None = None, *, smoothings: tuple[float, ...] = SMOOTHINGS
) -> Tensor:
    """Channels (N,C,H,W) of unit norm: each object's contrast and Gaussian smoothings of it, cut to the mask.

    Args:
        template: (N,1,H,W) contrast of the object in the truth, free of noise: with minus without.
        mask: (N,1,H,W) bool, True in the open field.
        smoothings: C different standard deviations [pixels]; 0 is the contrast itself.

    Raises:
        ParameterError: an object is not seen in its mask, smoothings repeat or are negative, or as `contrast_recovery`.
    """
    mask = _checked(template, template, mask)
    if template.shape[1] != 1 or not smoothings or len(set(smoothings)) < len(smoothings) or not min(smoothings) >= 0:
        raise ParameterError(
            f"Channels need templates (N,1,H,W) and different smoothings of 0 or more; got {tuple(template.shape)} and "
            f"{smoothings}."
        )
    cut = template.double() * mask
    if not bool((cut.abs().flatten(1).amax(1) >= FAINTEST).all()):
        raise ParameterError(f"A template is below {FAINTEST} everywhere in its mask; drop views without their object.")
    side = min(template.shape[2:]) - 1
    layers = []
    for sigma in smoothings:
        width = min(2 * int(4 * sigma + 0.5) + 1, 2 * (side // 2) + 1)
        layers.append((gaussian_blur(cut, [width, width], [sigma, sigma]) if sigma else cut) * mask)
    channels = torch.cat(layers, dim=1)
    return channels / channels.square().sum(dim=(2, 3), keepdim=True).sqrt()


def hotelling_dprime(present: Tensor, absent: Tensor, channels: Tensor) -> Tensor:
    """Detectability d' (N,) of the object in each view by the channelised Hotelling observer.

    One covariance of the channels' responses is pooled over the views and over presence: give views together whose
    noise is alike, else one by one. The root of an unbiased d'², with its sign: where chance alone would separate the
    two better it is negative, so that means over views are not pushed up. Average d'·|d'|, not d'.

    Args:
        present: (K₁,N,1,H,W) exposures of N views with the object, K₁ at least 2.
        absent: (K₀,N,1,H,W) exposures of the same views without it, independent of the others.
        channels: (N,C,H,W), or (1,C,H,W) for all views.

    Raises:
        ParameterError: shapes do not fit, a value is not finite, there are too few exposures for the channels
            (N(K₁+K₀-2) must be at least C+2), or the channels' covariance is singular.
    """
    with_, without = _responses(present, absent, channels)
    (k1, n, c), k0 = with_.shape, len(without)
    freedom = n * (k1 + k0 - 2)
    if freedom < c + 2:
        raise ParameterError(
            f"{k1} and {k0} exposures of {n} views are too few for {c} channels: there are {freedom} degrees of "
            f"freedom and {c + 2} are needed; use more exposures or fewer channels."
        )
    rest = torch.cat([(v - v.mean(0)).reshape(-1, c) for v in (with_, without)])
    covariance = rest.T @ rest / freedom
    scale = covariance.diagonal().sqrt()
    correlation = covariance / (scale[:, None] * scale[None, :])
    if not bool((scale > 0).all()) or float(torch.linalg.cond(correlation)) > 1e10:
        raise ParameterError(
            "The channels' covariance is singular: channels repeat each other, or the exposures have no noise."
        )
    delta = (with_.mean(0) - without.mean(0)) / scale
    squared = (delta * torch.linalg.solve(correlation, delta.T).T).sum(1)
    unbiased = (freedom - c - 1) / freedom * squared - c * (1 / k1 + 1 / k0)
    return unbiased.sign() * unbiased.abs().sqrt()


def _responses(present: Tensor, absent: Tensor, channels: Tensor) -> tuple[Tensor, Tensor]:
    """Channel responses (K,N,C) in double precision."""
    if present.ndim != 5 or present.shape[1:] != absent.shape[1:] or present.shape[2] != 1:
        raise ParameterError(
            f"Exposures {tuple(present.shape)} and {tuple(absent.shape)} do not fit; both must be (K,N,1,H,W)."
        )
    n, _, *side = present.shape[1:]
    if channels.ndim != 4 or len(channels) not in (1, n) or list(channels.shape[2:]) != side:
        raise ParameterError(f"Channels must be ({n},C,{side[0]},{side[1]}); got {tuple(channels.shape)}.")
    if min(len(present), len(absent)) < 2:
        raise ParameterError(f"{len(present)} and {len(absent)} exposures are too few; noise needs two of each.")
    if not all(bool(torch.isfinite(t).all()) for t in (present, absent, channels)):
        raise ParameterError("An exposure or a channel holds NaN or infinity; a translation diverged.")
    u = channels.double().expand(n, -1, -1, -1)
    with_, without = (torch.einsum("knhw,nchw->knc", v[:, :, 0].double(), u) for v in (present, absent))
    return with_, without
