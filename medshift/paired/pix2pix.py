r"""Pix2Pix: a U-Net on pairs against a patch discriminator that sees the source too, on latents.

For a pair (y, x0) of source and target latents and the generator's output G(y), with σ the logistic function and D's
logits over patches,

    L_D = ½ (E -log σ(D(y, x0)) + E -log(1 - σ(D(y, G(y))))),    L_G = E -log σ(D(y, G(y))) + λ E|G(y) - x0|,

λ = 100, Adam with 2e-4 and (½, 0.999). Where D cannot tell, L_D and the first term of L_G are log 2. Only the absolute
loss compares a made image with its truth, and alone it ends at the median, without noise: without the first term there
is no pix2pix. The only noise is dropout of one half in the three innermost levels of the decoder; it stays on in
translation. Which features a translation drops is decided by its `seed` and by the image itself, so images drop
independently, whatever stands beside them in a batch, and the same image with the same seed gives the same.

What deviates: it works on the codec's latents, so λ counts in standard deviations of them. The generator is the U-Net
of the velocity networks, of 1.0 M parameters and evaluated once at t = 1, as G(y) = y + f(y) with f = 0 at first: it
has group normalisation instead of that of batches, two dropouts a level, and no tanh. The discriminator has instance
normalisation and two layers of stride 2 instead of three, which sees 68 instead of 70 image pixels on a patch codec of
2. Batches are of four pairs, both losses of a step come from the same weights where the published code steps the
discriminator first, the learning rate falls along a half cosine instead of staying and then falling in a line, and the
moving average of the weights translates.

References:
    Isola et al., Image-to-Image Translation with Conditional Adversarial Networks, 2017, arXiv:1611.07004.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam, Optimizer

from medshift.adversarial import PatchDiscriminator
from medshift.codec import KLCodec, PatchCodec
from medshift.errors import ParameterError
from medshift.network import NetworkConfig, VelocityNetwork
from medshift.pairwise import Pair, Recipe, encoded_halves, method_state, through_codec
from medshift.translate import Codec, Domain

__all__ = ["Pix2Pix", "Pix2PixConfig", "Pix2PixTraining", "cross_entropy", "dropping", "generated"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pix2PixConfig:
    """Sizes and weights of the losses.

    Args:
        channels: width of each level of the generator; 1.0 M parameters with four latent channels.
        norm_groups: groups of its group normalisation.
        head_channels: channels of an attention head at its bottom.
        dropout: probability in the residual blocks of the innermost levels of its decoder, in [0, 1).
        dropout_levels: how many levels these are.
        discriminator_width: channels of the discriminator after its first convolution.
        discriminator_layers: convolutions of stride 2 of the discriminator.
        lambda_gan: weight of the adversarial term, above 0.
        lambda_l1: weight of the absolute error, at least 0.
        learning_rate: of Adam, for both networks.
        beta1: decay of Adam's mean gradient.
    """

    channels: tuple[int, ...] = (24, 32, 48, 64)
    norm_groups: int = 8
    head_channels: int = 16
    dropout: float = 0.5
    dropout_levels: int = 3
    discriminator_width: int = 64
    discriminator_layers: int = 2
    lambda_gan: float = 1.0
    lambda_l1: float = 100.0
    learning_rate: float = 2e-4
    beta1: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))
        if not (self.lambda_gan > 0 and self.lambda_l1 >= 0 and self.dropout_levels >= 0):
            raise ParameterError(
                f"lambda_gan, lambda_l1 and dropout_levels are {self.lambda_gan}, {self.lambda_l1} and "
                f"{self.dropout_levels}; expected above 0, at least 0 and at least 0. Without its adversarial term "
                "pix2pix is a regression on pairs: take that."
            )


class Pix2Pix:
    """Translation by one evaluation of a generator that was trained on pairs; its dropout stays on.

    Args:
        generator: f of G(y) = y + f(y), see `generated`.
        codec: images to latents and back.
        pair: what the generator was trained for.
    """

    name = "Pix2Pix"
    needs_pairs = True

    def __init__(self, generator: VelocityNetwork, codec: Codec, pair: Pair) -> None:
        self.generator, self.codec, self.pair = generator, codec, pair

    def nfe(self, *, seed: int = 0, dropout: bool = True) -> int:
        """Network evaluations per image: 1."""
        return 1

    def translate(
        self, images: Tensor, source: Domain, target: Domain, *, seed: int = 0, dropout: bool = True
    ) -> Tensor:
        """Images (B,1,H,W) of `source` as `target` would show them, same shape, not clamped.

        Args:
            images: (B,1,H,W), about [-1, 1].
            source: the domain that it was trained from, by name or label.
            target: the one that it was trained to.
            seed: of what is dropped, together with each image; torch's global random state is left alone.
            dropout: as published; without it the translation is deterministic.

        Raises:
            ParameterError: another pair than in training, or a seed that is no whole number.
        """
        self.pair.check(source, target)
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise ParameterError(f"seed is {seed!r}, expected a whole number.")
        with dropping(self.generator, [_generator_of(image, seed) for image in images] if dropout else None):
            return through_codec(self.codec, images, lambda latents: generated(self.generator, latents))


class Pix2PixTraining:
    """Training of a `Pix2Pix`, see `medshift.pairwise.PairMethod`; the codec is frozen here."""

    kind = "pix2pix"
    name = Pix2Pix.name
    needs_pairs = True
    deviation = (
        "On latents, with the velocity network's U-Net of 1 M weights as y + f(y) without tanh, group and instance "
        "instead of batch normalisation, a patch discriminator of two strided layers that steps with the generator and "
        "not before it, batches of 4 pairs, a cosine schedule instead of constant and then linear decay, and a moving "
        "average of the weights."
    )
    recipe = Recipe(batch=8, schedule="cosine", warmup=0.0, clip_norm=float("inf"), ema_decay=0.999)
    averaged: tuple[str, ...] = ("generator",)
    kept: tuple[str, ...] = ("generator",)

    def __init__(self, codec: PatchCodec | KLCodec, pair: Pair, config: Pix2PixConfig | None = None) -> None:
        self.config = c = config or Pix2PixConfig()
        self.codec, self.pair = codec.requires_grad_(False).eval(), pair
        self.generator = _u_net(codec.channels, c)
        width, layers = c.discriminator_width, c.discriminator_layers
        self.discriminator = PatchDiscriminator(2 * codec.channels, width=width, layers=layers)
        self._optimizers = {
            name: Adam(network.parameters(), lr=c.learning_rate, betas=(c.beta1, 0.999), fused=True)
            for name, network in (("generator", self.generator), ("discriminator", self.discriminator))
        }

    def modules(self) -> Mapping[str, nn.Module]:
        """Generator, discriminator and the frozen codec."""
        return {"generator": self.generator, "discriminator": self.discriminator, "codec": self.codec}

    def optimizers(self) -> Mapping[str, Optimizer]:
        """One Adam each; each descends the loss of its name."""
        return self._optimizers

    def step(self, batch: Sequence[Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Losses of images (2B,1,H,W): B of the source, then the same B views in the target.

        The only random numbers are those of the generator's dropout, from torch's global state.

        Returns:
            "generator" and "discriminator", and the unweighted parts of the first: "adversarial" and "l1". No
            gradient of the first reaches the discriminator, none of the second the generator.
        """
        source, target = encoded_halves(self.codec, batch)
        fake = generated(self.generator, source)
        frozen = {name: weight.detach() for name, weight in self.discriminator.named_parameters()}
        deceived = torch.func.functional_call(self.discriminator, frozen, (torch.cat([source, fake], 1),))
        adversarial, l1 = cross_entropy(deceived, 1.0), (fake - target.float()).abs().mean()
        real, made = (self.discriminator(torch.cat([source, shown], 1)) for shown in (target, fake.detach()))
        total = self.config.lambda_gan * adversarial + self.config.lambda_l1 * l1
        judged = 0.5 * (cross_entropy(real, 1.0) + cross_entropy(made, 0.0))
        return {"generator": total, "discriminator": judged, "adversarial": adversarial.detach(), "l1": l1.detach()}

    def state(self) -> dict[str, Any]:
        """JSON values that rebuild the method."""
        return method_state(self, self.codec, dataclasses.asdict(self.config))

    def translator(self) -> Pix2Pix:
        """The translator with the generator as it is now."""
        return Pix2Pix(self.generator, self.codec, self.pair)


