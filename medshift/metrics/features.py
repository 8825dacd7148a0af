"""Named feature extractors for metrics of sets. A metric of features says whose in its name: "FID (ST-AlexNet)".

| name | D | what | weights |
|---|---|---|---|
| ST-AlexNet | 1152 | shift-tolerant LPIPS AlexNet, its five layers | inside the package `stlpips_pytorch` |
| ST-VGG | 1472 | shift-tolerant LPIPS VGG-16, its five layers | inside the package `stlpips_pytorch` |
| Inception | 2048 | pool3 of Inception 2015-12-05, clean-fid's resize: FID on these is ``fid_clean`` | the user's |
| CLIP | 768 | ViT-L/14 at 336 pixels, unit vectors: CMMD is defined on these | the user's |

The ST features are those that the ST-LPIPS distance compares, pooled: at each position of a layer the channels are
scaled to a unit vector, and the vectors are averaged over positions. All five layers are kept, since one alone sees
too little: the first hardly tells a noisy image from a clean one (fine noise shows in the pooled layers 3 to 5), and
pooled deep layers say little about edges and fine shape. Without the scaling, the second layer's larger activations
are most of every distance; with it, all layers have norms near 0.7. The price: a uniform gain of the grey values is
seen weakly, so compare histograms too. Images enter at their own size, where their noise is: distances at different
sizes are not comparable.

Inception and CLIP are published for 8-bit files, so images are rounded to 8 bits for these two. Nothing is downloaded.

References:
    Shift-tolerant Perceptual Similarity Metric, https://arxiv.org/abs/2207.13686
    On Aliased Resizing and Surprising Subtleties in GAN Evaluation (clean-fid), https://arxiv.org/abs/2104.11222
    Rethinking FID: Towards a Better Evaluation Metric for Image Generation (CMMD), https://arxiv.org/abs/2401.09603
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from medshift.errors import DataError, ParameterError

__all__ = ["NAMES", "Extractor", "WeightsMissing", "extractor", "why_not"]

NAMES = ("ST-AlexNet", "ST-VGG", "Inception", "CLIP")
MIN_SIDE = 24  # pixels; below, the ST networks' reflections are wider than their deepest layers
OVERSHOOT = 0.5  # beyond [-1, 1]; a translation that is further out has diverged

ROOT = Path(__file__).resolve().parents[2]  # a relative place of weights is one of this checkout
INCEPTION_FILE = "inception-2015-12-05.pt"  # clean-fid loads no other name
PLACES = {"Inception": f"weights/{INCEPTION_FILE}", "CLIP": "weights/clip-vit-large-patch14-336"}
VARIABLES = {"Inception": "MEDSHIFT_INCEPTION", "CLIP": "MEDSHIFT_CLIP"}

# What makes a CLIP the one that CMMD is defined on.
CLIP_SHAPE = {
    "image_size": 336,
    "patch_size": 14,
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "projection_dim": 768,
}

Embedding = Callable[[Tensor], Tensor]


class WeightsMissing(DataError):  # noqa: N818
    """Weights that only the user can bring are not there; the text can stand in a table in a number's place."""


@dataclass(frozen=True)
class Extractor:
    """Images (N,1,H,W) on [-1,1] to features (N,D), numpy float64; made by `extractor`.

    A row depends on its own image alone: not on the batch, its size or the order, to 1e-5 of the largest feature
    (float32 sums are not taken in one order at every batch size).

    Attributes:
        name: one of `NAMES`.
        dimensions: D.
        batch: images that pass the network at once.
    """

    name: str
    dimensions: int
    device: torch.device
    batch: int
    embedding: Embedding

    def __call__(self, images: Tensor) -> np.ndarray:
        """Features (N,D). Values within 0.5 outside [-1,1] are clamped, as a display does.

        Raises:
            ParameterError: the images are not (N,1,H,W) of floats, smaller than 24 pixels, not finite or further out.
            DataError: the network answers with values that are not finite.
        """
        checked = _checked(images)
        parts = []
        with torch.inference_mode(), _full_precision(self.device):
            for images_ in checked.split(self.batch):
                features = self.embedding(images_.to(self.device, torch.float32).clamp(-1.0, 1.0))
                parts.append(features.double().cpu().numpy())
        rows = np.concatenate(parts)
        if not np.isfinite(rows).all():
            raise DataError(f"The features of {self.name} are not finite for finite images; its weights are damaged.")
        return rows


def why_not(name: str) -> str:
    """Why `extractor` cannot give ``name`` here, as the text of a table's cell; empty where it can.

    It looks whether files are there and opens none of them.
    """
    if name not in NAMES:
        raise ParameterError(f"There is no feature extractor {name!r}; choose one of {', '.join(NAMES)}.")
    if name not in PLACES:
        return ""
    if name == "CLIP" and util.find_spec("transformers") is None:
        return "not computed: the package transformers is missing, install medshift[clip]"
    if _weights(name) is not None:
        return ""
    if os.environ.get(VARIABLES[name]):
        return f"not computed: weights of {name} missing, {VARIABLES[name]} names a place without them"
    return f"not computed: weights of {name} missing, put them at {PLACES[name]}"


