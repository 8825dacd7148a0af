"""MedShift itself with the budget of the methods that are trained for one pair: two domains, one million weights.

One class-conditional velocity network is trained by flow matching on both halves of each batch, the source under
label 0 and the target under label 1, some of them under the null label (`medshift.flow.flow_matching_loss`).
Translation is that of `medshift.translate.MedShift`: back to tau under the source's label, forward under the target's.
It sees as many images, of as many domains, through as many weights, as the methods it stands beside.

Other than in the published method there are two domains instead of five, a network a few hundred times smaller, and a
solver on a refined grid unless Euler is asked for (`medshift.translate.AS_PUBLISHED`).

References:
    Lipman et al., Flow Matching for Generative Modeling, 2022, arXiv:2210.02747.
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

__all__ = ["SameBudget", "SameBudgetConfig", "SameBudgetTraining"]


class SameBudget:
    """A `MedShift` of two domains, for one pair and one direction as the methods it is compared with.

    Args:
        model: its label 0 is the source, its label 1 the target.
        pair: the two domains.

    Raises:
        ParameterError: a model of more or fewer than two domains.
    """

    name = "MedShift, same budget"
    needs_pairs = False

    def __init__(self, model: MedShift, pair: Pair) -> None:
        if model.n_domains != 2:
            raise ParameterError(f"The model knows {model.n_domains} domains; expected two, the source and the target.")
        self.model, self.pair = model, pair

    def translate(
        self,
        images: Tensor,
        source: Domain,
        target: Domain,
        *,
        tau: float,
        guidance: float | tuple[float, float] = 1.0,
        steps: int = DEFAULT_STEPS,
        solver: str = "heun",
        grid: str = "refined",
    ) -> Tensor:
        """Images (B,1,H,W) of `source` as `target` would show them; the knobs are those of `MedShift.translate`.

        Raises:
            ParameterError: another pair than the trained one, or a knob out of its range.
        """
        self.pair.check(source, target)
        return self.model.translate(images, 0, 1, tau=tau, guidance=guidance, steps=steps, solver=solver, grid=grid)

    def nfe(self, tau: float, **knobs: Any) -> int:
        """Network evaluations per image, of both legs; the knobs are those of `MedShift.nfe`."""
        return self.model.nfe(tau, **knobs)


@dataclass(frozen=True, kw_only=True)
class SameBudgetConfig:
    """What decides the network and its loss, as JSON values.

    Args:
        channels: widths of the levels, from fine to coarse; 1.0 M weights.
        norm_groups: groups of the group normalisation.
        head_channels: channels of an attention head.
        learning_rate: peak rate of AdamW.
        weight_decay: of AdamW.
        sigma_min: what is left of the noise at t = 1.
        label_dropout: probability that a sample is trained under the null label.
        time_law: law of the training times, see `medshift.flow.sample_time`.
        uniform_share: the uniform law's weight in a mixed one.
    """

    channels: tuple[int, ...] = (24, 32, 48, 64)
    norm_groups: int = 8
    head_channels: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 1e-5
    sigma_min: float = 0.0
    label_dropout: float = 0.1
    time_law: str = "logit-normal-mixed"
    uniform_share: float = 0.5


class SameBudgetTraining:
    """Flow matching of one network on both halves of the batch.

    Args:
        codec: images to latents; frozen here.
        pair: the two domains.
        config: see `SameBudgetConfig`.
    """

    kind = "medshift-same-budget"
    name = SameBudget.name
    needs_pairs = False
    deviation = "Two domains instead of five, and one million weights."
    recipe = Recipe(batch=16)
    averaged: tuple[str, ...] = ("network",)
    kept: tuple[str, ...] = ("network",)

    def __init__(
        self,
        codec: PatchCodec | KLCodec,
        pair: Pair,
        config: SameBudgetConfig = SameBudgetConfig(),  # noqa: B008
    ) -> None:
        self.codec = codec.requires_grad_(False).eval()
        self.pair, self.config = pair, config
        shape = NetworkConfig(
            n_domains=2,
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
        """One AdamW; it descends the loss of its name, "network"."""
        return {"network": self.optimizer}

    def step(self, batch: Sequence[Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """The flow-matching loss {"network": ()} of a batch of images (2B,1,H,W), the source's half first."""
        latents = torch.cat(encoded_halves(self.codec, batch))
        label = torch.arange(2, device=latents.device).repeat_interleave(len(latents) // 2)
        loss = flow_matching_loss(
            self.network,
            latents,
            label,
            generator,
            null_label=self.network.null_label,
            sigma_min=self.config.sigma_min,
            label_dropout=self.config.label_dropout,
            time_law=self.config.time_law,
            uniform_share=self.config.uniform_share,
        )
        return {"network": loss}

    def state(self) -> dict[str, Any]:
        """JSON values that rebuild the method; see `medshift.pairwise.method_state`."""
        return method_state(self, self.codec, dataclasses.asdict(self.config))

    def translator(self) -> SameBudget:
        """The translator of the network as it is now, evaluated as MedShift's own is (`medshift.fast`)."""
        model = MedShift(fast(self.network), self.codec, 2, (self.pair.source, self.pair.target))
        return SameBudget(model, self.pair)
