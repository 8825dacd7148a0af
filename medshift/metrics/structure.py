"""Per-image agreement with a reference, inside the open field of the collimator.

Images are (N,1,H,W) on [-1,1], so the data range is 2. Behind the collimator every method is right for nothing, so
those pixels do not count. SSIM uses the 11×11 Gaussian window with standard deviation 1.5 of Wang et al. (2004).

A translation may overshoot the range and is judged as it is. A reference is data and does not: one further out than
`OVERSHOOT`, or a translation with a pixel beyond `FURTHEST`, is on another scale or has diverged, and is refused.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from medshift.errors import ParameterError

DATA_RANGE = 2.0
OVERSHOOT = 0.5  # beyond [-1,1]; what an autoencoder's reference may be out
FURTHEST = 50.0  # below what images of 8 bits reach, above what a network in early training makes
WINDOW = 11  # pixels


def _checked(image: Tensor, reference: Tensor, mask: Tensor | None) -> Tensor:
    if image.shape != reference.shape or image.ndim != 4:
        raise ParameterError(
            f"Images {tuple(image.shape)} and {tuple(reference.shape)} cannot be compared; both must be (N,1,H,W)."
        )
    if not (torch.isfinite(image).all() and torch.isfinite(reference).all()):
        raise ParameterError("An image to compare holds NaN or infinity; a translation diverged, or a file is damaged.")
    mask = torch.ones_like(image, dtype=torch.bool) if mask is None else mask.expand_as(image)
    if not mask.flatten(1).any(dim=1).all():
        raise ParameterError("A mask leaves no pixel of an image open; drop that image.")
    return mask


def _on_scale(image: Tensor, reference: Tensor, mask: Tensor) -> None:
    for name, values, furthest in (("reference", reference, 1.0 + OVERSHOOT), ("image", image, FURTHEST)):
        found = float(values.abs().where(mask, 0.0).max())
        if found > furthest:
            raise ParameterError(
                f"The {name} reaches {found:.3g}, but images are on [-1,1], and at most {furthest:g} can be compared; "
                "rescale it, or leave the diverged translation out and say so."
            )


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean (N,) of ``values`` (N,1,H,W) over each image's own mask."""
    return (values * mask).flatten(1).sum(1) / mask.flatten(1).sum(1)


def psnr(image: Tensor, reference: Tensor, mask: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio [dB] (N,) for a range of 2; infinity where the two are equal.

    Args:
        image: (N,1,H,W).
        reference: (N,1,H,W).
        mask: (N,1,H,W) bool, True in the open field.

    Raises:
        ParameterError: shapes differ, a value is not finite or off the scale, or a mask is empty.
    """
    mask = _checked(image, reference, mask)
    _on_scale(image, reference, mask)
    error = masked_mean((image.double() - reference.double()) ** 2, mask)
    return (10.0 * torch.log10(DATA_RANGE**2 / error)).float()


def ssim(image: Tensor, reference: Tensor, mask: Tensor | None = None) -> Tensor:
    """Structural similarity (N,): the mean of the SSIM map over the open field.

    Args:
        image: (N,1,H,W), sides of at least 11 pixels.
        reference: (N,1,H,W).
        mask: (N,1,H,W) bool, True in the open field.

    Raises:
        ParameterError: as `psnr`, and for images smaller than the window.
    """
    mask = _checked(image, reference, mask)
    _on_scale(image, reference, mask)
    if min(image.shape[-2:]) < WINDOW:
        raise ParameterError(
            f"Images of {tuple(image.shape[-2:])} pixels are smaller than SSIM's window of {WINDOW}; take larger ones."
        )
    result = structural_similarity_index_measure(
        image, reference, sigma=1.5, kernel_size=WINDOW, data_range=DATA_RANGE, reduction="none", return_full_image=True
    )
    return masked_mean(result[1], mask)
