r"""Fourier amplitude swap: the low frequencies' amplitude from a target image, all phases from the source (FDA).

With the Fourier transform F x = |F x| exp(i φ_x) of an image x and a reference r of the target domain,

    out = F⁻¹[ (M |F r| + (1 - M) |F x|) exp(i φ_x) ],

where M is one on the centred square of half-width b = floor(β min(H, W)) bins, (2b+1)² of them, and zero elsewhere.
The reference is one unpaired training image, drawn for every image anew. β = 0 swaps the mean grey value alone.

Two things had to be settled. Published images run from 0 to 255, so that the phase of their mean is always zero; ours
run from about -1 to 1, so the transform is taken of x + 1. And a draw must not depend on the batch that an image is
in: the reference's number is a hash of the image's pixels, the target's label and a seed. The published β of 0.01 to
0.09 is for images ten times as wide as ours; the default of 1/64 is the smallest that at 64 pixels takes more than
the mean: the nine bins about it. Published, the swap prepares the training images of a segmentation network, and its
blocky look and halos are known; here it is a floor.

References:
    Yang and Soatto, FDA: Fourier Domain Adaptation for Semantic Segmentation, 2020, arXiv:2004.05498.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from medshift.data.domains import domain_index
from medshift.errors import ParameterError
from medshift.translate import Domain

__all__ = ["FourierAmplitude"]

AIR = 1.0  # added before the transform: the mean of an image has to be above zero for its phase to be none


class FourierAmplitude:
    """The amplitude of low frequencies from a training image of the target domain, phases from the source.

    Args:
        training: one tensor (N,1,H,W) a domain, in label order, all of the size that is translated.
        domains: their names.
        beta: half-width of the swapped square over the image's smaller side, in [0, 0.5]; rounded down to bins.
        seed: of the draws of references.

    Raises:
        ParameterError: sets and names differ in number, or `beta` is out of its range.
    """

    name = "Fourier amplitude swap"
    needs_pairs = False

    def __init__(
        self, training: Sequence[Tensor], domains: Sequence[str], *, beta: float = 1 / 64, seed: int = 0
    ) -> None:
        if len(training) != len(domains):
            raise ParameterError(f"{len(training)} training sets do not fit {len(domains)} domains.")
        if not 0 <= beta <= 0.5:
            raise ParameterError(f"beta is {beta}, expected a share of the image's side in [0, 0.5].")
        self.training, self.domains, self.beta, self.seed = list(training), list(domains), beta, seed

    def choose(self, images: Tensor, target: Domain) -> Tensor:
        """Numbers (N,) int64 of the training images whose amplitude images (N,1,H,W) get.

        Equal pixels, bit for bit, get equal numbers, whatever else is in the batch; any other image gets another draw.
        """
        label = self._label(target)
        pixels = images.detach().to("cpu", torch.float32).contiguous()
        salt = f"{self.seed}:{label}:".encode()
        digests = [hashlib.blake2b(salt + image.numpy().tobytes(), digest_size=8).digest() for image in pixels]
        return torch.tensor([int.from_bytes(d, "big") % len(self.training[label]) for d in digests], dtype=torch.int64)

    @torch.no_grad()
    def translate(
        self, images: Tensor, source: Domain, target: Domain, *args: Any, choice: Tensor | None = None, **knobs: Any
    ) -> Tensor:
        """Images (N,1,H,W) with their own phases and the target's amplitude at low frequencies, not clamped.

        Args:
            images: (N,1,H,W), about [-1, 1].
            source: not used: the method does not ask where an image comes from.
            target: label or name.
            choice: (N,) int64, which training image lends its amplitude to each; by default `choose` draws them.

        Raises:
            ParameterError: an unknown target, training images of another size, or a choice that is none.
        """
        references = self.training[self._label(target)]
        choice = self.choose(images, target) if choice is None else choice
        if choice.shape != images.shape[:1] or choice.dtype != torch.int64:
            raise ParameterError(f"choice is {choice.dtype} {tuple(choice.shape)}, expected int64 ({len(images)},).")
        if len(choice) and not 0 <= int(choice.min()) <= int(choice.max()) < len(references):
            raise ParameterError(f"choice names training images that are not among 0..{len(references) - 1}.")
        if references.shape[1:] != images.shape[1:]:
            raise ParameterError(
                f"Images are {tuple(images.shape[1:])}, those of training {tuple(references.shape[1:])}; give one size."
            )
        spectrum = torch.fft.rfft2(images + AIR)
        lent = torch.fft.rfft2(references[choice.to(references.device)].to(images) + AIR).abs()
        amplitude = torch.where(self.window(images), lent, spectrum.abs())
        return torch.fft.irfft2(torch.polar(amplitude, spectrum.angle()), s=images.shape[-2:]) - AIR

    def window(self, images: Tensor) -> Tensor:
        """The swapped bins (H, W//2+1), bool, of the half spectrum that `torch.fft.rfft2` gives."""
        height, width = images.shape[-2:]
        half = int(self.beta * min(height, width))
        down = (torch.fft.fftfreq(height, 1 / height, device=images.device)).abs().round() <= half
        across = torch.arange(width // 2 + 1, device=images.device) <= half
        return down[:, None] & across

    def _label(self, domain: Domain) -> int:
        return domain_index(domain if isinstance(domain, str | int) else str(domain), self.domains)

    def nfe(self, *args: Any, **knobs: Any) -> int:
        """No network is evaluated."""
        return 0
