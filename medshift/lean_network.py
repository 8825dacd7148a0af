r"""The network of `medshift.network`, arranged for evaluation: the same function in fewer and cheaper operations.

`LeanUNet` holds copies of a `VelocityNetwork`'s weights. Nothing is approximated; sums are taken in another order:

* Everything lies in channels-last order, the one in which convolutions run without rearranging their input.
* Nearest-neighbour upsampling and the 3x3 convolution after it are one transposed convolution, whose kernel of 4x4 at
  stride 2 is the 3x3 one convolved with a square of 2x2 ones: 16 products for each input pixel and pair of channels
  in place of 36.
* The projections of time and label in all residual blocks are one matrix, applied by `Conditioning`, whose result can
  be kept: it depends on t and the label alone.
* Queries, keys and values of an attention are one matrix; the attention is torch's fused one.
* Nothing is divided by one, and activations write where they read.

Reference:
    Dhariwal and Nichol, Diffusion Models Beat GANs on Image Synthesis, 2021, arXiv:2105.05233 (the architecture).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medshift.errors import ParameterError
from medshift.network import TIME_SCALE, VelocityNetwork

__all__ = ["Conditioning", "LeanUNet", "doubling_kernel"]

# Pixels below which torch's group normalisation on the CPU is several times slower in bfloat16 than in float32.
SMALL_MAP = 1024


def doubling_kernel(weight: Tensor) -> Tensor:
    """The kernel of a transposed convolution (stride 2, padding 1) that doubles an image and convolves it.

    Args:
        weight: of a 3x3 convolution (out, in, 3, 3) with padding 1 that follows nearest-neighbour upsampling by two.

    Returns:
        (in, out, 4, 4): output row 2i + p, p = 0 or 1, sees input rows i - 1 + p and i + p, each with the sum of the
        taps that meet it.
    """
    offsets = ((0, 1, 0, 1), (1, 0, 0, 1), (0, 1, 1, 0), (1, 0, 1, 0))
    spread = torch.stack([F.pad(weight, offset) for offset in offsets]).sum(0)
    return spread.flip(2, 3).transpose(0, 1).contiguous()


class Conditioning(nn.Module):
    """What time and label say to each residual block, in one matrix product of single precision.

    Args:
        network: whose weights to copy.

    Attributes:
        widths: of each block, in the order of the network's evaluation: twice its channels, scale and shift.
    """

    def __init__(self, network: VelocityNetwork) -> None:
        super().__init__()
        unet: Any = network.unet
        self.waves = copy.deepcopy(unet.time_proj)
        self.time = copy.deepcopy(unet.time_embedding).float()
        self.label = copy.deepcopy(unet.class_embedding).float()
        projections = [block.time_emb_proj for block in _residual_blocks(unet)]
        self.widths = [projection.out_features for projection in projections]
        self.weight = nn.Parameter(torch.cat([p.weight for p in projections]).detach().float())
        self.bias = nn.Parameter(torch.cat([p.bias for p in projections]).detach().float())

    def forward(self, t: Tensor, label: Tensor) -> Tensor:
        """Rows (B, sum of `widths`), float32, for times t () or (B,) and labels (B,) int64."""
        waves = self.waves(TIME_SCALE * t.to(label.device, torch.float32).reshape(-1))
        embedded = self.time(waves) + self.label(label)
        return F.linear(F.silu(embedded), self.weight, self.bias)


class LeanUNet(nn.Module):
    """A velocity network's U-Net without its embeddings.

    Args:
        network: whose weights to copy.
        dtype: of weights and of the states between layers.

    Raises:
        ParameterError: the network has other layers than `medshift.network` gives it, such as adapters.
    """

    def __init__(self, network: VelocityNetwork, dtype: torch.dtype) -> None:
        super().__init__()
        _check_layers(network)
        unet: Any = copy.deepcopy(network.unet)
        self.widths = [block.time_emb_proj.out_features for block in _residual_blocks(unet)]
        self.first, self.last = unet.conv_in, unet.conv_out
        self.norm = _Norm(unet.conv_norm_out)
        self.down: Any = nn.ModuleList(_Level(block) for block in unet.down_blocks)
        self.middle = _Level(unet.mid_block)
        self.up: Any = nn.ModuleList(_Level(block) for block in unet.up_blocks)
        self.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.requires_grad_(False).eval()
        self.dtype, self.config = dtype, network.config

    def forward(self, x: Tensor, rows: Tensor) -> Tensor:
        """The velocity (B, C, H, W), in the dtype of `x`.

        Args:
            x: latents (B, C, H, W), H and W multiples of the network's stride.
            rows: of `Conditioning`, (B, sum of widths).
        """
        said = iter(rows.to(self.dtype)[:, :, None, None].split(self.widths, dim=1))
        h = self.first(x.to(self.dtype, memory_format=torch.channels_last))
        skips = [h]
        for level in self.down:
            for block in level.blocks:
                h = block(h, next(said))
                skips.append(h)
            if level.resample is not None:
                h = level.resample(h)
                skips.append(h)
        for block in self.middle.blocks:
            h = block(h, next(said))
        for level in self.up:
            for block in level.blocks:
                h = block(torch.cat([h, skips.pop()], dim=1), next(said))
            if level.resample is not None:
                h = level.resample(h)
        return self.last(F.silu(self.norm(h), inplace=True)).to(x.dtype)


class _Level(nn.Module):
    """The residual blocks of one resolution, and the step to the next resolution, if any."""

    blocks: Any
    resample: Any

    def __init__(self, block: Any) -> None:
        super().__init__()
        pairs = zip_longest(block.resnets, getattr(block, "attentions", ()))
        self.blocks = nn.ModuleList(_Residual(residual, attention) for residual, attention in pairs)
        self.resample = None
        if downsamplers := getattr(block, "downsamplers", None):
            self.resample = downsamplers[0].conv
        elif upsamplers := getattr(block, "upsamplers", None):
            self.resample = _doubling(upsamplers[0].conv)


class _Norm(nn.Module):
    """Group normalisation with the weights of another."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.groups, self.eps, self.weight, self.bias = norm.num_groups, norm.eps, norm.weight, norm.bias

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.bfloat16 and x.device.type == "cpu" and x.shape[2] * x.shape[3] < SMALL_MAP:
            weight, bias = self.weight.float(), self.bias.float()
            return F.group_norm(x.float(), self.groups, weight, bias, self.eps).to(x.dtype)
        return F.group_norm(x, self.groups, self.weight, self.bias, self.eps)