def generated(network: VelocityNetwork, latents: Tensor) -> Tensor:
    """G(y) = y + f(y) for latents y (B,C,h,w), f at t = 1, in float32."""
    label = torch.zeros(len(latents), dtype=torch.int64, device=latents.device)
    return latents.float() + network(latents, torch.ones((), device=latents.device), label).float()


def cross_entropy(logits: Tensor, label: float) -> Tensor:
    """Mean of -label log σ(logits) - (1 - label) log(1 - σ(logits)), () in float32; label 1 is real, 0 made."""
    return F.binary_cross_entropy_with_logits(logits.float(), torch.full_like(logits, label, dtype=torch.float32))


@contextmanager
def dropping(network: nn.Module, generators: Sequence[torch.Generator] | None) -> Iterator[None]:
    """A network in evaluation mode but for its dropout, which draws from a generator for each image; None for none.

    Draws are made on the CPU, so that devices agree, and the global random state is neither read nor changed. At the
    end every module is in its own mode again.
    """
    modes = [(module, module.training) for module in network.modules()]
    drops = [module for module, _ in modes if isinstance(module, nn.Dropout) and module.p > 0]
    hooks = [drop.register_forward_hook(_drop_by(generators)) for drop in drops] if generators is not None else []
    try:
        network.eval()
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes:
            module.training = mode


def _drop_by(generators: Sequence[torch.Generator]) -> Any:
    def drop(module: nn.Dropout, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        draws = torch.stack([torch.rand(image.shape, generator=g) for image, g in zip(output, generators, strict=True)])
        return output * (draws >= module.p).to(output) / (1 - module.p)

    return drop


def _generator_of(image: Tensor, seed: int) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:".encode() + image.detach().float().cpu().contiguous().numpy().tobytes()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _u_net(latent_channels: int, config: Pix2PixConfig) -> VelocityNetwork:
    """The generator's f; dropout is where the published U-Net has it."""
    shape = {name: getattr(config, name) for name in ("channels", "norm_groups", "head_channels", "dropout")}
    network = VelocityNetwork(NetworkConfig(n_domains=1, in_channels=latent_channels, **shape))
    decoder = list(network.unet.get_submodule("up_blocks").children())
    inner = {module for level in decoder[: config.dropout_levels] for module in level.modules()}
    for module in network.modules():
        if isinstance(module, nn.Dropout) and module not in inner:
            module.p = 0.0
    return network
