r"""The network of `medshift.network`, arranged for evaluation: the same function in fewer and cheaper operations.

`arranged` makes it of a `VelocityNetwork`'s weights, which are all it takes: neither the network itself nor the library
that defines its layers is imported, since that takes longer than a translation. Nothing is approximated; sums are
taken in another order:

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

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medshift.errors import ParameterError

__all__ = ["Conditioning", "LeanUNet", "arranged", "doubling_kernel"]

# Pixels below which torch's group normalisation on the CPU is several times slower in bfloat16 than in float32.
SMALL_MAP = 1024
TIME_SCALE = 1000.0  # the network's unit of time
LONGEST_WAVE = 10000.0  # of its embedding, in radians of that time to the radian
EPSILON = 1e-5  # of every normalisation
BARE = "Give weights of the architecture that the configuration says, with adapters merged into them."

M = TypeVar("M", bound=nn.Module)


def arranged(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], dtype: torch.dtype
) -> tuple[Conditioning, LeanUNet]:
    """What times and labels say, and the U-Net that listens, as copies of a network's weights.

    Args:
        config: the network's shape, as `medshift.network.NetworkConfig.to_dict` says it.
        tensors: its weights by name, as its `state_dict` holds them.
        dtype: of the U-Net's weights and of the states between its layers.

    Raises:
        ParameterError: weights of another network, or other layers, such as adapters.
    """
    layers = _Layers(tensors)
    device = next(iter(tensors.values())).device
    conditioning = Conditioning(config, layers).to(device)
    lean = LeanUNet(config, layers, dtype)
    if layers.left:
        raise ParameterError(f"The network has layers unknown here ({', '.join(sorted(layers.left)[:3])}, ...). {BARE}")
    return conditioning.requires_grad_(False).eval(), lean.requires_grad_(False).eval()


class _Layers:
    """A network's tensors, copied in single precision; each is taken once."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.left = dict(tensors)

    def take(self, layer: str) -> dict[str, Tensor]:
        """Weight, and bias if there is one, of a layer of the U-Net."""
        names = [name for name in (f"unet.{layer}.weight", f"unet.{layer}.bias") if name in self.left]
        if not names:
            raise ParameterError(f"The network lacks the layer {layer!r}. {BARE}")
        return {name.rpartition(".")[2]: self.left.pop(name).detach().to(torch.float32, copy=True) for name in names}

    def has(self, layer: str) -> bool:
        return f"unet.{layer}.weight" in self.left


class _Place(NamedTuple):
    """A level of the U: its name, its residual blocks, and whether its pixels attend to each other."""

    name: str
    blocks: int
    attends: bool


