r"""DDIB as it was published: two networks, each trained on one domain alone, that meet only in noise.

The source's network runs an image back from t = 1 to tau, the target's runs the result forward again,

    z_tau = x - ∫ v_A(x_t, t) dt over [tau, 1],    out = z_tau + ∫ v_B(x_t, t) dt over [tau, 1],

with tau = 0 by default: all the way to noise, the dual bridge. Neither network ever sees the other's domain; what
they share is the Gaussian at t = 0, and the codec.

What differs from the published method: flow matching on the linear path instead of a diffusion model of 1000 steps,
a solver of few steps instead of DDIM, and networks of one million weights each. With the ODE of a diffusion model
both are the same up to a change of time.

References:
    Su et al., Dual Diffusion Implicit Bridges for Image-to-Image Translation, 2022, arXiv:2203.08382.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from medshift.codec import KLCodec, PatchCodec
from medshift.errors import ParameterError
from medshift.fast import fast
from medshift.flow import flow_matching_loss
from medshift.network import NetworkConfig, VelocityNetwork
from medshift.ode import DEFAULT_STEPS
from medshift.pairwise import Pair, Recipe, encoded_halves, method_state
from medshift.translate import Domain, MedShift

__all__ = ["TwoNetworks", "TwoNetworksConfig", "TwoNetworksTraining"]

HALVES = ("source", "target")


class TwoNetworks:
    """Encode with the network of the source, decode with that of the target.

    Args:
        source_model: of one domain, the source, whose label is 0.
        target_model: likewise of the target, with the same codec.
        pair: the two domains.

    Raises:
        ParameterError: a model of several domains, or two codecs.
    """

    name = "DDIB, two networks"
    needs_pairs = False

    def __init__(self, source_model: MedShift, target_model: MedShift, pair: Pair) -> None:
        counts = (source_model.n_domains, target_model.n_domains)
        if counts != (1, 1):
            raise ParameterError(
                f"The two models know {counts[0]} and {counts[1]} domains; expected one each. A network of several "
                "domains needs no second one: use MedShift at tau = 0."
            )
        if source_model.codec is not target_model.codec:
            raise ParameterError(
                "The two models have a codec each, so their noises do not compare; give both the same."
            )
        self.source_model, self.target_model, self.pair = source_model, target_model, pair

    def translate(
        self,
        images: Tensor,
        source: Domain,
        target: Domain,
        *,
        tau: float = 0.0,
        steps: int = DEFAULT_STEPS,
        solver: str = "heun",
        grid: str = "refined",
    ) -> Tensor:
        """Images (B,1,H,W) of `source` as `target` would show them, same shape, not clamped.

        Args:
            images: (B,1,H,W), about [-1, 1].
            source: the domain trained from; label or name.
            target: the domain trained to, likewise.
            tau: where one network hands over to the other, in [0, 1].
            steps: see `MedShift`, as for `solver` and `grid`.

        Raises:
            ParameterError: another pair than the trained one, or a knob out of its range.
        """
        self.pair.check(source, target)
        z_tau = self.source_model.encode(images, 0, tau, steps=steps, solver=solver, grid=grid)
        size = (images.shape[-2], images.shape[-1])
        return self.target_model.decode(z_tau, 0, tau, size=size, steps=steps, solver=solver, grid=grid)

    def nfe(self, tau: float = 0.0, *, steps: int = DEFAULT_STEPS, solver: str = "heun", grid: str = "refined") -> int:
        """Network evaluations per image, of both networks together."""
        return self.source_model.nfe(tau, steps=steps, solver=solver, grid=grid)


@dataclass(frozen=True, kw_only=True)
class TwoNetworksConfig:
    """What decides the two networks and their losses, as JSON values.

    Args:
        channels: widths of each network's levels, from fine to coarse; 1.0 M weights each.
        norm_groups: groups of the group normalisation.
        head_channels: channels of an attention head.
        learning_rate: peak rate of both AdamW.
        weight_decay: of both AdamW.
        sigma_min: what is left of the noise at t = 1.
        time_law: law of the training times, see `medshift.flow.sample_time`.
        uniform_share: the uniform law's weight in a mixed one.
    """

    channels: tuple[int, ...] = (24, 32, 48, 64)
    norm_groups: int = 8
    head_channels: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 1e-5
    sigma_min: float = 0.0
    time_law: str = "logit-normal-mixed"
    uniform_share: float = 0.5


class TwoNetworksTraining:
    """Flow matching of two networks, each on its own half of the batch, with its own optimiser.

    Args:
        codec: images to latents; frozen here.
        pair: the two domains.
        config: see `TwoNetworksConfig`.
    """

    kind = "two-networks"
    name = TwoNetworks.name
    needs_pairs = False
    deviation = (
        "Flow matching on the linear path and an ODE solver of few steps instead of 1000-step diffusion models with "
        "DDIM; two networks of one million weights."
    )
    recipe = Recipe(batch=16)
    averaged: tuple[str, ...] = HALVES
    kept: tuple[str, ...] = HALVES

    def __init__(
        self,
        codec: PatchCodec | KLCodec,
        pair: Pair,
        config: TwoNetworksConfig = TwoNetworksConfig(),  # noqa: B008
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
        self.networks = {half: VelocityNetwork(shape).to(codec.mean.device) for half in HALVES}
        self._optimizers = {
            half: AdamW(network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)
            for half, network in self.networks.items()
        }

    def modules(self) -> Mapping[str, nn.Module]:
        """The networks "source" and "target", and the frozen codec."""
        return {**self.networks, "codec": self.codec}

    def optimizers(self) -> Mapping[str, Optimizer]:
        """One AdamW for each network."""
        return self._optimizers

    def step(self, batch: Sequence[Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """The flow-matching losses of both halves of a batch of images (2B,1,H,W).

        Returns:
            {"source": (), "target": ()}, each of its own network on its own half.
        """
        losses = {}
        for half, latents in zip(HALVES, encoded_halves(self.codec, batch), strict=True):
            losses[half] = flow_matching_loss(
                self.networks[half],
                latents,
                torch.zeros(len(latents), dtype=torch.int64, device=latents.device),
                generator,
                null_label=1,
                sigma_min=self.config.sigma_min,
                label_dropout=0.0,  # with one domain there is nothing that a label could be told apart from
                time_law=self.config.time_law,
                uniform_share=self.config.uniform_share,
            )
        return losses

    def state(self) -> dict[str, Any]:
        """JSON values that rebuild the method; see `medshift.pairwise.method_state`."""
        return method_state(self, self.codec, dataclasses.asdict(self.config))

    def translator(self) -> TwoNetworks:
        """The translator of the two networks as they are now, evaluated as MedShift's own is (`medshift.fast`)."""
        models = [MedShift(fast(self.networks[half]), self.codec, 1) for half in HALVES]
        return TwoNetworks(models[0], models[1], self.pair)
