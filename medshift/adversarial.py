r"""Parts that adversarial methods share: networks, losses, image pool, patchwise contrast, and a guard.

Least-squares GAN, with the discriminator's logits D over patches, real images y and made ones G(x):

    L_D = ½ (E (D(y) - 1)² + E D(G(x))²),    L_G = E (D(G(x)) - 1)².

Where D cannot tell the two apart L_D = L_G = ¼; where it wins, L_D = 0 and L_G = 1. PatchNCE asks of each place i of
an output that its features q_i be nearer to the features k_i of the same place of the input than to those of the other
places j of the same image:

    L_NCE = -log( exp(q_i·k_i / T) / Σ_j exp(q_i·k_j / T) ),   q and k of length 1, k without gradient.

Everything works on standardised latents instead of images, so the generator's output is linear where the published
one ends in tanh. Weights start as N(0, 0.02²), as published.

References:
    Zhu et al., Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial Networks, 2017, arXiv:1703.10593.
    Mao et al., Least Squares Generative Adversarial Networks, 2017, arXiv:1611.04076.
    Isola et al., Image-to-Image Translation with Conditional Adversarial Networks, 2017, arXiv:1611.07004.
    Shrivastava et al., Learning from Simulated and Unsupervised Images through Adversarial Training, 2017,
    arXiv:1612.07828 (the image pool).
    Park et al., Contrastive Learning for Unpaired Image-to-Image Translation, 2020, arXiv:2007.15651.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medshift.discriminator_watch import DiscriminatorWatch
from medshift.errors import ParameterError

__all__ = [
    "DiscriminatorWatch",
    "ImagePool",
    "PatchDiscriminator",
    "PatchNCE",
    "ResNetGenerator",
    "lsgan_discriminator",
    "lsgan_generator",
]


class ResNetGenerator(nn.Module):
    """CycleGAN's generator on latents: 7x7 convolution, downsampling, residual blocks, upsampling, 7x7 convolution.

    No residual goes from input to output, and InstanceNorm has no affine part, both as published. So every norm takes
    away the mean and the contrast of each channel of each image, and the input's gain and offset are lost at the very
    first: a x + b, with one a > 0 for the image and one b for each channel, gives what x gives.

    Args:
        channels: of the latents.
        width: channels after the first convolution, doubled by each downsampling.
        blocks: residual blocks, at least 1.
        downs: convolutions of stride 2, and as many upwards. One on latents of a patch codec of 2 pixels puts the
            blocks at a quarter of the image's resolution, where the published generator has them.

    Attributes:
        feature_layers: layers for `PatchNCE`: 0 is the input, 1 the first convolution, then each downsampling, the
            first and the middle residual block.
        feature_channels: channels of each of them.
    """

    def __init__(self, channels: int, *, width: int = 48, blocks: int = 6, downs: int = 1) -> None:
        super().__init__()
        if min(channels, width, blocks) < 1 or downs < 0:
            raise ParameterError(
                f"channels, width and blocks are {channels}, {width}, {blocks}, expected at least 1; "
                f"downs is {downs}, expected at least 0."
            )
        self.stride = 2**downs
        top = width * self.stride
        stages: list[nn.Module] = [_convolution(channels, width, 7)]
        for k in range(downs):
            stages.append(_convolution(width * 2**k, width * 2 ** (k + 1), 3, stride=2))
        stages += [_ResidualBlock(top) for _ in range(blocks)]
        self.encoder = nn.ModuleList(stages)
        upwards: list[nn.Module] = []
        for k in reversed(range(downs)):
            # A bias in front of a norm would be taken away again: there is none anywhere but in the last layer.
            up = nn.ConvTranspose2d(width * 2 ** (k + 1), width * 2**k, 3, 2, 1, output_padding=1, bias=False)
            upwards.append(nn.Sequential(up, nn.InstanceNorm2d(width * 2**k), nn.ReLU()))
        upwards.append(nn.Conv2d(width, channels, 7, padding=3, padding_mode="reflect"))
        self.decoder = nn.Sequential(*upwards)
        self.apply(_initialise)
        first = 2 + downs
        self.feature_layers = tuple(sorted({*range(first + 1), first + blocks // 2}))
        widths = [channels, *(width * 2**k for k in range(downs + 1)), *(top for _ in range(blocks))]
        self.feature_channels = tuple(widths[layer] for layer in self.feature_layers)

    def forward(self, x: Tensor) -> Tensor:
        """Latents (B,C,h,w) of the other domain, any h and w."""
        return self.forward_features(x, ())[0]

    def features(self, x: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Activations of the layers asked for, in their order; those of x (B,C,h,w) are padded to the stride."""
        return self._encode(x, layers, max(layers, default=0))[1]

    def forward_features(self, x: Tensor, layers: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        """`forward` and `features` in one pass."""
        hidden, held = self._encode(x, layers, len(self.encoder))
        return self.decoder(hidden)[..., : x.shape[-2], : x.shape[-1]], held

    def _encode(self, x: Tensor, layers: Sequence[int], last: int) -> tuple[Tensor, list[Tensor]]:
        if any(not 0 <= layer <= len(self.encoder) for layer in layers):
            raise ParameterError(f"There is no layer of {list(layers)}; expected 0 to {len(self.encoder)}.")
        # Reflection by 3 needs 4 pixels, by 1 in the blocks needs 2 there.
        hidden = _padded(x, self.stride, max(4, 2 * self.stride))
        held = {0: hidden}
        for layer in range(1, last + 1):
            hidden = held[layer] = self.encoder[layer - 1](hidden)
        return hidden, [held[layer] for layer in layers]


class _ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = _convolution(width, width, 3), _convolution(width, width, 3, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x))


