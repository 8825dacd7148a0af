r"""Training a `KLCodec`: the losses of latent diffusion's autoencoder, as a method that `medshift.train` drives.

For an image x, its posterior q = N(m, s²) over latents, a draw z from q and the reconstruction x̂ = D(z):

    codec          mean|x - x̂|  +  w_p d(x, x̂)  +  w_k KL(q ‖ N(0, I)) / pixels  -  w_a mean C(x̂)
    discriminator  mean max(0, 1 - C(x)) + mean max(0, 1 + C(x̂))                                    (hinge)

d is the Shift-Tolerant LPIPS distance (its weights come with the package `stlpips_pytorch`; it is *not* LPIPS), C a
PatchGAN. The adversarial term starts after a warm-up; before, the discriminator rests. L1 and d alone prefer a smooth
x̂, and the fine noise that tells doses apart is the first thing lost: `round_trip` measures how much of it is kept.

References:
    High-Resolution Image Synthesis with Latent Diffusion Models, https://arxiv.org/abs/2112.10752
    Shift-tolerant Perceptual Similarity Metric, https://arxiv.org/abs/2207.13686
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medshift.codec import Codec, KLCodec
from medshift.errors import ParameterError

__all__ = ["CodecLosses", "CodecTraining", "PatchDiscriminator", "RoundTrip", "ShiftTolerantLPIPS", "round_trip"]


class ShiftTolerantLPIPS(nn.Module):
    """The Shift-Tolerant LPIPS distance between grey images, frozen; gradients flow to the second image.

    The features are normalised here and not by the package, whose square root has no gradient at zero: one flat
    patch of air would make it NaN.
    """

    def __init__(self) -> None:
        super().__init__()
        from stlpips_pytorch import stlpips

        self.metric = stlpips.LPIPS(net="alex", variant="shift_tolerant", verbose=False).requires_grad_(False)

    def _features(self, image: Tensor) -> list[Tensor]:
        layers = self.metric.net(self.metric.scaling_layer(image.expand(-1, 3, -1, -1)))
        return [f / (f.square().sum(dim=1, keepdim=True) + 1e-12).sqrt() for f in layers]

    def forward(self, truth: Tensor, image: Tensor) -> Tensor:
        """Distances (B,) between images (B, 1, H, W) in [-1, 1]."""
        with torch.no_grad():
            wanted = self._features(truth)
        pairs = zip(self.metric.lins, wanted, self._features(image), strict=True)
        return torch.stack([lin((a - b).square()).mean(dim=(1, 2, 3)) for lin, a, b in pairs]).sum(dim=0)


class PatchDiscriminator(nn.Module):
    """A PatchGAN: images (B, 1, H, W) to one logit per overlapping patch (B, 1, h, w).

    It counts its calls during training in a buffer, so that a resumed run knows where its warm-up stands.

    Arguments:
        width: Channels of the first layer.
        layers: Layers of stride 2.
    """

    calls: Tensor

    def __init__(self, width: int = 32, layers: int = 2) -> None:
        super().__init__()
        widths = [width * 2 ** min(i, 3) for i in range(layers)]
        blocks: list[nn.Module] = [nn.Conv2d(1, widths[0], 4, 2, 1), nn.LeakyReLU(0.2)]
        for narrow, wide in zip(widths, widths[1:], strict=False):
            blocks += [nn.Conv2d(narrow, wide, 4, 2, 1), nn.GroupNorm(8, wide), nn.LeakyReLU(0.2)]
        self.net = nn.Sequential(*blocks, nn.Conv2d(widths[-1], 1, 3, 1, 1))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, 1, h, w), above 0 where a patch looks real."""
        return self.net(image)


@dataclass(frozen=True, kw_only=True)
class CodecLosses:
    """Weights of the codec's losses and rates of the two optimisers."""

    perceptual: float = 0.3
    kl: float = 1e-6
    adversarial: float = 0.02
    warmup: int = 150  # calls of `step` before the adversarial term starts
    learning_rate: float = 1e-3
    discriminator_rate: float = 4e-4


