r"""Training a `KLCodec`: the losses of latent diffusion's autoencoder, as a method that `medshift.train` drives.

For an image x, its posterior q = N(m, s²) over latents, a draw z from q and the reconstruction x̂ = D(z):

    codec          mean|x - x̂|  +  w_p d(x, x̂)  +  w_k KL(q ‖ N(0, I)) / pixels  -  w_a mean C(x̂)
    discriminator  mean max(0, 1 - C(x)) + mean max(0, 1 + C(x̂))                                    (hinge)

d is the Shift-Tolerant LPIPS distance (its weights come with the package `stlpips_pytorch`; it is *not* LPIPS), C a
PatchGAN. The adversarial term starts after a warm-up; before, the discriminator rests. L1 and d alone prefer a smooth
x̂: the fine noise that tells doses apart is the first thing lost, so look at the top octave's power after training.

References:
    High-Resolution Image Synthesis with Latent Diffusion Models, https://arxiv.org/abs/2112.10752
    Shift-tolerant Perceptual Similarity Metric, https://arxiv.org/abs/2207.13686
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medshift import checkpoint
from medshift.codec import KLCodec, from_description
from medshift.errors import CheckpointError, ParameterError

__all__ = ["KLTraining", "PatchDiscriminator", "ShiftTolerantLPIPS", "load_codec"]

KIND = "kl-autoencoder"
MIN_SIDE = 32  # pixels; the perceptual distance halves images five times


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

    It keeps how often it was called during training in a buffer, so that a resumed run knows where its warm-up stands.

    Arguments:
        width: Channels of the first layer.
        layers: Layers of stride 2.

    Attributes:
        calls: The count, as a checkpoint holds it.
        called: The same number on the host: asking the buffer would wait for the GPU.
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
        self.called = 0
        self.register_load_state_dict_post_hook(_read_calls)

    def count(self) -> None:
        """One more call."""
        self.calls += 1
        self.called += 1

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, 1, h, w), above 0 where a patch looks real."""
        return self.net(image)


def _read_calls(discriminator: nn.Module, keys: object) -> None:
    """Read the count that was loaded."""
    assert isinstance(discriminator, PatchDiscriminator)
    discriminator.called = int(discriminator.calls)


class KLTraining:
    """A `KLCodec` in training: the `Trainable` of `medshift.train`.

    Its statistics stay 0 and 1 meanwhile; `load_codec(folder).fit(images)` is the trained codec.

    Arguments:
        codec: The codec to train, in place, from whatever weights it has.
        warmup: Calls of `step` before the adversarial term starts.
        perceptual: Weight w_p of the perceptual distance.
        kl: Weight w_k of the divergence.
        adversarial: Weight w_a of the discriminator's judgement; 0 for none.
        learning_rate: Peak rate of the codec's AdamW.
        discriminator_rate: Peak rate of the discriminator's AdamW.
    """

    averaged: tuple[str, ...] = ("codec",)

    def __init__(
        self,
        codec: KLCodec,
        *,
        warmup: int = 200,
        perceptual: float = 0.3,
        kl: float = 1e-6,
        adversarial: float = 0.02,
        learning_rate: float = 1e-3,
        discriminator_rate: float = 4e-4,
    ) -> None:
        if min(warmup, perceptual, kl, adversarial) < 0 or min(learning_rate, discriminator_rate) <= 0:
            raise ParameterError("A codec's warm-up and weights must be 0 or more and its learning rates above 0.")
        self.codec = codec.requires_grad_(True).train()
        self.warmup = warmup
        self.weights = {"perceptual": perceptual, "kl": kl, "adversarial": adversarial}
        self.discriminator = PatchDiscriminator().to(codec.mean.device)
        self.perceptual = ShiftTolerantLPIPS().to(codec.mean.device)
        rates = {"codec": learning_rate, "discriminator": discriminator_rate}
        fused = codec.mean.device.type == "cuda"  # a CPU's fused step rounds differently and gains nothing here
        self._optimizers = {
            name: torch.optim.AdamW(
                module.parameters(), lr=rates[name], betas=(0.5, 0.9), weight_decay=0.0, fused=fused
            )
            for name, module in self.modules().items()
        }

    def modules(self) -> dict[str, nn.Module]:
        """Codec and discriminator. The frozen distance is not the run's to save."""
        return {"codec": self.codec, "discriminator": self.discriminator}

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """One optimiser per module, under the module's name."""
        return dict(self._optimizers)

    def state(self) -> dict[str, Any]:
        """What rebuilds the method: the codec's configuration and the weights of its losses."""
        return {"kind": KIND, "codec": self.codec.describe(), "weights": self.weights, "warmup": self.warmup}

    def step(self, batch: Sequence[Tensor], generator: torch.Generator) -> Mapping[str, Tensor]:
        """Losses of one batch, whose first entry is the images (B, 1, H, W).

        Returns:
            "codec" and, after the warm-up, "discriminator", each to be descended by the optimiser of its name; and
            the parts "l1", "perceptual", "kl" [nat per image pixel] and "adversarial", detached.
        """
        image = batch[0]
        if any(side % self.codec.stride or side < MIN_SIDE for side in image.shape[2:]):
            raise ParameterError(
                f"Training images need sides of at least {MIN_SIDE} pixels that {self.codec.stride} divides, not "
                f"{tuple(image.shape[2:])}."
            )
        vae, weights = self.codec.vae, self.weights
        posterior = vae.encode(image.expand(-1, vae.config.in_channels, -1, -1)).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator, device=image.device)
        decoded = vae.decode(posterior.mean + posterior.std * noise).sample.mean(dim=1, keepdim=True).float()
        parts = {
            "l1": (decoded - image).abs().mean(),
            "perceptual": self.perceptual(image, decoded).float().mean(),
            "kl": posterior.kl().float().mean() / (image.shape[2] * image.shape[3]),
        }
        loss = parts["l1"] + weights["perceptual"] * parts["perceptual"] + weights["kl"] * parts["kl"]
        losses = {"codec": loss}
        if self.discriminator.called >= self.warmup and weights["adversarial"]:
            parts["adversarial"] = -self.discriminator(decoded).float().mean()
            losses["codec"] = loss + weights["adversarial"] * parts["adversarial"]
            true, false = self.discriminator(torch.cat([image, decoded.detach()])).float().chunk(2)
            losses["discriminator"] = F.relu(1 - true).mean() + F.relu(1 + false).mean()
        self.discriminator.count()
        return losses | {name: value.detach() for name, value in parts.items()}


def load_codec(path: str | Path, *, averaged: bool = True) -> KLCodec:
    """The trained codec of a checkpoint, or of the newest one in a run's folder; measure its statistics next.

    Arguments:
        path: The checkpoint's folder, or that of the run.
        averaged: The moving average of the weights, or the weights as the optimiser left them.

    Raises:
        CheckpointError: There is none, it is damaged, or it is of another method.
    """
    stem = "codec-ema" if averaged else "codec"
    held = checkpoint.load(path, only=(stem,))
    method = held.state.get("method", {})
    if method.get("kind") != KIND:
        raise CheckpointError(
            f"{held.path} is a checkpoint of {method.get('kind', 'an unknown method')!r}, not of {KIND!r}; "
            "give the folder of a codec's training."
        )
    tensors = held.tensors[stem]
    if averaged:
        tensors = {name.removeprefix("module."): value for name, value in tensors.items() if name != "n_averaged"}
    codec = from_description(method["codec"], tensors)
    assert isinstance(codec, KLCodec)
    return codec
