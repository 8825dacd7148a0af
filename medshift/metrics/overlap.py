"""Agreement of two binary masks: Dice's coefficient and the Hausdorff distance."""

from __future__ import annotations

import numpy as np
import torch
from skimage.metrics import hausdorff_distance
from torch import Tensor

from medshift.errors import ParameterError

__all__ = ["dice", "hausdorff"]


def dice(mask: Tensor, truth: Tensor) -> Tensor:
    """2 |A ∩ B| / (|A| + |B|), (N,), of bool masks (N,1,H,W); 1 where both are empty.

    Raises:
        ParameterError: the masks are not bool or differ in shape.
    """
    a, b = (part.flatten(1).double() for part in _checked(mask, truth))
    total = a.sum(1) + b.sum(1)
    return torch.where(total > 0, 2 * (a * b).sum(1) / total.clamp(min=1), 1.0).float()


def hausdorff(mask: Tensor, truth: Tensor, pixel_mm: Tensor) -> Tensor:
    """The Hausdorff distance (N,) [mm] of bool masks (N,1,H,W): the farthest that a pixel of one is from the other.

    Where one mask alone is empty it is the image's diagonal, as no distance is larger; where both are, 0.

    Args:
        mask: bool.
        truth: bool.
        pixel_mm: (N,) side of a pixel.

    Raises:
        ParameterError: as of `dice`, or another number of pixel sizes.
    """
    masks = [part[:, 0].numpy() for part in _checked(mask, truth)]
    if pixel_mm.shape != (len(mask),):
        raise ParameterError(f"Pixel sizes are {tuple(pixel_mm.shape)}; expected one for each of {len(mask)} masks.")
    diagonal = float(np.hypot(*mask.shape[-2:]))
    pixels = [hausdorff_distance(a, b) for a, b in zip(*masks, strict=True)]
    return torch.tensor([min(float(p), diagonal) for p in pixels]) * pixel_mm.float()


def _checked(mask: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    if mask.dtype != torch.bool or truth.dtype != torch.bool or mask.shape != truth.shape or mask.ndim != 4:
        raise ParameterError(
            f"Masks must both be bool (N,1,H,W) of one shape; got {mask.dtype} {tuple(mask.shape)} and {truth.dtype} "
            f"{tuple(truth.shape)}. Threshold an image first."
        )
    return mask.cpu(), truth.cpu()
