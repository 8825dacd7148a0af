"""The way of the code before MedShift's: an ADM U-Net in single precision, evaluated twice at every step.

The U-Net is written here from its description (Dhariwal and Nichol, 2021, arXiv:2105.05233): embeddings computed at
each call, attention as two einsums, normalisation cast to single precision, planes in channels-first order. The loop
calls it once for each branch of the guidance, whatever the scale is.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medshift.network import TIME_SCALE, NetworkConfig, VelocityNetwork

SIGMA_MIN = 1e-4


class Norm(nn.GroupNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).type(x.dtype)


class ResBlock(nn.Module):
    def __init__(self, channels: int, out: int, embedding: int, groups: int) -> None:
        super().__init__()
        self.into = nn.Sequential(Norm(groups, channels), nn.SiLU(), nn.Conv2d(channels, out, 3, padding=1))
        self.embed = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * out))
        self.norm = Norm(groups, out)
        self.rest = nn.Sequential(nn.SiLU(), nn.Dropout(0.0), nn.Conv2d(out, out, 3, padding=1))
        self.skip = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.embed(embedding)[..., None, None].chunk(2, dim=1)
        return self.skip(x) + self.rest(self.norm(self.into(x)) * (1 + scale) + shift)


class Attention(nn.Module):
    def __init__(self, channels: int, heads: int, groups: int) -> None:
        super().__init__()
        self.heads, self.norm = heads, Norm(groups, channels)
        self.qkv, self.out = nn.Conv1d(channels, 3 * channels, 1), nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        b, c, *sides = x.shape
        flat = x.reshape(b, c, -1)
        q, k, v = self.qkv(self.norm(flat)).reshape(b, 3, self.heads, c // self.heads, -1).unbind(1)
        scale = (c // self.heads) ** -0.25
        weight = torch.einsum("bhct,bhcs->bhts", q * scale, k * scale).softmax(dim=-1)
        mixed = torch.einsum("bhts,bhcs->bhct", weight, v).reshape(b, c, -1)
        return (flat + self.out(mixed)).reshape(b, c, *sides)


class Resample(nn.Module):
    def __init__(self, channels: int, up: bool) -> None:
        super().__init__()
        self.up, self.conv = up, nn.Conv2d(channels, channels, 3, stride=1 if up else 2, padding=1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest") if self.up else x)


class Stack(nn.ModuleList):
    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        for layer in self:
            x = layer(x, embedding)
        return x


class UNet(nn.Module):
    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        widths, groups = config.channels, config.norm_groups
        self.base, size = widths[0], 4 * widths[0]
        self.time = nn.Sequential(nn.Linear(self.base, size), nn.SiLU(), nn.Linear(size, size))
        self.label = nn.Embedding(config.n_domains + 1, size)
        self.first = nn.Conv2d(config.in_channels, self.base, 3, padding=1)

        def stack(channels: int, out: int, level: int) -> Stack:
            attention = (
                [Attention(out, out // config.head_channels, groups)] if level in config.attention_levels else []
            )
            return Stack([ResBlock(channels, out, size, groups), *attention])

        self.inputs, self.outputs, skips, channels = nn.ModuleList(), nn.ModuleList(), [self.base], self.base
        last = len(widths) - 1
        for level, out in enumerate(widths):
            for _ in range(config.layers_per_block):
                self.inputs.append(stack(channels, out, level))
                skips.append(channels := out)
            if level != last:
                self.inputs.append(Stack([Resample(out, up=False)]))
                skips.append(out)
        blocks = [ResBlock(channels, channels, size, groups) for _ in range(2)]
        self.middle = Stack([blocks[0], Attention(channels, channels // config.head_channels, groups), blocks[1]])
        for level, out in reversed([*enumerate(widths)]):
            for k in range(config.layers_per_block + 1):
                layers = stack(channels + skips.pop(), out, level)
                if level and k == config.layers_per_block:
                    layers.append(Resample(out, up=True))
                self.outputs.append(layers)
                channels = out
        self.last = nn.Sequential(
            Norm(groups, channels), nn.SiLU(), nn.Conv2d(channels, config.in_channels, 3, padding=1)
        )

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        half = self.base // 2
        waves = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=x.device) / half)
        angles = TIME_SCALE * t[:, None].float() * waves
        embedding = self.time(torch.cat([angles.cos(), angles.sin()], dim=-1)) + self.label(label)
        h = self.first(x)
        held = [h]
        for layers in self.inputs:
            held.append(h := layers(h, embedding))
        h = self.middle(h, embedding)
        for layers in self.outputs:
            h = layers(torch.cat([h, held.pop()], dim=1), embedding)
        return self.last(h)


class Predecessor:
    """The U-Net with a network's weights, on its device, and its loops."""

    name = "predecessor's way"

    def __init__(self, network: VelocityNetwork) -> None:
        self.null_label = network.null_label
        self.module = UNet(network.config).to(next(network.parameters()).device)
        take_weights(self.module, network)

    @torch.no_grad()
    def leg(self, x: Tensor, label: Tensor, knots: tuple[float, ...], scale: float) -> Tensor:
        null = torch.full_like(label, self.null_label)
        for t, t_next in pairwise(knots):
            times = torch.full((len(x),), t, device=x.device)
            conditional = self.module(x, times, label)
            unconditional = self.module(x, times, null)
            x = x + (t_next - t) * (unconditional + scale * (conditional - unconditional))
        return x

    def loss(self, latents: Tensor, label: Tensor, generator: torch.Generator) -> Tensor:
        noise, t = drawn(latents, generator)
        label = torch.where(torch.rand(len(t), generator=generator, device=t.device) < 0.2, self.null_label, label)
        at = t[:, None, None, None]
        x = (1 - (1 - SIGMA_MIN) * at) * noise + at * latents
        return F.mse_loss(self.module(x, t, label), latents - (1 - SIGMA_MIN) * noise)


