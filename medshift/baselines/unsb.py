r"""UNSB: unpaired translation by an adversarial Schrödinger bridge of a few steps, on latents.

A chain of Brownian bridges leads from the source X_0 towards the target in T steps, at the times and by the steps of
`medshift.bridge_chain`. A generator G predicts its end x̂_1 = G(X_t, t, z) from every state, z being a code of noise.
The translation after n steps is the n-th prediction, so n is the number of evaluations, 1 to T. A training step draws
one t for its batch, walks there without gradient, and descends

    L_G = λ_GAN E (D(x̂_1, t) - 1)² + λ_SB L_SB + λ_NCE ½ (L_NCE(X_0, x̂_1) + L_NCE(y, ŷ_1)),

with y of the target, ŷ_1 the prediction at the end of its own walk, and the parts of `medshift.adversarial`. L_SB asks
for the entropic optimal transport from X_t to the target, energy minus entropy,

    as released:  τ (E ‖X_t - x̂_1‖² - (1 - k/T) H),  k the index of t,
    in the paper:    E ‖X_t - x̂_1‖² - 2 τ (1-t) H,

where E ‖·‖² is the mean over components and H estimates the entropy of u = (X_t, x̂_1) as the mutual information of u
with itself, by a critic C (Donsker and Varadhan) that descends L_C,

    H = E C(u, u) - M,    M = log E exp C(u, u'),    L_C = -E C(u, u) + M + M²,

u' being independent of u. The two forms differ a hundredfold in the energy's weight; the default is the
released one, with which the energy does not outweigh the adversary.

What deviates from the released code: latents, with a generator of 1 M weights and linear output; batches of four
images of each domain instead of one, and u' from another source of the batch instead of a second batch; M as a mean
and not a sum, which moves C by a constant; λ_SB multiplies L_SB, which there it only switches on; step t enters D and
C as planes beside the latents, and G with the code, in the modulation of every residual block (read as it stands, the
released block drops its time embedding); all losses of a step come from the same weights; a cosine schedule;
translation by the moving average. It is adversarial: nothing but the losses makes its chain a Schrödinger bridge.

References:
    Kim et al., Unpaired Image-to-Image Translation via Neural Schrödinger Bridge, 2024, arXiv:2305.15086.
    Belghazi et al., MINE: Mutual Information Neural Estimation, 2018, arXiv:1801.04062.
    Park et al., Contrastive Learning for Unpaired Image-to-Image Translation, 2020, arXiv:2007.15651.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from medshift.adversarial import PatchDiscriminator, PatchNCE, lsgan_discriminator, lsgan_generator
from medshift.bridge_chain import StepGenerator, at_step, code_of, harmonic_times, walk
from medshift.errors import ParameterError
from medshift.pairwise import Pair, Recipe, encoded_halves, method_state, through_codec
from medshift.translate import Codec, Domain

__all__ = ["UNSB", "UNSBConfig", "UNSBTraining"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNSBConfig:
    """Sizes and weights of the losses.

    Args:
        steps: T.
        tau: τ, variance of the bridge's noise and weight of the entropy.
        energy: form of L_SB, "released" or "paper".
        width: channels of the generator after its first convolution.
        blocks: residual blocks of the generator.
        downs: convolutions of stride 2 of the generator.
        code: length of z, and of the vector that modulates the blocks.
        discriminator_width: channels of discriminator and critic after their first convolution.
        discriminator_layers: convolutions of stride 2 of both.
        lambda_gan: weight of the adversarial loss.
        lambda_sb: weight of energy and entropy.
        lambda_nce: weight of the contrast.
        learning_rate: of Adam, for all networks.
        beta1: decay of Adam's mean gradient.
    """

    steps: int = 5
    tau: float = 0.01
    energy: Literal["released", "paper"] = "released"
    width: int = 48
    blocks: int = 5
    downs: int = 1
    code: int = 64
    discriminator_width: int = 64
    discriminator_layers: int = 2
    lambda_gan: float = 1.0
    lambda_sb: float = 1.0
    lambda_nce: float = 1.0
    learning_rate: float = 2e-4
    beta1: float = 0.5

    def __post_init__(self) -> None:
        weights = (self.tau, self.lambda_gan, self.lambda_sb, self.lambda_nce)
        if self.energy not in ("released", "paper") or min(weights) < 0 or min(self.steps, self.blocks, self.code) < 1:
            raise ParameterError(
                "Expected energy 'released' or 'paper', tau and the weights of losses at or above 0, and at least one "
                f"of steps, blocks and code; got {self}."
            )


class UNSB:
    """Translation by the chain of one generator, trained for one pair with a certain tau."""

    name = "UNSB"
    needs_pairs = False

    def __init__(self, generator: StepGenerator, codec: Codec, pair: Pair, tau: float) -> None:
        self.generator, self.codec, self.pair, self.tau = generator, codec, pair, tau

    def nfe(self, *, steps: int = 5) -> int:
        """Network evaluations per image: `steps`, which is one of 1 ... T or refused."""
        if steps not in range(1, self.generator.steps + 1):
            raise ParameterError(f"steps is {steps!r}, expected a whole number from 1 to {self.generator.steps}.")
        return steps

    def draws(self, *, steps: int = 5) -> int:
        """Draws of noise per image, 2 `steps` - 1: one for each code and one between two steps."""
        return 2 * self.nfe(steps=steps) - 1

    @torch.no_grad()
    def translate(self, images: Tensor, source: Domain, target: Domain, *, noise: Tensor, steps: int = 5) -> Tensor:
        """Images (B,1,H,W) of `source` as `target` would show them, same shape, not clamped.

        Args:
            images: (B,1,H,W), about [-1, 1].
            source: the domain that the generator was trained from.
            target: the one that it was trained to.
            noise: standard normal (B, S, C, h, w), shaped like the latents, S = `draws`. Nothing else is random.
            steps: of the chain, 1 to T.

        Raises:
            ParameterError: another pair, other steps, or noise of another shape.
        """
        self.pair.check(source, target)
        draws = self.draws(steps=steps)

        def change(latents: Tensor) -> Tensor:
            expected = (len(latents), draws, *latents.shape[1:])
            if noise.shape != expected:
                raise ParameterError(f"The noise is {tuple(noise.shape)}, expected {expected}.")
            x = walk(self.generator, latents, steps - 1, noise.to(latents), self.tau)
            return self.generator(x, steps - 1, code_of(noise[:, -1].to(latents), self.generator.code))

        return through_codec(self.codec, images, change)


class UNSBTraining:
    """UNSB as a trainable method; the codec is frozen here."""

    kind = "unsb"
    name = UNSB.name
    needs_pairs = False
    deviation = (
        "On latents, with a generator of 1 M weights whose blocks step and code modulate, linear output, batches of "
        "4 + 4 with the critic's independent pairs from the same batch, a cosine schedule and a moving average."
    )
    recipe = Recipe(batch=8, schedule="cosine", warmup=0.0, clip_norm=float("inf"), ema_decay=0.999)
    averaged: tuple[str, ...] = ("generator",)
    kept: tuple[str, ...] = ("generator",)

    def __init__(self, codec: Any, pair: Pair, config: UNSBConfig = UNSBConfig()) -> None:  # noqa: B008
        self.codec, self.pair, self.config = codec.requires_grad_(False).eval(), pair, config
        shape = {name: getattr(config, name) for name in ("steps", "width", "blocks", "downs", "code")}
        self.generator = StepGenerator(codec.channels, **shape)
        patch = {"width": config.discriminator_width, "layers": config.discriminator_layers}
        self.discriminator = PatchDiscriminator(codec.channels + config.steps, **patch)
        self.critic = PatchDiscriminator(4 * codec.channels + config.steps, **patch)
        self.contrast = PatchNCE(self.generator.feature_channels)
        made = [*self.generator.parameters(), *self.contrast.parameters()]
        judges = {"discriminator": self.discriminator.parameters(), "critic": self.critic.parameters()}
        self._optimizers = {
            name: Adam(parameters, lr=config.learning_rate, betas=(config.beta1, 0.999), fused=True)
            for name, parameters in {"generator": made, **judges}.items()
        }

    def modules(self) -> Mapping[str, nn.Module]:
        """Generator, discriminator, critic, the contrast's perceptrons and the frozen codec."""
        names = ("generator", "discriminator", "critic", "contrast", "codec")
        return {name: getattr(self, name) for name in names}

    def optimizers(self) -> Mapping[str, Optimizer]:
        """One Adam for generator and perceptrons, one for the discriminator, one for the critic."""
        return self._optimizers

    def step(self, batch: Sequence[Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Losses of a batch of images (2B,1,H,W), the source's half first, B at least 2.

        Returns:
            "generator", "discriminator" and "critic", and the unweighted parts of the first: "adversarial",
            "contrast", and "bridge" of "energy" and "entropy".

        Raises:
            ParameterError: one image of each domain only: none is left for the critic's independent pairs.
        """
        source, target = encoded_halves(self.codec, batch)
        n, c = len(source), self.config
        if n < 2:
            raise ParameterError(
                "UNSB needs two or more images of each domain in a batch; choose a batch of 4 or more."
            )
        k = int(torch.randint(c.steps, (), generator=generator, device=generator.device))
        shift = int(torch.randint(1, n, (), generator=generator, device=generator.device))
        starts = torch.cat([source, target])
        with torch.no_grad():
            noise = _normal((2 * n, 2 * k, *starts.shape[1:]), starts, generator)
            states = walk(self.generator, starts, k, noise, c.tau)
        ends = self.generator(states, k, _normal((2 * n, c.code), starts, generator)).float()
        fake, couple = ends[:n], torch.cat([states[:n], ends[:n]], dim=1)
        joint, apart = self._critic(couple, shift, k)
        parts = {
            "adversarial": lsgan_generator(self.discriminator, at_step(fake, k, c.steps)),
            "contrast": self._contrast(starts, ends, generator),
            "energy": (states[:n] - fake).square().mean(),
            "entropy": joint - apart,
        }
        parts["bridge"] = self.bridge(parts["energy"], parts["entropy"], k)
        weights = {"adversarial": c.lambda_gan, "bridge": c.lambda_sb, "contrast": c.lambda_nce}
        joint, apart = self._critic(couple.detach(), shift, k)
        return {
            "generator": torch.stack([weight * parts[name] for name, weight in weights.items()]).sum(),
            "discriminator": lsgan_discriminator(
                self.discriminator, at_step(target, k, c.steps), at_step(fake, k, c.steps)
            ),
            "critic": apart + apart.square() - joint,
            **{name: part.detach() for name, part in parts.items()},
        }

    def _contrast(self, starts: Tensor, ends: Tensor, generator: torch.Generator) -> Tensor:
        """½ (L_NCE of the sources + L_NCE of the targets), which are half of the images each, at step 0."""
        code = _normal((len(starts), self.config.code), starts, generator)
        with torch.no_grad():
            keys = self.generator.features(starts, 0, code)
        return self.contrast(self.generator.features(ends, 0, code), keys, generator)

    def bridge(self, energy: Tensor, entropy: Tensor, step: int) -> Tensor:
        """L_SB () of a batch's energy and entropy at a step."""
        c = self.config
        if c.energy == "released":
            return c.tau * (energy - (1 - step / c.steps) * entropy)
        return energy - 2 * c.tau * (1 - harmonic_times(c.steps)[step]) * entropy

    def _critic(self, couple: Tensor, shift: int, step: int) -> tuple[Tensor, Tensor]:
        """E C(u, u) and log E exp C(u, u'), u' being u shifted within the batch; both ()."""
        joint, apart = (
            self.critic(at_step(torch.cat([couple, other], dim=1), step, self.config.steps)).float()
            for other in (couple, couple.roll(shift, 0))
        )
        return joint.mean(), apart.logsumexp((0, 1, 2, 3)) - math.log(apart.numel())

    def state(self) -> dict[str, Any]:
        """JSON values that rebuild the method."""
        return method_state(self, self.codec, dataclasses.asdict(self.config))

    def translator(self) -> UNSB:
        """The translator with the generator as it is now."""
        return UNSB(self.generator, self.codec, self.pair, self.config.tau)


def _normal(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device).to(like)