class _Residual(nn.Module):
    """Norm, convolution, norm with the scale and shift of time and label, convolution; the input; attention, if any."""

    def __init__(self, block: Any, attention: Any = None) -> None:
        super().__init__()
        self.attention = nn.Identity() if attention is None else _Attention(attention)
        self.norm1, self.norm2 = _Norm(block.norm1), _Norm(block.norm2)
        self.conv1, self.conv2 = block.conv1, block.conv2
        self.shortcut = block.conv_shortcut or nn.Identity()

    def forward(self, x: Tensor, said: Tensor) -> Tensor:
        scale, shift = said.chunk(2, dim=1)
        h = self.conv1(F.silu(self.norm1(x), inplace=True))
        h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        return self.attention(self.conv2(F.silu(h, inplace=True)).add_(self.shortcut(x)))


class _Attention(nn.Module):
    """Every pixel attends to every other; the input is added."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        parts = (attention.to_q, attention.to_k, attention.to_v)
        self.norm, self.heads, self.out = _Norm(attention.group_norm), attention.heads, attention.to_out[0]
        self.into = nn.Linear(parts[0].in_features, sum(part.out_features for part in parts))
        self.into.weight = nn.Parameter(torch.cat([part.weight for part in parts]).detach())
        self.into.bias = nn.Parameter(torch.cat([part.bias for part in parts]).detach())

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        pixels = self.norm(x).permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        into = self.into(pixels).reshape(batch, height * width, 3, self.heads, -1)
        query, key, value = into.permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(pixels.shape)
        return self.out(h).reshape(batch, height, width, channels).permute(0, 3, 1, 2) + x


def _doubling(conv: nn.Conv2d) -> nn.ConvTranspose2d:
    doubling = nn.ConvTranspose2d(conv.in_channels, conv.out_channels, 4, stride=2, padding=1)
    doubling.weight = nn.Parameter(doubling_kernel(conv.weight.detach()))
    doubling.bias = conv.bias
    return doubling


def _residual_blocks(unet: Any) -> Iterator[Any]:
    """All residual blocks in the order of evaluation."""
    for part in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
        yield from part.resnets


def _check_layers(network: VelocityNetwork) -> None:
    with torch.device("meta"):
        expected = VelocityNetwork(network.config).state_dict()
    if unknown := sorted(set(network.state_dict()) ^ set(expected)):
        raise ParameterError(
            f"The network has layers that a bare one has not, or lacks some ({', '.join(unknown[:3])}, ...). Give the "
            "network itself: adapters have to be merged into its weights first."
        )
