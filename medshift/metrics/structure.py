"""Per-image agreement with a reference, inside the open field of the collimator.

Images are (N,1,H,W) on [-1,1], so the data range is 2. Behind the collimator every method is right for nothing, so
those pixels do not count. SSIM uses the 11×11 Gaussian window with standard deviation 1.5 of Wang et al. (2004).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from medshift.errors import ParameterError

DATA_RANGE = 2.0


def _checked(image: Tensor, reference: Tensor, mask: Tensor | None) -> Tensor:
    if image.shape != reference.shape or image.ndim != 4:
        raise ParameterError(
            f"Images {tuple(image.shape)} and {tuple(reference.shape)} cannot be compared; both must be (N,1,H,W)."
        )
    if not (torch.isfinite(image).all() and torch.isfinite(reference).all()):
        raise ParameterError(
            "An image to compare holds NaN or infinity; a translation diverged, or a file is damaged."
        )
    mask = torch.ones_like(image, dtype=torch.bool) if mask is None else mask.expand_as(image)
    if not mask.flatten(1).any(dim=1).all():
        raise ParameterError("A mask leaves no pixel of an image open; drop that image.")
    return mask


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean (N,) of ``values`` (N,1,H,W) over each image's own mask."""
    return (values * mask).flatten(1).sum(1) / mask.flatten(1).sum(1)


def psnr(image: Tensor, reference: Tensor, mask: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio [dB] (N,) for a range of 2; infinity where the two are equal."""
    mask = _checked(image, reference, mask)
    error = masked_mean((image.double() - reference.double()) ** 2, mask)
    return (10.0 * torch.log10(DATA_RANGE**2 / error)).float()


def ssim(image: Tensor, reference: Tensor, mask: Tensor | None = None) -> Tensor:
    """Structural similarity (N,): the mean of the SSIM map over the open field."""
    mask = _checked(image, reference, mask)
    result = structural_similarity_index_measure(
        image, reference, sigma=1.5, kernel_size=11, data_range=DATA_RANGE, reduction="none", return_full_image=True
    )
    return masked_mean(result[1], mask)
