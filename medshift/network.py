"""The velocity network: one U-Net for all domains, conditioned on time and domain.

`VelocityNetwork` is a velocity in the sense of `medshift.flow`: ``network(x, t, label) -> v``. It wraps diffusers'
`UNet2DModel` and mends what a bare one would get wrong here:

* The sinusoidal embedding counts in steps of a thousand and its fastest wave has a period of 2π. Times in [0, 1]
  would all look alike to it, so they are multiplied by 1000; and they go in as a tensor, since a Python float
  would be truncated to an integer.
* The label embedding has one row more than there are domains, the null class, for guidance.
* Each level halves the image. Latents whose sides are no multiple of the stride are padded by repeating their
  edge, and the velocity is cropped back.
* The last convolution starts at zero, so an untrained network is the zero field.

References:
    Dhariwal and Nichol, Diffusion Models Beat GANs on Image Synthesis, 2021, arXiv:2105.05233 (the architecture).
    Ho and Salimans, Classifier-Free Diffusion Guidance, 2022, arXiv:2207.12598 (the null class).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from medshift.errors import ParameterError

__all__ = ["PRESETS", "NetworkConfig", "VelocityNetwork", "build_network", "scaled"]

TIME_SCALE = 1000.0

# Sizes by name. Parameters are counted with four latent channels and five domains.
PRESETS: dict[str, dict[str, Any]] = {
    # 0.2 M: tests.
    "smoke": {"channels": (16, 32), "norm_groups": 8, "head_channels": 16},
    # 7 M, for 32 x 32 latents: most weights sit at low resolution, where a step on a laptop costs little.
    "small": {"channels": (32, 64, 128, 192), "norm_groups": 16},
    # 60 M, for 64 x 64 latents; attention over 16 x 16 and 8 x 8.
    "gpu": {"channels": (128, 256, 320, 384), "layers_per_block": 2, "attention_levels": (2, 3), "head_channels": 64},
    # 385 M, the size that was published (1539.5 MB of float32); its shape was not, this one is ours.
    "paper": {
        "channels": (256, 512, 832, 1024),
        "layers_per_block": 2,
        "attention_levels": (2, 3),
        "head_channels": 64,
    },
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """What decides the shape of a `VelocityNetwork`, as plain JSON values.

    Args:
        n_domains: K; labels 0..K-1 are domains and K is the null label.
        in_channels: C of the latents.
        channels: width of each level, from fine to coarse; L of them make the stride 2^(L-1).
        layers_per_block: residual blocks of a level on the way down (one more on the way up).
        attention_levels: levels whose pixels attend to each other; the bottom of the U always does.
        head_channels: channels of an attention head.
        norm_groups: groups of the group normalisation; divides every width.
        dropout: probability inside the residual blocks.
    """

    n_domains: int
    in_channels: int
    channels: tuple[int, ...] = (48, 96, 144, 192)
    layers_per_block: int = 1
    attention_levels: tuple[int, ...] = ()
    head_channels: int = 32
    norm_groups: int = 32
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for field in ("channels", "attention_levels"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        if min(self.n_domains, self.in_channels, self.layers_per_block, self.norm_groups) < 1 or not self.channels:
            raise ParameterError(f"A network needs at least one domain, channel, level, block and group, got {self}.")
        if not set(self.attention_levels) <= set(range(len(self.channels))):
            raise ParameterError(
                f"attention_levels {self.attention_levels} name levels that are not among 0..{len(self.channels) - 1}."
            )
        attending = [self.channels[level] for level in (*self.attention_levels, -1)]
        uneven = [width for width in self.channels if width % self.norm_groups]
        uneven += [width for width in attending if width % self.head_channels]
        if uneven:
            raise ParameterError(
                f"Widths {uneven} are not multiples of norm_groups={self.norm_groups} or, where pixels attend, of "
                f"head_channels={self.head_channels}; change one of them."
            )
        if not 0 <= self.dropout < 1:
            raise ParameterError(f"dropout is {self.dropout}, expected a number in [0, 1).")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> NetworkConfig:
        """The configuration that `to_dict` gave.

        Raises:
            ParameterError: an unknown or a missing entry, or a value out of its range.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ParameterError(f"Unknown entries {unknown} of a network configuration; known are {sorted(known)}.")
        try:
            return cls(**values)
        except TypeError as error:
            raise ParameterError(f"The network configuration is incomplete or of a wrong type: {error}.") from error

    def to_dict(self) -> dict[str, Any]:
        """All entries, as JSON values."""
        values = dataclasses.asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


