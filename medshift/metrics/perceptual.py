"""Agreement of whole images: mean absolute error, MS-SSIM and two learned distances.

Images are (N,1,H,W) about [-1,1]; values outside are not clamped. Each function gives one number an image, which does
not depend on the images beside it. The last three look at neighbourhoods and cannot leave pixels out, so with a
``mask`` the reference's values are put behind the collimator: no difference is seen there. Compare such numbers between
methods on the same views, not between views of different collimation.

LPIPS and ST-LPIPS are different metrics with different weights. Neither was trained on X-rays.

References:
    Multi-scale structural similarity for image quality assessment, Wang et al., Asilomar 2003
    The unreasonable effectiveness of deep features as a perceptual metric, https://arxiv.org/abs/1801.03924
    Shift-tolerant perceptual similarity metric, https://arxiv.org/abs/2207.13686
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from medshift.errors import DataError, ParameterError
from medshift.metrics.structure import DATA_RANGE, _checked, masked_mean

__all__ = ["MS_SSIM_WEIGHTS", "StLpipsTo", "lpips", "mae", "ms_ssim", "st_lpips", "why_no_lpips"]

MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, finest scale first
WINDOW = 11  # pixels of the Gaussian window of SSIM
MIN_SIDE = 32  # pixels; AlexNet's two poolings leave nothing of smaller images
BATCH = 32


def mae(image: Tensor, reference: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean absolute error (N,) over the open field, in display units of which the range has two.

    Args:
        image: (N,1,H,W).
        reference: (N,1,H,W).
        mask: (N,1,H,W) bool, True in the open field.

    Raises:
        ParameterError: shapes differ, a value is not finite, or a mask is empty.
    """
    mask = _checked(image, reference, mask)
    return masked_mean((image.double() - reference.double()).abs(), mask).float()


def ms_ssim(image: Tensor, reference: Tensor, mask: Tensor | None = None, *, scales: int = 3) -> Tensor:
    """Multi-scale SSIM (N,) of the first ``scales`` of the five scales of Wang et al. (2003).

    Five scales of an 11×11 window need images of 176 pixels and more, so three are the default at every size; their
    weights are divided by their sum. It is not the five-scale MS-SSIM of papers: write "MS-SSIM, 3 scales". A scale on
    which image and reference are anticorrelated makes the value 0. As in torchmetrics, the contrast terms are means
    where the window fits, and the coarsest scale's SSIM a mean over the image, reflected at its border.

    Args:
        image: (N,1,H,W).
        reference: (N,1,H,W).
        mask: (N,1,H,W) bool; behind it the reference's values are used.
        scales: 1 to 5; 5 is the published definition.

    Raises:
        ParameterError: as `mae`, and where ``scales`` do not fit the images or are not 1 to 5.
    """
    if scales not in range(1, len(MS_SSIM_WEIGHTS) + 1):
        raise ParameterError(f"MS-SSIM has 1 to {len(MS_SSIM_WEIGHTS)} scales, not {scales}.")
    image, reference = _pair(image, reference, mask)
    smallest = WINDOW * max(2 ** (scales - 1), (scales - 1) ** 2)  # the window fits; and torchmetrics' own demand
    if min(image.shape[2:]) < smallest:
        raise ParameterError(
            f"Images of {tuple(image.shape[2:])} pixels are too small for {scales} scales of MS-SSIM, which need "
            f"{smallest} a side; ask for fewer scales and say so in the metric's name."
        )
    weights = MS_SSIM_WEIGHTS[:scales]

    def of(a: Tensor, b: Tensor) -> Tensor:
        return multiscale_structural_similarity_index_measure(
            a,
            b,
            sigma=1.5,
            kernel_size=WINDOW,
            data_range=DATA_RANGE,
            betas=tuple(weight / sum(weights) for weight in weights),
            normalize="relu",
            reduction="none",
        )

    return _batched(of, image, reference)


def lpips(image: Tensor, reference: Tensor, mask: Tensor | None = None) -> Tensor:
    """LPIPS (N,), version 0.1 on AlexNet; the grey image is each of the three channels.

    Args:
        image: (N,1,H,W), sides of at least 32 pixels.
        reference: (N,1,H,W).
        mask: (N,1,H,W) bool; behind it the reference's values are used.

    Raises:
        ParameterError: as `mae`, and for smaller images.
        DataError: AlexNet's weights are not in torch hub's cache, or damaged; nothing is ever downloaded.
    """
    pair = _pair(image, reference, mask, MIN_SIDE)
    if why := why_no_lpips():
        raise DataError(why)
    return _deep_distance(_lpips_network(str(_alexnet())), *pair)