def drawn(latents: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noise like the latents (B, C, H, W), and times (B,)."""
    place = {"generator": generator, "device": latents.device}
    return torch.randn(latents.shape, **place), torch.rand(len(latents), **place)


def parts(network: VelocityNetwork) -> list[list[nn.Module]]:
    """Our layers in the order in which an ADM U-Net holds them: inputs, then middle, then outputs, stack by stack."""
    unet = network.unet
    stacks: list[list[nn.Module]] = []
    for block in unet.down_blocks:
        attentions = getattr(block, "attentions", [None] * len(block.resnets))
        stacks += [[r] if a is None else [r, a] for r, a in zip(block.resnets, attentions, strict=True)]
        stacks += [[d.conv] for d in block.downsamplers or []]
    middle = unet.mid_block
    stacks.append([middle.resnets[0], middle.attentions[0], middle.resnets[1]])
    for block in unet.up_blocks:
        attentions = getattr(block, "attentions", [None] * len(block.resnets))
        up = [[r] if a is None else [r, a] for r, a in zip(block.resnets, attentions, strict=True)]
        up[-1] += [u.conv for u in block.upsamplers or []]
        stacks += up
    return stacks


def joined(attention: nn.Module, entry: str) -> Tensor:
    """Weights or biases of queries, keys and values, one after the other."""
    return torch.cat([getattr(part, entry) for part in (attention.to_q, attention.to_k, attention.to_v)])


@torch.no_grad()
def take_weights(unet: UNet, network: VelocityNetwork) -> None:
    ours = network.unet
    unet.time[0].load_state_dict(ours.time_embedding.linear_1.state_dict())
    unet.time[2].load_state_dict(ours.time_embedding.linear_2.state_dict())
    unet.label.load_state_dict(ours.class_embedding.state_dict())
    unet.first.load_state_dict(ours.conv_in.state_dict())
    unet.last[0].load_state_dict(ours.conv_norm_out.state_dict())
    unet.last[2].load_state_dict(ours.conv_out.state_dict())
    for stack, sources in zip([*unet.inputs, unet.middle, *unet.outputs], parts(network), strict=True):
        for layer, source in zip(stack, sources, strict=True):
            if isinstance(layer, Resample):
                layer.conv.load_state_dict(source.state_dict())
            elif isinstance(layer, Attention):
                layer.norm.load_state_dict(source.group_norm.state_dict())
                layer.qkv.weight.copy_(joined(source, "weight")[..., None])
                layer.qkv.bias.copy_(joined(source, "bias"))
                layer.out.weight.copy_(source.to_out[0].weight[..., None])
                layer.out.bias.copy_(source.to_out[0].bias)
            else:
                pairs = {"into.0": "norm1", "into.2": "conv1", "embed.1": "time_emb_proj", "norm": "norm2"}
                pairs |= {"rest.2": "conv2"} | ({} if source.conv_shortcut is None else {"skip": "conv_shortcut"})
                for theirs, name in pairs.items():
                    layer.get_submodule(theirs).load_state_dict(source.get_submodule(name).state_dict())