class PatchDiscriminator(nn.Module):
    """PatchGAN: one logit for each place of a latent.

    Its receptive field is 16, 34 or 70 latent pixels for 1, 2 or 3 `layers`, times the codec's stride in image pixels.
    The published one sees 70 image pixels with three; two layers on latents of a patch codec of 2 see 68, which is
    the whole of an image of 64 pixels, and one layer sees 32.

    Args:
        channels: of the latents.
        width: channels after the first convolution, doubled by each further one up to eight times.
        layers: 4x4 convolutions of stride 2, at least 1.

    Attributes:
        receptive_field: side of the square of latent pixels that a logit sees.
    """

    def __init__(self, channels: int, *, width: int = 64, layers: int = 2) -> None:
        super().__init__()
        if min(channels, width, layers) < 1:
            raise ParameterError(f"channels, width, layers are {channels}, {width}, {layers}; expected at least 1.")
        stages: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        widths = [width * min(2**k, 8) for k in range(layers + 1)]
        for k in range(1, layers + 1):
            stages.append(nn.Conv2d(widths[k - 1], widths[k], 4, 2 if k < layers else 1, 1, bias=False))
            stages += [nn.InstanceNorm2d(widths[k]), nn.LeakyReLU(0.2)]
        stages.append(nn.Conv2d(widths[-1], 1, 4, 1, 1))
        self.net = nn.Sequential(*stages).apply(_initialise)
        self.smallest = 3 * 2**layers  # below that a norm would see a single place
        self.receptive_field = 9 * 2**layers - 2

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B,1,h',w') of latents (B,C,h,w); latents too small for the norms are padded by replication."""
        return self.net(_padded(x, 1, self.smallest))


def lsgan_discriminator(d: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
    """½ (mean (d(real) - 1)² + mean d(fake)²), () in float32; no gradient reaches what made `fake`."""
    return 0.5 * ((d(real).float() - 1).square().mean() + d(fake.detach()).float().square().mean())


def lsgan_generator(d: nn.Module, fake: Tensor) -> Tensor:
    """Mean (d(fake) - 1)², () in float32."""
    return (d(fake).float() - 1).square().mean()


class ImagePool(nn.Module):
    """Made images of earlier steps, so that the discriminator does not forget them.

    Its images are buffers: a checkpoint holds them. Each process of a distributed run has a pool of its own, of which
    the checkpoint holds the first's.

    Args:
        size: how many images; with 0, `query` returns what it is given.
        shape: of one image; None for that of the first ones seen.
    """

    images: Tensor
    count: Tensor

    def __init__(self, size: int, shape: tuple[int, ...] | None = None) -> None:
        super().__init__()
        if size < 0:
            raise ParameterError(f"The size of the image pool is {size}, expected at least 0.")
        self.size, self.shape = size, shape
        self.register_buffer("images", torch.zeros(size, *(shape if shape is not None else (0,))))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def query(self, fake: Tensor, generator: torch.Generator) -> Tensor:
        """Images (B, ...) for the discriminator: those of `fake`, or in their place old ones; without gradient.

        While the pool is not full, each image is stored and returned. After that, each with probability ½ takes the
        place of one of the pool, chosen evenly, which is returned instead.

        Raises:
            ParameterError: images of another shape than those in the pool.
        """
        if self.size == 0:
            return fake.detach()
        if self.images.shape[1:] != fake.shape[1:]:
            self._take_shape(fake)
        slots = torch.randint(self.size, (len(fake),), generator=generator, device=generator.device).to(fake.device)
        swaps = (torch.rand(len(fake), generator=generator, device=generator.device) < 0.5).to(fake.device)
        answers = []
        for new, slot, swap in zip(fake.detach().to(self.images), slots, swaps, strict=True):
            filling = self.count < self.size  # left on the device: reading it would wait for that
            place = torch.where(filling, self.count, slot)[None]
            old = self.images[place][0]
            answers.append(torch.where(swap & ~filling, old, new))
            self.images[place] = torch.where(swap | filling, new, old)[None]
            self.count.add_(filling)
        return torch.stack(answers).to(fake)

    def _take_shape(self, fake: Tensor) -> None:
        if self.shape is not None or self.images.numel():
            raise ParameterError(
                f"The image pool holds images {tuple(self.images.shape[1:])}, but was given {tuple(fake.shape[1:])}. "
                "Train with images of one size, or without a pool."
            )
        self.images = torch.zeros(self.size, *fake.shape[1:], device=self.images.device)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        held = state_dict.get(f"{prefix}images")
        if self.shape is None and held is not None and len(held) == self.size:
            self.images = torch.zeros(held.shape, device=self.images.device)
        super()._load_from_state_dict(state_dict, prefix, *rest)


class PatchNCE(nn.Module):
    """Contrast of places of an image, layer by layer, through a perceptron of two layers each.

    Args:
        channels: of the features of each layer.
        patches: places drawn per layer; all where there are fewer.
        temperature: T.
        width: of the perceptrons and of the vectors that are compared; 256 as published.
    """

    def __init__(
        self, channels: Sequence[int], *, patches: int = 256, temperature: float = 0.07, width: int = 128
    ) -> None:
        super().__init__()
        if not channels or patches < 2 or temperature <= 0:
            raise ParameterError(
                f"{len(channels)} layers, {patches} patches and temperature {temperature}; expected at least one "
                "layer, two patches and a temperature above 0."
            )
        self.patches, self.temperature = patches, temperature
        heads = [nn.Sequential(nn.Linear(c, width), nn.ReLU(), nn.Linear(width, width)) for c in channels]
        self.heads = nn.ModuleList(heads).apply(_initialise)

    def forward(self, query: list[Tensor], key: list[Tensor], generator: torch.Generator) -> Tensor:
        """The mean of L_NCE over layers, images and places, () in float32.

        Negatives are other places of the same image only. `key` gets no gradient, and neither do the perceptrons
        from it.

        Args:
            query: features (B,c,h,w) of the outputs, one for each layer.
            key: features of the inputs, of the same shapes.
            generator: draws the places, the same for all images of the batch.
        """
        losses = []
        for head, q, k in zip(self.heads, query, key, strict=True):
            places = q.shape[-2] * q.shape[-1]
            drawn = torch.randperm(places, generator=generator, device=generator.device)[: self.patches].to(q.device)
            q, k = (head(f.flatten(2)[..., drawn].transpose(1, 2)).float() for f in (q, k.detach()))
            with torch.autocast(q.device.type, enabled=False):
                similarity = F.normalize(q, dim=2) @ F.normalize(k.detach(), dim=2).transpose(1, 2)
            losses.append(F.cross_entropy((similarity / self.temperature).flatten(0, 1), _same_place(similarity)))
        return torch.stack(losses).mean()


def _same_place(similarity: Tensor) -> Tensor:
    images, places, _ = similarity.shape
    return torch.arange(places, device=similarity.device).repeat(images)


def _convolution(inputs: int, outputs: int, kernel: int, *, stride: int = 1, relu: bool = True) -> nn.Sequential:
    mode: Literal["reflect", "zeros"] = "reflect" if stride == 1 else "zeros"
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False, padding_mode=mode)
    return nn.Sequential(convolution, nn.InstanceNorm2d(outputs), nn.ReLU() if relu else nn.Identity())


def _padded(x: Tensor, multiple: int, smallest: int) -> Tensor:
    """x, made at least `smallest` and a multiple of `multiple` high and wide by repeating its last row and column."""
    missing = [max(-(-side // multiple) * multiple, smallest) - side for side in x.shape[-2:]]
    return F.pad(x, (0, missing[1], 0, missing[0]), mode="replicate") if any(missing) else x


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