class CodecTraining:
    """A `KLCodec` in training: the `Trainable` of `medshift.train`.

    When training is done, measure the statistics of the averaged codec with `fit`; during it they stay 0 and 1.

    Arguments:
        codec: The codec to train, in place, from whatever weights it has.
        losses: Weights and rates.
    """

    averaged = ("codec",)

    def __init__(self, codec: KLCodec, losses: CodecLosses | None = None) -> None:
        self.codec = codec.requires_grad_(True).train()
        self.losses = losses or CodecLosses()
        if self.losses.warmup < 0 or min(self.losses.learning_rate, self.losses.discriminator_rate) <= 0:
            raise ParameterError("A codec's warm-up must be 0 or more steps and its learning rates above 0.")
        self.discriminator = PatchDiscriminator().to(codec.mean.device)
        self.perceptual = ShiftTolerantLPIPS().to(codec.mean.device)
        rates = {"codec": self.losses.learning_rate, "discriminator": self.losses.discriminator_rate}
        self._optimizers = {
            name: torch.optim.AdamW(module.parameters(), lr=rates[name], betas=(0.5, 0.9), weight_decay=0.0)
            for name, module in self.modules().items()
        }

    def modules(self) -> dict[str, nn.Module]:
        """Codec and discriminator. The frozen distance is not the run's to save."""
        return {"codec": self.codec, "discriminator": self.discriminator}

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """One optimiser per module, under the module's name."""
        return dict(self._optimizers)

    def state(self) -> dict[str, Any]:
        """What rebuilds the method: the codec's configuration and the losses."""
        return {"kind": "codec", "codec": self.codec.describe(), "losses": asdict(self.losses)}

    def step(self, batch: Sequence[Tensor], generator: torch.Generator) -> Mapping[str, Tensor]:
        """Losses of one batch, whose first entry is the images (B, 1, H, W).

        Returns:
            "codec" and, after the warm-up, "discriminator", each to be descended by the optimiser of its name; and
            the parts "l1", "perceptual", "kl" [nat per image pixel] and "adversarial", detached.
        """
        image = batch[0]
        if any(side % self.codec.stride for side in image.shape[2:]):
            raise ParameterError(f"Training images must have sides divisible by {self.codec.stride}.")
        vae, weights = self.codec.vae, self.losses
        posterior = vae.encode(image.expand(-1, vae.config.in_channels, -1, -1)).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator, device=image.device)
        decoded = vae.decode(posterior.mean + posterior.std * noise).sample.mean(dim=1, keepdim=True).float()
        parts = {
            "l1": (decoded - image).abs().mean(),
            "perceptual": self.perceptual(image, decoded).float().mean(),
            "kl": posterior.kl().float().mean() / (image.shape[2] * image.shape[3]),
        }
        loss = parts["l1"] + weights.perceptual * parts["perceptual"] + weights.kl * parts["kl"]
        losses = {"codec": loss}
        if int(self.discriminator.calls) >= weights.warmup and weights.adversarial:
            parts["adversarial"] = -self.discriminator(decoded).float().mean()
            losses["codec"] = loss + weights.adversarial * parts["adversarial"]
            true, false = self.discriminator(torch.cat([image, decoded.detach()])).float().chunk(2)
            losses["discriminator"] = F.relu(1 - true).mean() + F.relu(1 + false).mean()
        self.discriminator.calls += 1
        return losses | {name: value.detach() for name, value in parts.items()}


@dataclass(frozen=True)
class RoundTrip:
    """What one pass through a codec leaves of images.

    Attributes:
        psnr: PSNR [dB] of decode(encode(x)) against x, range 2, per image (N).
        power_kept: Power of the decoded over that of the original image in the top octave of spatial frequency, a
            quarter to half a cycle per pixel, per image (N); 1 where all fine noise is kept.
    """

    psnr: Tensor
    power_kept: Tensor


@torch.no_grad()
def round_trip(codec: Codec, images: Tensor) -> RoundTrip:
    """Encode and decode images (N, 1, H, W) and compare."""
    decoded = codec.decode(codec.encode(images), (images.shape[2], images.shape[3]))
    error = (decoded - images).square().mean(dim=(1, 2, 3))
    return RoundTrip(10 * torch.log10(4 / error.clamp(min=1e-12)), _top_octave(decoded) / _top_octave(images))


def _top_octave(images: Tensor) -> Tensor:
    """Mean power (N,) at a quarter to half a cycle per pixel, the edges tapered by a Hann window."""
    height, width = images.shape[2:]
    window = torch.outer(torch.hann_window(height), torch.hann_window(width)).to(images)
    centred = images - images.mean(dim=(2, 3), keepdim=True)
    power = torch.fft.fft2(centred.float() * window).abs().square()[:, 0]
    radius = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width)[None])
    return power[:, ((radius >= 0.25) & (radius <= 0.5)).to(images.device)].mean(dim=1)
