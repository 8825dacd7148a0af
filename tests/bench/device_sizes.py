"""What the benches of a device work on: the network, codec, image size and batch of the profile that it would run."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from trainings import autoencoder, batches

from medshift.codec import KLCodec, PatchCodec
from medshift.data.domains import DOMAINS
from medshift.fast import compiled, fast
from medshift.flow import Velocity
from medshift.flow_training import FlowMatching
from medshift.methods import training
from medshift.methods_index import BUILT_ON, TRAINED
from medshift.network import VelocityNetwork, build_network
from medshift.pairwise import Pair, PairMethod
from medshift.repro.profiles import Profile, load_profile
from medshift.schedules import autocast_dtype
from medshift.translate import MedShift

Batches = Callable[[int, torch.Generator], tuple[torch.Tensor, torch.Tensor]]
BASES = {"cyclegan-turbo-style": "medshift-same-budget", "direct-bridge-reflow": "direct-bridge"}


def profile_of(device: torch.device, quick: bool) -> str:
    """The profile that a device would run, or the smallest."""
    return "smoke" if quick else "gpu" if device.type == "cuda" else "cpu"


@dataclass
class Work:
    """A profile's work, untrained, on a device.

    Args:
        profile: sizes of everything.
        device: to work on.
    """

    profile: Profile
    device: torch.device

    @staticmethod
    def of(device: torch.device, quick: bool) -> Work:
        """The smallest has a KL autoencoder too, so that a rehearsal goes where a GPU goes."""
        small = {"codec.kind": "kl", "codec.factor": "4"} if quick else {}
        return Work(load_profile(profile_of(device, quick), small), device)

    @cached_property
    def dtype(self) -> torch.dtype:
        """Of products."""
        return autocast_dtype(self.device) or torch.float32

    def autoencoder(self) -> KLCodec:
        """A new one, of the profile's size."""
        return autoencoder(tuple(self.profile.kl.widths), self.profile.kl.channels, self.device)

    @cached_property
    def codec(self) -> PatchCodec | KLCodec:
        if self.profile.codec.kind == "kl":
            return self.autoencoder()
        return PatchCodec(self.profile.codec.factor).to(self.device)

    @cached_property
    def network(self) -> VelocityNetwork:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made = build_network(self.profile.train.network, n_domains=len(DOMAINS), in_channels=self.codec.channels)
        # The last convolution starts at zero: as it is, the network would say nothing.
        torch.nn.init.normal_(made.unet.conv_out.weight, std=0.02, generator=torch.Generator().manual_seed(0))
        return made.to(self.device).requires_grad_(False).eval()

    @cached_property
    def side(self) -> int:
        """Of the latents."""
        return -(-self.profile.size // self.codec.stride)

    @cached_property
    def velocity(self) -> Velocity:
        """As the stages evaluate it: fast, and compiled where that pays."""
        made = fast(self.network)
        return compiled(made) if self.device.type == "cuda" else made

    def model(self, velocity: Velocity) -> MedShift:
        return MedShift(velocity, self.codec, len(DOMAINS), DOMAINS)

    def images(self, n: int) -> torch.Tensor:
        """(n, 1, H, W), smooth and noisy."""
        generator = torch.Generator().manual_seed(0)
        coarse = torch.randn(n, 1, 8, 8, generator=generator)
        smooth = torch.nn.functional.interpolate(coarse, (self.profile.size,) * 2, mode="bicubic")
        return (0.3 * smooth + 0.05 * torch.randn(smooth.shape, generator=generator)).to(self.device)

    def latents(self, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(n, C, h, w), and labels (n,)."""
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(n, self.codec.channels, self.side, self.side, generator=generator).to(self.device)
        return x, (torch.arange(n) % len(DOMAINS)).to(self.device)

    def trainable(self) -> FlowMatching:
        """A MedShift to train, with a network of its own."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            name, channels = self.profile.train.network, self.codec.channels
            network = build_network(name, n_domains=len(DOMAINS), in_channels=channels).to(self.device)
        return FlowMatching(network, self.codec, DOMAINS)

    def pair_method(self, kind: str) -> PairMethod:
        """An untrained method for a pair; those of 07 work on patches of two, as their stage has it."""
        paired = TRAINED[kind][0].startswith("medshift.paired")
        codec = PatchCodec(2).to(self.device) if paired else self.codec
        nets = {}
        if kind in BUILT_ON:
            base = self.pair_method(BASES[kind]).modules()["network"]
            assert isinstance(base, VelocityNetwork)
            nets[BUILT_ON[kind]] = base.requires_grad_(False).eval()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made = training(kind, codec, Pair(DOMAINS[0], DOMAINS[1], DOMAINS), {}, **nets)
        for module in made.modules().values():
            module.to(self.device)
        return made

    def halves(self, n: int) -> Batches:
        """Batches of n images, half of them of each of two domains."""
        label = torch.arange(n, device=self.device) // (n // 2)
        return batches(self.images(n), label)


def build_folder() -> Path:
    """Where the file of steps goes."""
    return Path(os.environ.get("MEDSHIFT_BENCH_OUT", Path(__file__).parents[2] / "build"))
