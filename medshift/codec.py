r"""Codecs: images to standardised latents and back.

The flow lives in a latent space. A codec maps an image (B, 1, H, W) in about [-1, 1] to a latent (B, C, h, w)
and back, in three named stages:

    image  --pad to the stride-->  raw latent  --(raw - mean) / std per channel-->  latent

Mean and standard deviation are measured once, on the training images of *all* domains together, and stored
with the codec. One pair for all domains matters: how far a given τ shifts an image depends on the latents'
spread.

- `PatchCodec`: space to depth. Exact up to float rounding, nothing to learn.
- `KLCodec`: diffusers' `AutoencoderKL`, trained by `medshift.codec_training` or read from a local folder. It
  encodes to the *mode* of the posterior, not to a sample: the noise in a latent is the image's own.

References:
    High-Resolution Image Synthesis with Latent Diffusion Models, https://arxiv.org/abs/2112.10752
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from medshift.errors import CheckpointError, DataError, ParameterError

__all__ = ["Codec", "KLCodec", "PatchCodec", "from_description"]

# Pixels encoded at once, which bounds the memory of a KL codec.
CHUNK_PIXELS = 2**20
LOCAL_WEIGHTS = "diffusion_pytorch_model.safetensors"

Statistic = Tensor | Iterable[float] | None


@runtime_checkable
class Codec(Protocol):
    """What the rest of the package asks of a codec."""

    channels: int
    stride: int

    def encode(self, image: Tensor) -> Tensor:
        """Image (B, 1, H, W) to a standardised latent (B, C, ⌈H/stride⌉, ⌈W/stride⌉)."""

    def decode(self, latent: Tensor, size: tuple[int, int] | int | None = None) -> Tensor:
        """Latent (B, C, h, w) to an image (B, 1, H, W), cropped to `size`."""

    def fingerprint(self) -> str:
        """Hash of configuration, statistics and weights: codecs with one fingerprint share their latents."""


class _StandardisedCodec(nn.Module, ABC):
    """Padding, standardisation, statistics and identity: all that the codecs share.

    `channels` is the latent's C, `stride` the pixels of the image per pixel of the latent along each side;
    `mean` and `std` (C) of the raw latent are 0 and 1 until `fit` has measured them.
    """

    kind: str
    mean: Tensor
    std: Tensor

    def __init__(self, channels: int, stride: int, mean: Statistic = None, std: Statistic = None) -> None:
        super().__init__()
        self.channels = channels
        self.stride = stride
        self.register_buffer("mean", _statistic(mean, 0.0, channels))
        self.register_buffer("std", _statistic(std, 1.0, channels))
        if not (torch.isfinite(self.mean).all() and torch.isfinite(self.std).all() and (self.std > 0).all()):
            raise ParameterError("A codec's mean must be finite and its std finite and above 0.")

    @abstractmethod
    def _raw_encode(self, image: Tensor) -> Tensor:
        """Padded image (B, 1, H, W) to the raw latent (B, C, h, w)."""

    @abstractmethod
    def _raw_decode(self, raw: Tensor) -> Tensor:
        """Raw latent (B, C, h, w) to an image (B, 1, h stride, w stride)."""

    @abstractmethod
    def _config(self) -> dict[str, Any]:
        """The arguments that rebuild the codec, as plain JSON values."""

    def raw_latent(self, image: Tensor) -> Tensor:
        """Latent (B, C, h, w) before standardisation; edges are repeated up to the stride."""
        if image.ndim != 4 or image.shape[1] != 1 or not image.is_floating_point():
            raise ParameterError(f"Expected float images (B, 1, H, W), not {image.dtype} {[*image.shape]}.")
        bottom, right = -image.shape[2] % self.stride, -image.shape[3] % self.stride
        return self._raw_encode(F.pad(image, (0, right, 0, bottom), mode="replicate"))

    def encode(self, image: Tensor) -> Tensor:
        """Standardised latent (B, C, ⌈H/stride⌉, ⌈W/stride⌉) of images (B, 1, H, W) in about [-1, 1]."""
        raw = self.raw_latent(image)
        return (raw - self.mean.to(raw)[:, None, None]) / self.std.to(raw)[:, None, None]

    def decode(self, latent: Tensor, size: tuple[int, int] | int | None = None) -> Tensor:
        """Images (B, 1, H, W), not clamped, from standardised latents (B, C, h, w).

        `size` is (H, W), or H = W as one number, of the images that were encoded; None keeps the padded size.
        """
        if latent.ndim != 4 or latent.shape[1] != self.channels:
            raise ParameterError(f"Expected latents (B, {self.channels}, h, w), not {tuple(latent.shape)}.")
        std, mean = self.std.to(latent)[:, None, None], self.mean.to(latent)[:, None, None]
        image = self._raw_decode(latent * std + mean)
        if size is None:
            return image
        height, width = (size, size) if isinstance(size, int) else size
        if height > image.shape[2] or width > image.shape[3]:
            raise ParameterError(f"The size {size} is larger than the decoded {tuple(image.shape[2:])}.")
        return image[:, :, :height, :width]

    @torch.no_grad()
    def fit(self, images: Tensor | Iterable[Tensor]) -> Self:
        """Measure mean and standard deviation of the raw latents, per channel, and return the codec.

        `images` are training images of all domains, as one tensor (N, 1, H, W) or as batches of such.
        """
        count, total, square = 0, torch.zeros(1), torch.zeros(1)
        for batch in [images] if isinstance(images, Tensor) else images:
            raw = self.raw_latent(batch).double().cpu()
            count += raw.numel() // self.channels
            total, square = total + raw.sum((0, 2, 3)), square + raw.square().sum((0, 2, 3))
        if count < 2:
            raise ParameterError("A codec's statistics need at least one training image; got none.")
        mean = total / count
        std = (square / count - mean.square()).clamp(min=0).sqrt()
        if not torch.isfinite(mean).all() or not (std > 1e-6).all():
            raise DataError("The training images are constant or hold NaN; latents cannot be standardised.")
        self.mean.copy_(mean)
        self.std.copy_(std)
        return self

    def describe(self) -> dict[str, Any]:
        """Kind and configuration, as plain JSON values; with `tensors()` it rebuilds the codec."""
        return {"kind": self.kind, **self._config()}

    def tensors(self) -> dict[str, Tensor]:
        """Statistics and weights, by name, on the CPU."""
        return {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}

    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits of the SHA-256 over description and tensors."""
        digest = hashlib.sha256(json.dumps(self.describe(), sort_keys=True).encode())
        for name, value in sorted(self.tensors().items()):
            digest.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
            digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]


