r"""CycleGAN: two generators that undo each other, each against a discriminator, on latents.

G goes from the source to the target, F back. With the least-squares losses of `medshift.adversarial`, for source
latents x and target latents y,

    L_G = E (D_B(G(x)) - 1)² + E (D_A(F(y)) - 1)²
          + λ (E|F(G(x)) - x| + E|G(F(y)) - y|) + λ λ_id (E|G(y) - y| + E|F(x) - x|),
    L_D = L_D(D_B; y, pool of G(x)) + L_D(D_A; x, pool of F(y)),

λ = 10, λ_id = ½, a pool of 50 images for each discriminator, and Adam with 2e-4 and (½, 0.999). As in the published
code, the discriminators learn from the images that the generators made before their step.

What deviates: it works on the codec's latents, with generators of about one million weights (48 channels, 6 blocks, one
downsampling) and a linear output, batches of four images of each domain instead of one, patch discriminators with two
layers of stride 2 instead of three, which sees 68 instead of 70 image pixels on a patch codec of 2, a learning rate
that falls along a half cosine instead of staying and then falling in a line, and translation by the moving average of
G's weights. Only G is kept: the method serves the one direction that it is compared in.

References:
    Zhu et al., Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial Networks, 2017, arXiv:1703.10593.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from medshift.adversarial import ImagePool, PatchDiscriminator, ResNetGenerator, lsgan_discriminator, lsgan_generator
from medshift.codec import KLCodec, PatchCodec
from medshift.errors import ParameterError
from medshift.pairwise import OneStep, Pair, Recipe, encoded_halves, method_state

__all__ = ["CycleGAN", "CycleGANConfig", "CycleGANTraining"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CycleGANConfig:
    """Sizes and weights of the losses.

    Args:
        width: channels of the generators after their first convolution.
        blocks: residual blocks of the generators.
        downs: convolutions of stride 2 of the generators.
        discriminator_width: channels of the discriminators after their first convolution.
        discriminator_layers: convolutions of stride 2 of the discriminators.
        lambda_cycle: weight of the way there and back; 0 for none.
        lambda_identity: weight of what leaves the own domain as it is, in units of `lambda_cycle`; 0 for none.
        pool: images of each pool; 0 for none.
        learning_rate: of Adam, for all networks.
        beta1: decay of Adam's mean gradient.
    """

    width: int = 48
    blocks: int = 6
    downs: int = 1
    discriminator_width: int = 64
    discriminator_layers: int = 2
    lambda_cycle: float = 10.0
    lambda_identity: float = 0.5
    pool: int = 50
    learning_rate: float = 2e-4
    beta1: float = 0.5

    def __post_init__(self) -> None:
        if min(self.lambda_cycle, self.lambda_identity) < 0:
            raise ParameterError(
                f"lambda_cycle and lambda_identity are {self.lambda_cycle} and {self.lambda_identity}; expected at "
                "least 0."
            )


class CycleGAN(OneStep):
    """Translation by one generator, from one domain to one other."""

    name = "CycleGAN"


class CycleGANTraining:
    """CycleGAN as a trainable method.

    Args:
        codec: images to latents; frozen here.
        pair: source and target.
        config: sizes and weights of the losses.
    """

    kind = "cyclegan"
    name = CycleGAN.name
    needs_pairs = False
    deviation = (
        "On latents, with generators of 1 M weights and linear output, batches of 4 + 4, patch discriminators of two "
        "strided layers, a cosine schedule instead of constant and then linear decay, and a moving average of the "
        "weights."
    )
    recipe = Recipe(batch=8, schedule="cosine", warmup=0.0, clip_norm=float("inf"), ema_decay=0.999)
    averaged: tuple[str, ...] = ("forward", "backward")
    kept: tuple[str, ...] = ("forward",)

    def __init__(self, codec: PatchCodec | KLCodec, pair: Pair, config: CycleGANConfig | None = None) -> None:
        self.config = c = config or CycleGANConfig()
        self.codec, self.pair = codec.requires_grad_(False).eval(), pair
        self.forward, self.backward = (
            ResNetGenerator(codec.channels, width=c.width, blocks=c.blocks, downs=c.downs) for _ in range(2)
        )
        self.of_target, self.of_source = (
            PatchDiscriminator(codec.channels, width=c.discriminator_width, layers=c.discriminator_layers)
            for _ in range(2)
        )
        self.target_pool, self.source_pool = ImagePool(c.pool), ImagePool(c.pool)
        made = [*self.forward.parameters(), *self.backward.parameters()]
        judged = [*self.of_target.parameters(), *self.of_source.parameters()]
        self._optimizers = {
            name: Adam(parameters, lr=c.learning_rate, betas=(c.beta1, 0.999), fused=True)
            for name, parameters in (("generator", made), ("discriminator", judged))
        }

    def modules(self) -> Mapping[str, nn.Module]:
        """The four networks, the two image pools and the frozen codec."""
        return {
            "forward": self.forward,
            "backward": self.backward,
            "target-discriminator": self.of_target,
            "source-discriminator": self.of_source,
            "target-pool": self.target_pool,
            "source-pool": self.source_pool,
            "codec": self.codec,
        }

    def optimizers(self) -> Mapping[str, Optimizer]:
        """One Adam for both generators, one for both discriminators."""
        return self._optimizers

    def step(self, batch: Sequence[Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Losses of a batch whose first entry is (2B,1,H,W), the source's images before the target's.

        Returns:
            "generator" and "discriminator", and what they are made of: for the way forward (G against the target's
            discriminator) and backward "adversarial-…" and "discriminator-…", and the unweighted "cycle" and
            "identity", which is left out where its weight is 0.
        """
        source, target = encoded_halves(self.codec, batch)
        # One pass of each generator makes the other domain and, for the identity, sees its own.
        weight = self.config.lambda_cycle * self.config.lambda_identity
        fake_target, same_target = _both(self.forward, source, target if weight else None)
        fake_source, same_source = _both(self.backward, target, source if weight else None)
        parts = {
            "adversarial-forward": lsgan_generator(self.of_target, fake_target),
            "adversarial-backward": lsgan_generator(self.of_source, fake_source),
            "cycle": _l1(self.backward(fake_target), source) + _l1(self.forward(fake_source), target),
        }
        total = parts["adversarial-forward"] + parts["adversarial-backward"] + self.config.lambda_cycle * parts["cycle"]
        if same_target is not None and same_source is not None:
            parts["identity"] = _l1(same_target, target) + _l1(same_source, source)
            total = total + weight * parts["identity"]
        shown_target = self.target_pool.query(fake_target, generator)
        shown_source = self.source_pool.query(fake_source, generator)
        parts["discriminator-forward"] = lsgan_discriminator(self.of_target, target, shown_target)
        parts["discriminator-backward"] = lsgan_discriminator(self.of_source, source, shown_source)
        judged = parts["discriminator-forward"] + parts["discriminator-backward"]
        return {"generator": total, "discriminator": judged} | {name: part.detach() for name, part in parts.items()}

    def state(self) -> dict[str, Any]:
        """JSON values that rebuild the method."""
        return method_state(self, self.codec, dataclasses.asdict(self.config))

    def translator(self) -> CycleGAN:
        """The translator with the forward generator as it is now."""
        return CycleGAN(self.forward, self.codec, self.pair)


def _both(network: nn.Module, other: Tensor, own: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The network's outputs for two batches of one size, in one pass; its norms keep images apart."""
    if own is None:
        return network(other), None
    first, second = network(torch.cat([other, own])).chunk(2)
    return first, second


def _l1(made: Tensor, wanted: Tensor) -> Tensor:
    return (made.float() - wanted).abs().mean()
