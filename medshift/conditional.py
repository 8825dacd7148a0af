"""The network of the paired methods: one U-Net that sees the noisy latent and the source beside it.

All of them are given the same one, so that they differ by their process and not by their size. The source enters by its
channels; the originals differ there (CDTSDE has a ControlNet branch, BBDM none in its latent form).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medshift.errors import ParameterError
from medshift.network import NetworkConfig, VelocityNetwork

__all__ = ["ConditionalNetwork"]


class ConditionalNetwork(nn.Module):
    """F(x_t, t, y): the U-Net of `medshift.network` on both latents, its last convolution starting at zero.

    Args:
        latent_channels: C of both.
        channels: width of each level; (24, 32, 48, 64) make 1.0 M parameters with four latent channels.
        norm_groups: of its group normalisation.
        head_channels: of its attention heads.
        dropout: probability inside the residual blocks.
    """

    def __init__(
        self,
        latent_channels: int,
        channels: Sequence[int] = (24, 32, 48, 64),
        *,
        norm_groups: int = 8,
        head_channels: int = 16,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.latent_channels = latent_channels
        config = NetworkConfig(
            n_domains=1,
            in_channels=2 * latent_channels,
            channels=tuple(channels),
            norm_groups=norm_groups,
            head_channels=head_channels,
            dropout=dropout,
        )
        self.body = VelocityNetwork(config)
        last = nn.Conv2d(channels[0], latent_channels, 3, padding=1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias if last.bias is not None else last.weight)
        self.body.unet.conv_out = last

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """What the method makes of it, (B,C,h,w) in the dtype of `x`.

        Args:
            x: noisy latents (B,C,h,w), any h and w.
            t: () or (B,), float in [0, 1].
            y: latents of the source (B,C,h,w).

        Raises:
            ParameterError: latents of other shapes.
        """
        if x.shape != y.shape or x.ndim != 4 or x.shape[1] != self.latent_channels:
            raise ParameterError(
                f"The latents {tuple(x.shape)} and the source's {tuple(y.shape)} must both be "
                f"(B, {self.latent_channels}, h, w)."
            )
        label = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        return self.body(torch.cat([x, y.to(x)], dim=1), t, label)
