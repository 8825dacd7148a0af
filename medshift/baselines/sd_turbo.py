"""The original CycleGAN-Turbo, where a user has its weights: a translator around a file that the user exports.

Nothing here builds SD-Turbo, and no weights come with this package: they are large and under licences of their own.
What is read is a TorchScript archive, which holds tensors and a graph; pickled checkpoints (.pkl, .pt of the original
training) can run any program when opened and are never read.

To make the archive, in a checkout of https://github.com/GaParmar/img2img-turbo with its own requirements, and with the
checkpoint trained there on the two domains at hand:

1. Build the published ``CycleGAN_Turbo`` with that checkpoint, and call ``eval()`` and ``float()`` on it.
2. Wrap it in a module whose ``forward(x)`` calls it for one direction and with the prompt of the training: a file
   serves one pair. Let the autoencoder give the mode of its posterior instead of a sample, or two translations of an
   image differ; turn memory-efficient attention off, which cannot be traced on a CPU.
3. With the module and ``torch.zeros(1, 3, 512, 512)`` on the CPU, ``torch.jit.trace(module, example).save(path)``; the
   side is that of the training.
4. Put the file at ``<folder>/cyclegan_turbo.ts``.

Images are treated as its inference script does: resized to the traced side, one grey channel repeated three times,
values limited to [-1, 1]; the output's channels are averaged and resized back. Resizing is bicubic with antialiasing,
for Lanczos there. At 64 pixels this enlarges an image eightfold: the result is the original method on radiographs far
from what SD-Turbo has seen.

References:
    Parmar et al., One-Step Image Translation with Text-to-Image Models, 2024, arXiv:2403.12036.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from medshift.errors import DataError, ParameterError
from medshift.pairwise import Pair
from medshift.translate import Domain

__all__ = ["FILE", "OriginalCycleGANTurbo"]

FILE = "cyclegan_turbo.ts"


class OriginalCycleGANTurbo:
    """CycleGAN-Turbo as published, from a user's own export; see the module for how to make it.

    Args:
        folder: holds ``cyclegan_turbo.ts``.
        pair: what the exported model was trained for; the file does not say.
        side: of the images that it was traced with [pixels].
        device: where to run it.

    Raises:
        DataError: the file is absent, or no TorchScript archive.
        ParameterError: a side below 1.
    """

    name = "CycleGAN-Turbo (original weights)"
    needs_pairs = False

    def __init__(self, folder: Path | str, pair: Pair, *, side: int = 512, device: torch.device | str = "cpu") -> None:
        if side < 1:
            raise ParameterError(f"side is {side}, expected the pixels that the model was traced with, such as 512.")
        self.pair, self.side, self.device = pair, side, torch.device(device)
        self.path = Path(folder) / FILE
        self._model = _read(self.path, self.device)

    @torch.no_grad()
    def translate(self, images: Tensor, source: Domain, target: Domain) -> Tensor:
        """Images (B,1,H,W) of the pair's source as its target would show them, one after the other.

        Args:
            images: (B,1,H,W), limited to [-1, 1] here.
            source: name or label.
            target: name or label.

        Raises:
            ParameterError: another pair than that of the export, or images that are not (B,1,H,W).
            DataError: the exported model does not take or give (1,3,side,side).
        """
        self.pair.check(source, target)
        if images.ndim != 4 or images.shape[1] != 1:
            raise ParameterError(f"Expected images (B,1,H,W), not {tuple(images.shape)}.")
        size = (images.shape[-2], images.shape[-1])
        large = _resized(images.float().clamp(-1, 1), (self.side, self.side)).clamp(-1, 1)
        made = [self._evaluate(image.expand(1, 3, -1, -1).contiguous().to(self.device)) for image in large.split(1)]
        grey = torch.cat(made).mean(dim=1, keepdim=True)
        return _resized(grey, size).to(images)

    def nfe(self) -> int:
        """Network evaluations per image: one of SD-Turbo's U-Net."""
        return 1

    def _evaluate(self, image: Tensor) -> Tensor:
        try:
            made = self._model(image)
        except RuntimeError as error:
            raise DataError(
                f"{self.path} does not run on an image {tuple(image.shape)}: was it traced with another side? Give "
                f"its side, or trace it again. {error}"
            ) from error
        if not isinstance(made, Tensor) or made.shape != image.shape:
            found = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
            raise DataError(
                f"{self.path} gives {found} for an image {tuple(image.shape)}, expected the same shape; export a "
                "module whose forward returns the translated image alone."
            )
        return made.float()


def _read(path: Path, device: torch.device) -> torch.jit.ScriptModule:
    if not path.is_file():
        raise DataError(
            f"The original CycleGAN-Turbo is not computed: {path} is missing. Export the published model, with weights "
            "trained for this pair, to a TorchScript archive of that name; the documentation of "
            "medshift.baselines.sd_turbo says how."
        )
    try:
        with warnings.catch_warnings():
            # torch advises torch.export instead, whose loader unpickles; the original's own torch has none either.
            warnings.filterwarnings("ignore", "`torch.jit", category=FutureWarning)
            return torch.jit.load(str(path), map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        raise DataError(
            f"{path} is no TorchScript archive; pickled checkpoints are never read. Export the model with "
            f"torch.jit.trace, as the documentation of medshift.baselines.sd_turbo says. {error}"
        ) from error


def _resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images (B,C,H,W) at another size; at their own they are left alone."""
    if images.shape[-2:] == size:
        return images
    return F.interpolate(images, size, mode="bicubic", antialias=True)
