r"""CUT: contrastive unpaired translation by one generator and one discriminator, on latents.

With the losses of `medshift.adversarial`, for source latents x and target latents y,

    L_G = λ_GAN E (D(G(x)) - 1)² + λ_NCE ½ (L_NCE(x, G(x)) + L_NCE(y, G(y))),
    L_D = ½ (E (D(y) - 1)² + E D(G(x))²),

the features of L_NCE being those of G's encoding half, of its input and of its output. L_NCE(y, G(y)) is the identity
term; without it L_G = λ_GAN E (D(G(x)) - 1)² + λ_NCE L_NCE(x, G(x)). CUT has λ_NCE = 1 and the identity term, FastCUT
λ_NCE = 10 and none. Negatives are other places of the same image. There is no image pool, as published.

The published code steps the perceptrons of L_NCE with an optimiser of their own, on the gradient of L_G. Here they
stand in the generator's: Adam treats every weight by itself, so with the same rate that is the same step.

What deviates: it works on the codec's latents, with CycleGAN's generator of about one million weights (48 channels, 6
blocks, one downsampling, without the published blur before sampling) and a linear output, perceptrons of 128 channels
instead of 256, batches of four images of each domain instead of one, a patch discriminator with two layers of stride 2
instead of three, a learning rate that falls along a half cosine, and translation by the moving average of the weights.
All losses of a step come from the same weights, where the published code steps the discriminator first. FastCUT's
random flips are left out: they are no augmentation of views whose side is known.

References:
    Park et al., Contrastive Learning for Unpaired Image-to-Image Translation, 2020, arXiv:2007.15651.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from medshift.adversarial import PatchDiscriminator, PatchNCE, ResNetGenerator, lsgan_discriminator, lsgan_generator
from medshift.codec import KLCodec, PatchCodec
from medshift.errors import ParameterError
from medshift.pairwise import OneStep, Pair, Recipe, encoded_halves, method_state

__all__ = ["CUT", "FAST_CUT", "CUTConfig", "CUTTraining"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CUTConfig:
    """Sizes and weights of the losses.

    Args:
        width: channels of the generator after its first convolution.
        blocks: residual blocks of the generator.
        downs: convolutions of stride 2 of the generator.
        discriminator_width: channels of the discriminator after its first convolution.
        discriminator_layers: convolutions of stride 2 of the discriminator.
        lambda_gan: weight of the adversarial loss.
        lambda_nce: weight of the contrast.
        identity: whether the target's own images are contrasted too.
        patches: places drawn per layer.
        temperature: of the contrast.
        head_width: channels of the perceptrons.
        learning_rate: of Adam, for all networks.
        beta1: decay of Adam's mean gradient.
    """

    width: int = 48
    blocks: int = 6
    downs: int = 1
    discriminator_width: int = 64
    discriminator_layers: int = 2
    lambda_gan: float = 1.0
    lambda_nce: float = 1.0
    identity: bool = True
    patches: int = 256
    temperature: float = 0.07
    head_width: int = 128
    learning_rate: float = 2e-4
    beta1: float = 0.5

    def __post_init__(self) -> None:
        if min(self.lambda_gan, self.lambda_nce) < 0:
            raise ParameterError(
                f"lambda_gan and lambda_nce are {self.lambda_gan} and {self.lambda_nce}; expected at least 0."
            )


FAST_CUT = CUTConfig(lambda_nce=10.0, identity=False)


class CUT(OneStep):
    """Translation by one generator, from one domain to one other."""

    name = "CUT"


class CUTTraining:
    """CUT, or FastCUT with `FAST_CUT`, as a trainable method.

    Args:
        codec: images to latents; frozen here.
        pair: source and target.
        config: sizes and weights of the losses.
    """

    kind = "cut"
    name = CUT.name
    needs_pairs = False
    deviation = (
        "On latents, with CycleGAN's generator of 1 M weights and linear output, batches of 4 + 4, a patch "
        "discriminator of two strided layers that steps with the generator and not before it, a cosine schedule "
        "instead of constant and then linear decay, and a moving average of the weights."
    )
    recipe = Recipe(batch=8, schedule="cosine", warmup=0.0, clip_norm=float("inf"), ema_decay=0.999)
    averaged: tuple[str, ...] = ("generator",)
    kept: tuple[str, ...] = ("generator",)

    def __init__(self, codec: PatchCodec | KLCodec, pair: Pair, config: CUTConfig | None = None) -> None:
        self.config = c = config or CUTConfig()
        self.codec, self.pair = codec.requires_grad_(False).eval(), pair
        self.generator = ResNetGenerator(codec.channels, width=c.width, blocks=c.blocks, downs=c.downs)
        self.discriminator = PatchDiscriminator(
            codec.channels, width=c.discriminator_width, layers=c.discriminator_layers
        )
        self.contrast = PatchNCE(
            self.generator.feature_channels, patches=c.patches, temperature=c.temperature, width=c.head_width
        )
        made = [*self.generator.parameters(), *self.contrast.parameters()]
        self._optimizers = {
            name: Adam(parameters, lr=c.learning_rate, betas=(c.beta1, 0.999), fused=True)
            for name, parameters in (("generator", made), ("discriminator", [*self.discriminator.parameters()]))
        }

    def modules(self) -> Mapping[str, nn.Module]:
        """Generator, discriminator, the contrast's perceptrons and the frozen codec."""
        return {
            "generator": self.generator,
            "discriminator": self.discriminator,
            "contrast": self.contrast,
            "codec": self.codec,
        }

    def optimizers(self) -> Mapping[str, Optimizer]:
        """One Adam for generator and perceptrons, one for the discriminator."""
        return self._optimizers

    def step(self, batch: Sequence[Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Losses of a batch whose first entry is (2B,1,H,W), the source's images before the target's.

        Returns:
            "generator" and "discriminator", and the unweighted parts of the first: "adversarial", "contrast" and,
            with the identity term, "identity".
        """
        source, target = encoded_halves(self.codec, batch)
        real = torch.cat([source, target]) if self.config.identity else source
        layers = self.generator.feature_layers
        made, keys = self.generator.forward_features(real, layers)
        queries = self.generator.features(made, layers)
        fake, n = made[: len(source)], len(source)
        parts = {
            "adversarial": lsgan_generator(self.discriminator, fake),
            "contrast": self.contrast([q[:n] for q in queries], [k[:n] for k in keys], generator),
        }
        contrast = parts["contrast"]
        if self.config.identity:
            parts["identity"] = self.contrast([q[n:] for q in queries], [k[n:] for k in keys], generator)
            contrast = (contrast + parts["identity"]) / 2
        total = self.config.lambda_gan * parts["adversarial"] + self.config.lambda_nce * contrast
        judged = lsgan_discriminator(self.discriminator, target, fake)
        return {"generator": total, "discriminator": judged} | {name: part.detach() for name, part in parts.items()}

    def state(self) -> dict[str, Any]:
        """JSON values that rebuild the method."""
        return method_state(self, self.codec, dataclasses.asdict(self.config))

    def translator(self) -> CUT:
        """The translator with the generator as it is now."""
        return CUT(self.generator, self.codec, self.pair)