class VelocityNetwork(nn.Module):
    """The learned velocity :math:`v_\\theta(x, t, c)`.

    Args:
        config: its shape.

    Attributes:
        null_label: the class that stands for "no domain", K.
        stride: latents are padded to a multiple of it.
    """

    kind = "velocity-unet"

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        levels = range(len(config.channels))
        attends = [level in config.attention_levels for level in levels]
        self.config = config
        self.null_label = config.n_domains
        self.stride = 2 ** (len(config.channels) - 1)
        self.unet: nn.Module = UNet2DModel(
            in_channels=config.in_channels,
            out_channels=config.in_channels,
            block_out_channels=config.channels,
            layers_per_block=config.layers_per_block,
            down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
            up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
            attention_head_dim=config.head_channels,
            norm_num_groups=config.norm_groups,
            # The middle block's attention has no normalisation unless its groups are named.
            attn_norm_num_groups=config.norm_groups,
            resnet_time_scale_shift="scale_shift",
            dropout=config.dropout,
            num_class_embeds=config.n_domains + 1,
        )
        for parameter in self.unet.get_submodule("conv_out").parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """The velocity at `x`.

        Args:
            x: latents (B, C, H, W), any H and W.
            t: () or (B,), float in [0, 1]; one of shape () may lie on the CPU, whatever the device of `x`.
            label: (B,) int64 in 0..K, K being the null label.

        Returns:
            (B, C, H, W) in the dtype of `x`, also under autocast.

        Raises:
            ParameterError: shapes or dtypes other than these.
        """
        batch, channels = x.shape[0], self.config.in_channels
        if x.ndim != 4 or x.shape[1] != channels:
            raise ParameterError(f"This network expects latents (B, {channels}, H, W), not {tuple(x.shape)}.")
        if not t.is_floating_point() or t.ndim > 1 or (t.ndim == 1 and len(t) != batch):
            raise ParameterError(f"t must be float of shape () or ({batch},), not {t.dtype} {tuple(t.shape)}.")
        if label.shape != (batch,) or label.dtype != torch.int64:
            raise ParameterError(f"label must be int64 ({batch},), not {label.dtype} {tuple(label.shape)}.")
        height, width = x.shape[2:]
        tall, wide = -height % self.stride, -width % self.stride
        top, left = tall // 2, wide // 2
        padded = F.pad(x, (left, wide - left, top, tall - top), mode="replicate")
        # A sum and no expansion: a number of the host goes to a GPU with the kernel, without waiting for it.
        time = torch.zeros(batch, dtype=torch.float32, device=x.device) + TIME_SCALE * t.to(torch.float32)
        velocity = self.unet(padded, time, label, return_dict=False)[0]
        return velocity[:, :, top : top + height, left : left + width].to(x.dtype)


def build_network(preset: str, *, n_domains: int, in_channels: int, **changes: Any) -> VelocityNetwork:
    """An untrained network of a named size; its weights come from torch's global random state.

    Args:
        preset: one of `PRESETS`: "smoke", "small", "gpu" or "paper".
        n_domains: K.
        in_channels: C of the latents.
        changes: entries of `NetworkConfig` that differ from the preset.

    Raises:
        ParameterError: no such preset, or an entry out of its range.
    """
    if preset not in PRESETS:
        raise ParameterError(f"No network size is called {preset!r}; choose from {', '.join(PRESETS)}.")
    entries = {**PRESETS[preset], "n_domains": n_domains, "in_channels": in_channels, **changes}
    return VelocityNetwork(NetworkConfig.from_dict(entries))


def scaled(preset: str, factor: float) -> dict[str, Any]:
    """What to change in a preset to make its channels `factor` times as wide, rounded to widths it can have.

    Args:
        preset: one of `PRESETS`.
        factor: above 0; 1 changes nothing.

    Returns:
        Entries for `build_network`.

    Raises:
        ParameterError: no such preset, or a factor that is not above 0.
    """
    if preset not in PRESETS:
        raise ParameterError(f"No network size is called {preset!r}; choose from {', '.join(PRESETS)}.")
    if not 0 < factor < math.inf:
        raise ParameterError(f"The width's factor is {factor}, expected a number above 0.")
    if factor == 1:
        return {}
    entries = PRESETS[preset]
    unit = math.lcm(entries.get("norm_groups", 32), entries.get("head_channels", 32))
    smallest = entries.get("norm_groups", 32)
    attends = {*entries.get("attention_levels", ()), len(entries["channels"]) - 1}
    units = [unit if level in attends else smallest for level in range(len(entries["channels"]))]
    widths = [max(u, round(factor * c / u) * u) for u, c in zip(units, entries["channels"], strict=True)]
    return {"channels": tuple(widths)}