def extractor(name: str, *, device: str | torch.device = "cpu", batch: int = 64) -> Extractor:
    """The feature extractor ``name``, on a device.

    Args:
        name: one of `NAMES`.
        device: of the network; images may be on any.
        batch: images that pass the network at once.

    Weights of Inception and CLIP are looked for where MEDSHIFT_INCEPTION (the file or its folder) and MEDSHIFT_CLIP
    (the folder, in the format of `transformers`) say, or else in the checkout's folder ``weights``.

    Raises:
        ParameterError: there is no such extractor, or the batch is not at least 1.
        WeightsMissing: its weights, or the package that reads them, are not there.
        DataError: its weights are damaged or another network's.
    """
    missing = why_not(name)
    if batch < 1:
        raise ParameterError(f"A batch of {batch} images is empty; it must be at least 1.")
    if missing:
        raise WeightsMissing(missing)
    device = torch.device(device)
    if name in PLACES:
        weights = _weights(name)
        assert weights is not None  # or else `why_not` had said so
        dimensions, embedding = (_inception if name == "Inception" else _clip)(weights, device)
    else:
        dimensions, embedding = _shift_tolerant({"ST-AlexNet": "alex", "ST-VGG": "vgg"}[name], device)
    return Extractor(name, dimensions, device, batch, embedding)


def _checked(images: Tensor) -> Tensor:
    if images.ndim != 4 or images.shape[1] != 1 or not len(images) or not images.is_floating_point():
        raise ParameterError(
            f"Features are of images (N,1,H,W) of floats, N at least 1, not {tuple(images.shape)} of {images.dtype}."
        )
    if min(images.shape[2:]) < MIN_SIDE:
        raise ParameterError(f"Images of {tuple(images.shape[2:])} pixels are too small: the least is {MIN_SIDE}.")
    if not torch.isfinite(images).all():
        raise ParameterError("An image holds NaN or infinity; a translation diverged, or a file is damaged.")
    furthest = float(images.abs().max())
    if furthest > 1.0 + OVERSHOOT:
        raise ParameterError(
            f"An image reaches {furthest:.2f}, but images are about [-1, 1], at most {OVERSHOOT} beyond; rescale them."
        )
    return images


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Float32 as it is written, whatever the caller's autocast; TF32 would move features by 1e-3."""
    exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False) if device.type == "cuda" else nullcontext()
    with torch.autocast(device.type, enabled=False), exact:
        yield


def _eight_bit(images: Tensor) -> Tensor:
    """What an 8-bit file of the images holds, 0 to 255."""
    return ((images + 1.0) * 127.5).round()


def _shift_tolerant(net: str, device: torch.device) -> tuple[int, Embedding]:
    from stlpips_pytorch import stlpips

    metric = stlpips.LPIPS(net=net, variant="shift_tolerant", verbose=False).requires_grad_(False).to(device)

    def embed(images: Tensor) -> Tensor:
        layers = metric.net(metric.scaling_layer(images.expand(-1, 3, -1, -1)))
        return torch.cat([F.normalize(layer, dim=1).mean(dim=(2, 3)) for layer in layers], dim=1)

    return sum(metric.chns), embed


def _weights(name: str) -> Path | None:
    """The file or folder of weights, or none where nothing is there."""
    own = os.environ.get(VARIABLES[name])
    path = Path(own).expanduser() if own else ROOT / PLACES[name]
    if name == "Inception":
        path = path / INCEPTION_FILE if path.is_dir() else path
        return path if path.is_file() else None
    return path if (path / "config.json").is_file() else None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


def _inception(path: Path, device: torch.device) -> tuple[int, Embedding]:
    if path.name != INCEPTION_FILE:
        raise DataError(f"{path} has another name than clean-fid's {INCEPTION_FILE}; rename the file.")
    from cleanfid.inception_torchscript import InceptionV3W
    from cleanfid.resize import build_resizer

    resize = build_resizer("clean")

    def embed(images: Tensor) -> Tensor:
        grey = _eight_bit(images)[:, 0].byte().cpu().numpy()
        resized = np.stack([resize(np.repeat(image[:, :, None], 3, axis=2)) for image in grey])
        return network(torch.from_numpy(resized).permute(0, 3, 1, 2).to(device))

    try:
        network = InceptionV3W(str(path.parent), download=False).to(device)
        with torch.inference_mode():
            embed(torch.zeros(1, 1, MIN_SIDE, MIN_SIDE))
    except Exception as error:  # a foreign archive or program can fail in any way
        raise DataError(
            f"{path} does not give Inception's 2048 features ({_first_line(error)}); fetch it again."
        ) from error
    return 2048, embed


def _clip(folder: Path, device: torch.device) -> tuple[int, Embedding]:
    from transformers import CLIPVisionModelWithProjection
    from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # or a report lists every tensor of the text encoder, which is not wanted here
    try:
        loaded: Any = CLIPVisionModelWithProjection.from_pretrained(
            folder, local_files_only=True, output_loading_info=True, dtype=torch.float32
        )
        model, found = loaded
    except Exception as error:  # a damaged file fails in whichever library reads it
        raise DataError(f"{folder} cannot be read as CLIP ({_first_line(error)}); fetch that folder again.") from error
    finally:
        logging.set_verbosity(verbosity)
    if absent := sorted(found["missing_keys"]):
        raise DataError(f"{folder} lacks {len(absent)} tensors of CLIP, first {absent[0]}; fetch that folder again.")
    shape = {key: getattr(model.config, key) for key in CLIP_SHAPE}
    if shape != CLIP_SHAPE:
        raise DataError(f"{folder} is another CLIP ({shape}) than CMMD's ViT-L/14 at 336 pixels ({CLIP_SHAPE}).")
    model = model.eval().requires_grad_(False).to(device)
    mean, std = (torch.tensor(v, device=device)[:, None, None] for v in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))

    def embed(images: Tensor) -> Tensor:
        side = CLIP_SHAPE["image_size"]
        # As CMMD's authors do: bicubic to the network's square, no crop, no antialiasing.
        resized = F.interpolate(_eight_bit(images).expand(-1, 3, -1, -1) / 255.0, size=(side, side), mode="bicubic")
        return F.normalize(model(pixel_values=(resized - mean) / std).image_embeds, dim=1)

    return CLIP_SHAPE["projection_dim"], embed