class PatchCodec(_StandardisedCodec):
    """Space to depth: a block of `patch` × `patch` pixels becomes the channels of one latent pixel."""

    kind = "patch"

    def __init__(self, patch: int = 2, mean: Statistic = None, std: Statistic = None) -> None:
        if patch < 1:
            raise ParameterError(f"The patch of a PatchCodec must be at least 1 pixel, not {patch}.")
        super().__init__(patch**2, patch, mean, std)

    def _raw_encode(self, image: Tensor) -> Tensor:
        return F.pixel_unshuffle(image, self.stride)

    def _raw_decode(self, raw: Tensor) -> Tensor:
        return F.pixel_shuffle(raw, self.stride)

    def _config(self) -> dict[str, Any]:
        return {"patch": self.stride}


class KLCodec(_StandardisedCodec):
    """A variational autoencoder, `diffusers.AutoencoderKL`.

    Gradients flow through `encode` and `decode`; who only translates calls them under `torch.no_grad()`.
    A grey image is repeated over the autoencoder's input channels, and its output channels are averaged.
    """

    kind = "kl"
    vae: Any  # diffusers' AutoencoderKL, whose mixins hide its members from type checkers

    def __init__(self, vae: Any, mean: Statistic = None, std: Statistic = None) -> None:
        super().__init__(vae.config.latent_channels, 2 ** (len(vae.config.block_out_channels) - 1), mean, std)
        self.vae = vae

    @classmethod
    def build(
        cls,
        widths: tuple[int, ...] = (32, 64, 64),
        channels: int = 8,
        *,
        layers: int = 1,
        attention: bool = False,
    ) -> Self:
        """An untrained grey autoencoder.

        Arguments:
            widths: Channels at each resolution, from fine to coarse; n of them make the stride 2^(n-1).
            channels: Channels C of the latent.
            layers: Residual blocks per resolution.
            attention: Whether the coarsest level attends over all its pixels.
        """
        from diffusers import AutoencoderKL

        vae = AutoencoderKL(
            in_channels=1,
            out_channels=1,
            down_block_types=("DownEncoderBlock2D",) * len(widths),
            up_block_types=("UpDecoderBlock2D",) * len(widths),
            block_out_channels=widths,
            layers_per_block=layers,
            latent_channels=channels,
            norm_num_groups=min(8, *widths),
            mid_block_add_attention=attention,
        )
        return cls(vae)

    @classmethod
    def from_local(cls, folder: str | Path) -> Self:
        """A pretrained autoencoder from a local folder of diffusers; nothing is downloaded. Then call `fit`.

        Raises:
            DataError: The folder, its `config.json` or its `.safetensors` is absent or damaged.
        """
        from diffusers import AutoencoderKL

        folder = Path(folder)
        missing = [name for name in ("config.json", LOCAL_WEIGHTS) if not (folder / name).is_file()]
        if missing:
            raise DataError(
                f"No autoencoder in '{folder}': {' and '.join(missing)} missing. Put config.json and "
                f"{LOCAL_WEIGHTS} of an AutoencoderKL there, such as stabilityai/sd-vae-ft-mse "
                "(safetensors only; pickled weights are never read)."
            )
        try:
            vae = AutoencoderKL.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False
            )
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise DataError(f"The autoencoder in '{folder}' is damaged; copy it again. {error}") from error
        return cls(vae.requires_grad_(False).eval())

    def _raw_encode(self, image: Tensor) -> Tensor:
        grey = image.to(self.vae.dtype).expand(-1, self.vae.config.in_channels, -1, -1)
        modes = [self.vae.encode(part).latent_dist.mode() for part in _chunks(grey, 1)]
        return torch.cat(modes).to(image.dtype)

    def _raw_decode(self, raw: Tensor) -> Tensor:
        images = [self.vae.decode(part).sample for part in _chunks(raw.to(self.vae.dtype), self.stride)]
        return torch.cat(images).mean(dim=1, keepdim=True).to(raw.dtype)

    def _config(self) -> dict[str, Any]:
        # Under a leading underscore diffusers notes its version and the file's path: not part of the codec.
        config = {key: value for key, value in self.vae.config.items() if not key.startswith("_")}
        return {"config": json.loads(json.dumps(config))}