def st_lpips(image: Tensor, reference: Tensor, mask: Tensor | None = None) -> Tensor:
    """Shift-Tolerant LPIPS (N,) on its own AlexNet; the grey image is each of the three channels.

    The weights come with the package ``stlpips_pytorch``. Autoencoders of `medshift.codec_training` are trained on
    this distance, so it flatters them and what is translated in their latents.

    Args:
        image: (N,1,H,W), sides of at least 32 pixels.
        reference: (N,1,H,W).
        mask: (N,1,H,W) bool; behind it the reference's values are used.

    Raises:
        ParameterError: as `lpips`.
    """
    pair = _pair(image, reference, mask, MIN_SIDE)
    return _deep_distance(_st_lpips_network(), *pair)


class StLpipsTo:
    """`st_lpips` to the same references time and again: their features, half of the work, are taken once.

    It holds 0.6 MB for each reference of 64².

    Args:
        reference: (N,1,H,W), sides of at least 32 pixels.
        mask: (N,1,H,W) bool; behind it the reference's values are used.

    Raises:
        ParameterError: as `lpips`.
    """

    def __init__(self, reference: Tensor, mask: Tensor | None = None) -> None:
        _, self.reference = _pair(reference, reference, mask, MIN_SIDE)
        self.mask = mask
        self.network: Any = _st_lpips_network().to(reference.device)
        self.known = [self._features(part) for part in self.reference.split(BATCH)]

    @torch.no_grad()
    def __call__(self, image: Tensor) -> Tensor:
        """Distances (N,) of images (N,1,H,W), one for each reference.

        Raises:
            ParameterError: as `lpips`.
        """
        image, _ = _pair(image, self.reference, self.mask, MIN_SIDE)
        found = []
        for part, known in zip(image.split(BATCH), self.known, strict=True):
            layers = zip(self.network.lins, self._features(part), known, strict=True)
            found.append(sum(lin((a - b).square()).mean(dim=(1, 2, 3)) for lin, a, b in layers))
        return torch.cat(found)

    @torch.no_grad()
    def _features(self, image: Tensor) -> list[Tensor]:
        """Of each layer, divided by their norm as the package does."""
        from stlpips_pytorch.utils import normalize_tensor

        seen = self.network.net(self.network.scaling_layer(image.expand(-1, 3, -1, -1)))
        return [normalize_tensor(layer) for layer in seen]


def why_no_lpips() -> str:
    """Empty where `lpips` can be computed, else the text for its place in a table."""
    path = _alexnet()
    return "" if path.is_file() else f"not computed: weights of AlexNet (LPIPS) missing, put them at {path}"


def _alexnet() -> Path:
    from torchvision.models import AlexNet_Weights

    return Path(torch.hub.get_dir()) / "checkpoints" / AlexNet_Weights.IMAGENET1K_V1.url.rpartition("/")[2]


@cache
def _lpips_network(path: str) -> nn.Module:
    from lpips import LPIPS

    # The random state is the caller's; the trunk's random weights, overwritten below, must not advance it.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # The package calls torchvision in a way that torchvision deprecates; its user can do nothing about it.
        warnings.filterwarnings("ignore", category=UserWarning, module=r"torchvision\.models\._utils")
        network = LPIPS(net="alex", pnet_rand=True, verbose=False).requires_grad_(False).eval()
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
        # LPIPS cuts AlexNet's layers into slices and keeps their numbers: "slice2.3.weight" is "features.3.weight".
        trunk = {name: weights[f"features.{name.partition('.')[2]}"] for name in network.net.state_dict()}
        network.net.load_state_dict(trunk)
    except (OSError, EOFError, KeyError, TypeError, RuntimeError, pickle.UnpicklingError) as error:
        raise DataError(f"{path}: not the weights of torchvision's AlexNet, or damaged; fetch them again.") from error
    return network


@cache
def _st_lpips_network() -> nn.Module:
    from stlpips_pytorch import stlpips

    with torch.random.fork_rng(devices=[]):
        network = stlpips.LPIPS(net="alex", variant="shift_tolerant", verbose=False)
    return network.requires_grad_(False).eval()


def _pair(image: Tensor, reference: Tensor, mask: Tensor | None, smallest: int = 1) -> tuple[Tensor, Tensor]:
    """Both images as float32, equal outside the mask."""
    mask = _checked(image, reference, mask)
    if image.shape[1] != 1 or min(image.shape[2:]) < smallest:
        raise ParameterError(
            f"Images of shape {tuple(image.shape)} cannot be compared here; expected (N,1,H,W), sides of at least "
            f"{smallest} pixels."
        )
    image, reference = image.float(), reference.float()
    return image.where(mask, reference), reference


def _deep_distance(network: nn.Module, image: Tensor, reference: Tensor) -> Tensor:
    network = network.to(image.device)
    return _batched(lambda a, b: network(a.expand(-1, 3, -1, -1), b.expand(-1, 3, -1, -1)), image, reference)


def _batched(of: Callable[[Tensor, Tensor], Tensor], image: Tensor, reference: Tensor) -> Tensor:
    pairs = zip(image.split(BATCH), reference.split(BATCH), strict=True)
    with torch.no_grad():
        return torch.cat([of(a, b).reshape(len(a)) for a, b in pairs])
