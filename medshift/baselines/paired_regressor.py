r"""Paired regression: the ceiling among supervised methods that give one image for one image.

A U-Net of MedShift's kind, evaluated once at t = 1, is a residual regressor of the target's latent:

    out = decode(x + f(x)),   x = encode(image),   loss = E |x + f(x) - y|²  over pairs (x, y) of the same view.

The minimiser of the squared loss is the posterior mean E[y | x], and that of the absolute loss the median of each
component. No deterministic output is nearer to the truth in PSNR than the mean, and none is blurrier than it has to be:
it leaves out every detail and all noise that the source does not determine, so its images are not those of the target
domain. Pairs are what real data do not have: its row stands apart from the unpaired ones.

It has no published original of its own; the nearest is pix2pix without its discriminator.

References:
    Isola et al., Image-to-Image Translation with Conditional Adversarial Networks, 2017, arXiv:1611.07004 (the
    reconstruction loss on pairs, and what it does to detail).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW, Optimizer

from medshift.codec import KLCodec, PatchCodec
from medshift.errors import ParameterError
from medshift.network import NetworkConfig, VelocityNetwork
from medshift.pairwise import Pair, Recipe, encoded_halves, method_state, through_codec
from medshift.translate import Codec, Domain

__all__ = ["PairedRegressor", "PairedRegressorConfig", "PairedRegressorTraining"]

LOSSES = {"l1": F.l1_loss, "l2": F.mse_loss}


@dataclass(frozen=True, kw_only=True)
class PairedRegressorConfig:
    """Hyper-parameters of a `PairedRegressor`.

    Args:
        channels: width of each level of the U-Net; 0.9 M parameters with four latent channels.
        norm_groups: groups of its group normalisation.
        head_channels: channels of an attention head at its bottom.
        loss: on standardised latents: "l2" for the posterior mean, "l1" for the median.
        learning_rate: peak rate of AdamW.
        weight_decay: of AdamW.
    """

    channels: tuple[int, ...] = (16, 32, 48, 64)
    norm_groups: int = 8
    head_channels: int = 16
    loss: Literal["l1", "l2"] = "l2"
    learning_rate: float = 1e-3
    weight_decay: float = 1e-5

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))
        if self.loss not in LOSSES:
            raise ParameterError(f"The loss is {self.loss!r}, expected one of {', '.join(LOSSES)}.")


class PairedRegressor:
    """One evaluation of a network that was trained on pairs of the same view.

    Attributes:
        network: x -> out - x in latent space, at t = 1.
        codec: images to latents and back.
        pair: what it was trained for.
    """

    name = "paired regression"
    needs_pairs = True

    def __init__(self, network: VelocityNetwork, codec: Codec, pair: Pair) -> None:
        self.network, self.codec, self.pair = network, codec, pair

    def translate(self, images: Tensor, source: Domain, target: Domain, **knobs: Any) -> Tensor:
        """Images (B,1,H,W) of the source as the target would show them, cropped to their size and not clamped.

        Raises:
            ParameterError: another pair than in training.
        """
        self.pair.check(source, target)
        return through_codec(self.codec, images, lambda latents: regressed(self.network, latents))

    def nfe(self, **knobs: Any) -> int:
        """One network evaluation per image."""
        return 1


def regressed(network: VelocityNetwork, latents: Tensor) -> Tensor:
    """x + f(x) for latents x (B,C,h,w), in float32."""
    label = torch.zeros(len(latents), dtype=torch.int64, device=latents.device)
    return latents.float() + network(latents, torch.ones((), device=latents.device), label).float()


class PairedRegressorTraining:
    """Training of a `PairedRegressor`; see `medshift.pairwise.PairMethod`.

    Args:
        codec: frozen here.
        pair: source and target.
        config: hyper-parameters.
    """

    kind = "paired-regressor"
    name = PairedRegressor.name
    needs_pairs = True
    deviation = "No published original: a reconstruction loss alone, on the velocity network's U-Net and in latents."
    recipe = Recipe(batch=16)
    averaged: tuple[str, ...] = ("network",)
    kept: tuple[str, ...] = ("network",)

    def __init__(
        self,
        codec: PatchCodec | KLCodec,
        pair: Pair,
        config: PairedRegressorConfig = PairedRegressorConfig(),  # noqa: B008  frozen
    ) -> None:
        self.codec = codec.requires_grad_(False).eval()
        self.pair, self.config = pair, config
        shape = NetworkConfig(
            n_domains=1,
            in_channels=codec.channels,
            channels=config.channels,
            norm_groups=config.norm_groups,
            head_channels=config.head_channels,
        )
        self.network = VelocityNetwork(shape).to(codec.mean.device)
        self.optimizer = AdamW(
            self.network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )

    def modules(self) -> Mapping[str, nn.Module]:
        """The network and the frozen codec."""
        return {"network": self.network, "codec": self.codec}

    def optimizers(self) -> Mapping[str, Optimizer]:
        """One AdamW; it descends the loss of its name."""
        return {"network": self.optimizer}

    def step(self, batch: Sequence[Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """The regression's loss on images (2B,1,H,W): B of the source, then the same B views in the target.

        Returns:
            {"network": loss ()}, on standardised latents. Nothing here is random.
        """
        source, target = encoded_halves(self.codec, batch)
        return {"network": LOSSES[self.config.loss](regressed(self.network, source), target)}

    def state(self) -> dict[str, Any]:
        """JSON values that rebuild it and say how it was trained."""
        return method_state(self, self.codec, dataclasses.asdict(self.config))

    def translator(self) -> PairedRegressor:
        """The translator that the network, as it is now, makes."""
        return PairedRegressor(self.network, self.codec, self.pair)