def _statistic(value: Statistic, default: float, channels: int) -> Tensor:
    if value is None:
        return torch.full((channels,), default)
    values = value.detach() if isinstance(value, Tensor) else torch.tensor(list(value))
    vector = values.to(torch.float32).clone()
    if vector.shape != (channels,):
        raise ParameterError(
            f"A codec's mean and std need {channels} numbers, one per channel, not {tuple(vector.shape)}."
        )
    return vector


def _chunks(batch: Tensor, scale: int) -> tuple[Tensor, ...]:
    return batch.split(max(1, CHUNK_PIXELS // (batch.shape[2] * batch.shape[3] * scale**2)))


def from_description(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> PatchCodec | KLCodec:
    """Rebuild a codec from what `describe()` and `tensors()` gave.

    Raises:
        CheckpointError: The kind is unknown, or the tensors do not belong to the description.
    """
    kind = description.get("kind")
    codec: PatchCodec | KLCodec
    try:
        if kind == PatchCodec.kind:
            codec = PatchCodec(description["patch"])
        elif kind == KLCodec.kind:
            from diffusers import AutoencoderKL

            codec = KLCodec(AutoencoderKL(**description["config"]))
        else:
            raise CheckpointError(f"Unknown codec '{kind}'; this version knows 'patch' and 'kl'.")
        codec.load_state_dict(dict(tensors))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"The stored codec '{kind}' is not of this version: {error}") from error
    return codec.requires_grad_(False).eval()