def _places(config: Mapping[str, Any]) -> Iterator[_Place]:
    """All levels in the order of evaluation."""
    levels, blocks = range(len(config["channels"])), config["layers_per_block"]
    attends = [level in config["attention_levels"] for level in levels]
    yield from (_Place(f"down_blocks.{n}", blocks, attends[n]) for n in levels)
    yield _Place("mid_block", 2, True)
    yield from (_Place(f"up_blocks.{n}", blocks + 1, attends[-1 - n]) for n in levels)


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
        config: see `arranged`.
        layers: of which it takes its own.

    Attributes:
        widths: of each block, in the order of the network's evaluation: twice its channels, scale and shift.
    """

    waves: Tensor

    def __init__(self, config: Mapping[str, Any], layers: _Layers) -> None:
        super().__init__()
        half = config["channels"][0] // 2
        self.register_buffer("waves", torch.exp(-math.log(LONGEST_WAVE) * torch.arange(half) / half), persistent=False)
        self.time = nn.Sequential(
            _linear(layers.take("time_embedding.linear_1")),
            nn.SiLU(),
            _linear(layers.take("time_embedding.linear_2")),
        ).float()
        self.label = nn.Embedding.from_pretrained(layers.take("class_embedding")["weight"].float())
        names = (f"{place.name}.resnets.{n}" for place in _places(config) for n in range(place.blocks))
        projections = [layers.take(f"{name}.time_emb_proj") for name in names]
        self.widths = [len(projection["bias"]) for projection in projections]
        self.weight = nn.Parameter(torch.cat([p["weight"] for p in projections]).float())
        self.bias = nn.Parameter(torch.cat([p["bias"] for p in projections]).float())

    def forward(self, t: Tensor, label: Tensor) -> Tensor:
        """Rows (B, sum of `widths`), float32, for labels (B,) int64 and times t (B,), or one (), even of the CPU."""
        scaled = TIME_SCALE * t.to(torch.float32)
        phases = (scaled if t.ndim == 0 else scaled[:, None]) * self.waves[None]
        embedded = self.time(torch.cat([phases.cos(), phases.sin()], dim=1)) + self.label(label)
        return F.linear(F.silu(embedded), self.weight, self.bias)


class LeanUNet(nn.Module):
    """A velocity network's U-Net without its embeddings.

    Args:
        config: see `arranged`.
        layers: of which it takes its own.
        dtype: of weights and of the states between layers.

    Attributes:
        channels: C of the latents.
        null_label: the class that stands for "no domain", K.
        stride: H and W of the latents are multiples of it.
    """

    def __init__(self, config: Mapping[str, Any], layers: _Layers, dtype: torch.dtype) -> None:
        super().__init__()
        depth = len(config["channels"])
        self.channels, self.null_label, self.stride = config["in_channels"], config["n_domains"], 2 ** (depth - 1)
        self.first, self.last = _conv(layers.take("conv_in")), _conv(layers.take("conv_out"))
        self.norm = _Norm(layers.take("conv_norm_out"), config["norm_groups"])
        levels = [_Level(place, config, layers) for place in _places(config)]
        self.down: Any = nn.ModuleList(levels[:depth])
        self.middle: Any = levels[depth]
        self.up: Any = nn.ModuleList(levels[depth + 1 :])
        self.widths = [2 * block.conv1.out_channels for level in levels for block in level.blocks]
        self.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.dtype = dtype

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

    def __init__(self, place: _Place, config: Mapping[str, Any], layers: _Layers) -> None:
        super().__init__()
        groups, width = config["norm_groups"], config["head_channels"]
        blocks = [_Residual(f"{place.name}.resnets.{n}", layers, groups) for n in range(place.blocks)]
        for n, block in enumerate(blocks):
            if place.attends and layers.has(f"{place.name}.attentions.{n}.group_norm"):
                block.attention = _Attention(f"{place.name}.attentions.{n}", layers, groups, width)
        self.blocks, self.resample = nn.ModuleList(blocks), None
        if layers.has(down := f"{place.name}.downsamplers.0.conv"):
            self.resample = _conv(layers.take(down), stride=2)
        elif layers.has(up := f"{place.name}.upsamplers.0.conv"):
            self.resample = _doubling(layers.take(up))


class _Norm(nn.Module):
    """Group normalisation."""

    def __init__(self, held: Mapping[str, Tensor], groups: int) -> None:
        super().__init__()
        self.groups, self.weight, self.bias = groups, nn.Parameter(held["weight"]), nn.Parameter(held["bias"])

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.bfloat16 and x.device.type == "cpu" and x.shape[2] * x.shape[3] < SMALL_MAP:
            weight, bias = self.weight.float(), self.bias.float()
            return F.group_norm(x.float(), self.groups, weight, bias, EPSILON).to(x.dtype)
        return F.group_norm(x, self.groups, self.weight, self.bias, EPSILON)


class _Residual(nn.Module):
    """Norm, convolution, norm with the scale and shift of time and label, convolution; the input; attention, if any."""

    attention: nn.Module

    def __init__(self, name: str, layers: _Layers, groups: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (_Norm(layers.take(f"{name}.norm{n}"), groups) for n in (1, 2))
        self.conv1, self.conv2 = (_conv(layers.take(f"{name}.conv{n}")) for n in (1, 2))
        shortcut = f"{name}.conv_shortcut"
        self.shortcut = _conv(layers.take(shortcut)) if layers.has(shortcut) else nn.Identity()
        self.attention = nn.Identity()

    def forward(self, x: Tensor, said: Tensor) -> Tensor:
        scale, shift = said.chunk(2, dim=1)
        h = self.conv1(F.silu(self.norm1(x), inplace=True))
        h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        return self.attention(self.conv2(F.silu(h, inplace=True)).add_(self.shortcut(x)))


class _Attention(nn.Module):
    """Every pixel attends to every other; the input is added."""

    def __init__(self, name: str, layers: _Layers, groups: int, head_channels: int) -> None:
        super().__init__()
        parts = [layers.take(f"{name}.to_{part}") for part in "qkv"]
        self.norm, self.out = _Norm(layers.take(f"{name}.group_norm"), groups), _linear(layers.take(f"{name}.to_out.0"))
        self.into = _linear({key: torch.cat([part[key] for part in parts]) for key in ("weight", "bias")})
        self.heads = self.out.out_features // head_channels

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        pixels = self.norm(x).permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        into = self.into(pixels).reshape(batch, height * width, 3, self.heads, -1)
        query, key, value = into.permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(pixels.shape)
        return self.out(h).reshape(batch, height, width, channels).permute(0, 3, 1, 2) + x


def _linear(held: Mapping[str, Tensor]) -> nn.Linear:
    outs, ins = held["weight"].shape
    return _with(nn.Linear(ins, outs, device="meta"), held)


def _conv(held: Mapping[str, Tensor], stride: int = 1) -> nn.Conv2d:
    outs, ins, side, _ = held["weight"].shape
    return _with(nn.Conv2d(ins, outs, side, stride=stride, padding=side // 2, device="meta"), held)


def _doubling(held: Mapping[str, Tensor]) -> nn.ConvTranspose2d:
    outs, ins, *_ = held["weight"].shape
    doubling = nn.ConvTranspose2d(ins, outs, 4, stride=2, padding=1, device="meta")
    return _with(doubling, {**held, "weight": doubling_kernel(held["weight"])})


def _with(module: M, held: Mapping[str, Tensor]) -> M:
    module.load_state_dict(held, assign=True)
    return module
