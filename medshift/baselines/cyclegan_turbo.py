r"""CycleGAN-Turbo-style translation with our own velocity network as the one-step generator.

CycleGAN-Turbo turns a pre-trained one-step diffusion model into both generators of a CycleGAN: the image takes the
place of the noise, the prompt says the direction, and only low-rank adapters and zero-initialised skips are trained.
Here the pre-trained model is the frozen velocity v of a `MedShift`, asked once, at a fixed time t, with the label of
the domain wanted:

    G_k(x) = x + (1 - t) v(x, t, k),

its estimate of clean data of domain k if x were the state at t. For both directions k, with the other domain j, an
image x of k and an image y of j, the loss of the generator is the mean over directions of

    L1(G_j(G_k(y)), y) + 10 d(G_j(G_k(y)), y)        cycle
    + L1(G_k(x), x) + d(G_k(x), x)                   identity
    + 0.5 mean (D_k(G_k(y)) - 1)²                    adversarial

and D_k learns to tell x from G_k(y). L1 and d are taken on images, weights as published.

What deviates from the published method:

* The backbone. SD-Turbo is a distilled one-step model of photographs, v a small field of radiographs that nobody has
  distilled: an untrained G_k gives a blurred posterior mean, and adapters and skips have to bring the structure back.
  Results say nothing about the SD-Turbo model; for that see `medshift.baselines.sd_turbo`.
* The skips join the blocks of the velocity's U-Net, where the published four join those of the autoencoder: our codec
  is a reshaping, or frozen, and has no adapters. Each direction has its own set, as published. They start at 0, not
  at 1e-5. conv_in has an adapter like the rest; trained whole, as published, it would change the base.
* d is Shift-Tolerant LPIPS on AlexNet for LPIPS on VGG, and D_k a least-squares PatchGAN at several resolutions for
  heads on frozen CLIP features.
* The three parts are descended together, not by an optimiser step each, and at a higher learning rate, since network
  and number of steps are small. A moving average of adapters and skips is kept.

References:
    Parmar et al., One-Step Image Translation with Text-to-Image Models, 2024, arXiv:2403.12036.
    Tsai et al., Shift-tolerant Perceptual Similarity Metric, 2022, arXiv:2207.13686.
    Wang et al., High-Resolution Image Synthesis and Semantic Manipulation with Conditional GANs, 2018,
    arXiv:1711.11585 (PatchGANs at several resolutions).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from medshift.adapters import AdaptedVelocity, base_identity, check_base, pair_labels
from medshift.adversarial import PatchDiscriminator, lsgan_discriminator, lsgan_generator
from medshift.codec import KLCodec, PatchCodec
from medshift.codec_training import MIN_SIDE, ShiftTolerantLPIPS
from medshift.errors import ParameterError
from medshift.network import VelocityNetwork
from medshift.pairwise import Pair, Recipe, encoded_halves, method_state, through_codec
from medshift.translate import Codec, Domain

__all__ = ["CycleGANTurbo", "CycleGANTurboConfig", "CycleGANTurboTraining", "check_base"]

FORWARD, BACKWARD = 0, 1
AnyCodec: TypeAlias = PatchCodec | KLCodec


@dataclass(frozen=True, kw_only=True)
class CycleGANTurboConfig:
    """Hyper-parameters; the weights of the losses are the published ones.

    Args:
        time: t of the one step, in [0, 1). The published one is all noise, our t = 0, where our field returns the
            mean image whatever x is.
        rank: of every adapter; 128 published for the U-Net of SD-Turbo.
        cycle, cycle_perceptual: weights of the cycle's L1 and of its perceptual distance.
        identity, identity_perceptual: weights of the identity's L1 and of its perceptual distance.
        adversarial: weight of the discriminators' judgement.
        levels: resolutions at which a discriminator looks, each half the one before.
        discriminator_width, discriminator_layers: of the PatchGAN at each level.
        learning_rate, discriminator_rate: peaks, of adapters and skips and of the discriminators; 1e-5 published.
        weight_decay: of both.
    """

    time: float = 0.5
    rank: int = 16
    cycle: float = 1.0
    cycle_perceptual: float = 10.0
    identity: float = 1.0
    identity_perceptual: float = 1.0
    adversarial: float = 0.5
    levels: int = 2
    discriminator_width: int = 32
    discriminator_layers: int = 2
    learning_rate: float = 1e-3
    discriminator_rate: float = 2e-4
    weight_decay: float = 1e-2

    def __post_init__(self) -> None:
        if self.levels < 1:
            raise ParameterError(f"levels is {self.levels}, expected at least 1.")
        if not 0 <= self.time < 1:
            raise ParameterError(f"time is {self.time}, expected a number in [0, 1): at 1 one step changes nothing.")
        weights = (self.cycle, self.cycle_perceptual, self.identity, self.identity_perceptual, self.adversarial)
        if min(*weights, self.weight_decay) < 0 or min(self.learning_rate, self.discriminator_rate) <= 0:
            raise ParameterError(f"Weights must be 0 or more and learning rates above 0, got {self}.")


class CycleGANTurbo:
    """One evaluation of an adapted velocity, at time t; all it is made of was trained for the pair."""

    name = "CycleGAN-Turbo-style (own backbone)"
    needs_pairs = False

    def __init__(self, velocity: AdaptedVelocity, codec: Codec, pair: Pair, time: float, label: int) -> None:
        self.velocity, self.codec, self.pair, self.time, self.label = velocity, codec, pair, time, label

    def translate(self, images: Tensor, source: Domain, target: Domain, *, skip: float = 1.0) -> Tensor:
        """Images (B,1,H,W) of the pair's source as its target would show them, not clamped.

        `skip` is the gain of the skips, gamma in the published decoder; 1 as trained.

        Raises:
            ParameterError: another pair than the trained one.
        """
        self.pair.check(source, target)
        def step(x: Tensor) -> Tensor:
            direction = torch.full((len(x),), FORWARD, device=x.device)
            return self.velocity.one_step(x, self.time, torch.full_like(direction, self.label), direction, skip)

        return through_codec(self.codec, images, step)

    def nfe(self, *, skip: float = 1.0) -> int:
        """Network evaluations per image: one."""
        return 1


class CycleGANTurboTraining:
    """`CycleGANTurbo` in training: a `PairMethod` on top of a trained velocity network.

    The base is no part of a checkpoint: `state` names it by the hash of its weights, `check_base` refuses another.

    Args:
        codec: images to latents; frozen here, and moved to the device of `base`.
        pair: the two domains, and all names in the order of the base's labels.
        config: hyper-parameters.
        base: the trained network of a `MedShift`, of all domains or of the pair alone; it is copied, not changed.

    Raises:
        ParameterError: base, codec and domains do not fit each other.
    """

    kind = "cyclegan-turbo-style"
    name = CycleGANTurbo.name
    needs_pairs = False
    deviation = (
        "The backbone is our own undistilled velocity network, asked once at a fixed time, not SD-Turbo; the skips "
        "join its U-Net's halves instead of an autoencoder's, Shift-Tolerant LPIPS stands for LPIPS-VGG and a "
        "least-squares multilevel PatchGAN for the CLIP discriminator."
    )
    recipe = Recipe(batch=16, clip_norm=10.0)
    averaged: tuple[str, ...] = ("adapters", "skips")
    kept: tuple[str, ...] = ("adapters", "skips")

    def __init__(self, codec: AnyCodec, pair: Pair, config: CycleGANTurboConfig, base: VelocityNetwork) -> None:
        self.labels = pair_labels(base, pair, codec.channels)
        self.device = next(base.parameters()).device
        self.codec = codec.to(self.device).requires_grad_(False).eval()
        self.pair, self.config = pair, config
        self.velocity = AdaptedVelocity(base, config.rank)
        widths = {"width": config.discriminator_width, "layers": config.discriminator_layers}
        sides = [[PatchDiscriminator(1, **widths) for _ in range(config.levels)] for _ in (pair.target, pair.source)]
        self.discriminators = [nn.ModuleList(levels).to(self.device) for levels in sides]
        self.perceptual = ShiftTolerantLPIPS().to(self.device).eval()
        trained = [*self.velocity.adapters.parameters(), *self.velocity.skips.parameters()]
        judging = [p for levels in self.discriminators for p in levels.parameters()]
        self._optimizers = {
            "generator": AdamW(trained, lr=config.learning_rate, weight_decay=config.weight_decay),
            "discriminator": AdamW(judging, lr=config.discriminator_rate, weight_decay=config.weight_decay),
        }
        self._base = base_identity(base)

    def modules(self) -> Mapping[str, nn.Module]:
        """What is trained, and the codec; neither the base nor the perceptual distance, which never change."""
        return {
            "adapters": self.velocity.adapters,
            "skips": self.velocity.skips,
            "discriminator-target": self.discriminators[FORWARD],
            "discriminator-source": self.discriminators[BACKWARD],
            "codec": self.codec,
        }

    def optimizers(self) -> Mapping[str, Optimizer]:
        """One AdamW for adapters and skips, one for both discriminators."""
        return dict(self._optimizers)

    def step(self, batch: Sequence[Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """The losses, and the parts of the generator's, of a batch (2n,1,H,W) of sides of at least 32 pixels.

        Nothing here is drawn at random.
        """
        if min(batch[0].shape[2:]) < MIN_SIDE:
            raise ParameterError(
                f"Images of {tuple(batch[0].shape[2:])} pixels are too small for the perceptual distance, which needs "
                f"sides of {MIN_SIDE}; train at a higher resolution."
            )
        a, b = encoded_halves(self.codec, [batch[0].to(self.device)])
        ways = torch.tensor([FORWARD, BACKWARD], device=self.device).repeat_interleave(len(a))
        # Forward for a and b, backward for b and a: first what is translated, then what is to stay as it is.
        moved, same = self._generate(torch.cat([a, b, b, a]), ways.repeat(2)).chunk(2)
        cycled = self._generate(moved, 1 - ways)
        latents = torch.cat([a, b, moved, same, cycled]).float()
        truth, moved, same, cycled = self.codec.decode(latents).float().split(2 * len(a))
        swapped, w = torch.cat([*reversed(truth.chunk(2))]), self.config
        parts = {
            "cycle": self._distance(cycled, truth, w.cycle, w.cycle_perceptual),
            "identity": self._distance(same, swapped, w.identity, w.identity_perceptual),
            "adversarial": self._judged(lsgan_generator, moved),
        }
        total = parts["cycle"] + parts["identity"] + w.adversarial * parts["adversarial"]
        judging = self._judged(lsgan_discriminator, swapped, moved.detach())
        return {"generator": total, "discriminator": judging} | {name: part.detach() for name, part in parts.items()}

    def _generate(self, x: Tensor, direction: Tensor) -> Tensor:
        labels = torch.tensor(self.labels[::-1], device=self.device)[direction]
        return self.velocity.one_step(x, self.config.time, labels, direction)

    def _distance(self, image: Tensor, truth: Tensor, absolute: float, perceptual: float) -> Tensor:
        return absolute * F.l1_loss(image, truth) + perceptual * self.perceptual(truth, image).float().mean()

    def _judged(self, loss: Any, *images: Tensor) -> Tensor:
        """The mean of a loss over directions and levels; images (2n,1,H,W) are those of the forward one first."""
        losses = []
        for direction, levels in enumerate(self.discriminators):
            seen = [image.chunk(2)[direction] for image in images]
            for discriminator in levels:
                losses.append(loss(discriminator, *seen))
                seen = [F.avg_pool2d(image, 2, ceil_mode=True) for image in seen]
        return torch.stack(losses).mean()

    def state(self) -> dict[str, Any]:
        """What rebuilds the method on its base, and which base that is."""
        return {**method_state(self, self.codec, dataclasses.asdict(self.config)), "base": self._base}

    def translator(self) -> CycleGANTurbo:
        """The translator of the adapters and skips, which it shares."""
        return CycleGANTurbo(self.velocity, self.codec, self.pair, self.config.time, self.labels[1])
