r"""What is trained around a frozen velocity network: low-rank adapters inside it, and skips between its halves.

An adapter changes a layer's weight W by a product of low rank, x -> W x + B A x with A (r, in) and B (out, r); B
starts at zero, so nothing changes before training. Every convolution and every attention projection has one; norms,
embeddings and their projections have none. `peft` puts them in place.

A skip is a 1x1 convolution from the input of a level's encoder block to the input of the decoder block that mirrors
it, one set for each direction of translation. It starts at zero too.

The network that is given stays as it is: a frozen copy is adapted, and only adapters and skips are worth keeping.

References:
    Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021, arXiv:2106.09685.
    Parmar et al., One-Step Image Translation with Text-to-Image Models, 2024, arXiv:2403.12036 (both parts together).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from medshift.checkpoint import weights_sha256
from medshift.errors import CheckpointError, ParameterError
from medshift.network import VelocityNetwork
from medshift.pairwise import Pair

__all__ = ["AdaptedVelocity", "Adapters", "LevelSkips", "base_identity", "check_base", "pair_labels"]

DIRECTIONS = 2


class Adapters(nn.Module):
    """The factors A and B of every adapted layer, by the layer's name with / for its dots.

    They are the very parameters that the network uses: what is loaded here, the network has.

    Args:
        unet: a network that `peft` has put adapters in.
    """

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        for name, parameter in unet.named_parameters():
            if parameter.requires_grad:
                self.register_parameter(name.replace(".default.weight", "").replace(".", "/"), parameter)


class LevelSkips(nn.Module):
    """1x1 convolutions without bias, one for each level and direction, all zero at first.

    Args:
        channels: of the network's levels, from fine to coarse.

    Attributes:
        weights: (2, out, in) for each decoder block, in the order in which they run: from coarse to fine.
    """

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        encoder = (channels[0], *channels[:-1])  # what enters each encoder block
        decoder = (channels[-1], *channels[:0:-1])  # what enters each decoder block
        pairs = zip(reversed(encoder), decoder, strict=True)
        self.weights = nn.ParameterList(torch.zeros(DIRECTIONS, wide, narrow) for narrow, wide in pairs)

    def forward(self, level: int, activation: Tensor, direction: Tensor) -> Tensor:
        """What decoder block `level` gets from (B,in,h,w) when sample i is translated in direction[i]: (B,out,h,w)."""
        kernels = self.weights[level][direction]
        return (kernels @ activation.flatten(2)).unflatten(2, activation.shape[2:])


class AdaptedVelocity(nn.Module):
    """A frozen copy of a velocity network with adapters and skips, both neutral at first.

    The factors A are drawn from torch's global random state, N(0, 1/r²).

    Args:
        base: the trained network; it is not changed.
        rank: r, of every adapter.

    Attributes:
        network: the copy.
        adapters: the trained factors, which `network` shares.
        skips: the trained skips.

    Raises:
        ParameterError: a rank below 1.
    """

    def __init__(self, base: VelocityNetwork, rank: int) -> None:
        super().__init__()
        if rank < 1:
            raise ParameterError(f"The rank of the adapters is {rank}, expected at least 1.")
        self.network = copy.deepcopy(base).requires_grad_(False).eval()
        _adapt(self.network.unet, rank)
        self.adapters = Adapters(self.network.unet)
        self.skips = LevelSkips(base.config.channels).to(next(base.parameters()).device)
        self._route: tuple[Tensor, float] | None = None
        self._held: list[Tensor] = []
        for block in self.network.unet.get_submodule("down_blocks").children():
            block.register_forward_pre_hook(self._hold, with_kwargs=True)
        for level, block in enumerate(self.network.unet.get_submodule("up_blocks").children()):
            block.register_forward_pre_hook(partial(self._add, level), with_kwargs=True)

    def forward(self, x: Tensor, t: Tensor, label: Tensor, direction: Tensor, skip: float = 1.0) -> Tensor:
        """The adapted velocity at x.

        Args:
            x: latents (B,C,h,w), any h and w.
            t: () or (B,), in [0, 1].
            label: (B,) int64, domains wanted.
            direction: (B,) int64, 0 or 1: which set of skips each sample takes.
            skip: gain of the skips; 0 leaves them out.

        Returns:
            (B,C,h,w) in the dtype of x.
        """
        self._route, self._held = (direction, skip), []
        try:
            return self.network(x, t, label)
        finally:
            self._route, self._held = None, []

    def one_step(self, x: Tensor, time: float, label: Tensor, direction: Tensor, skip: float = 1.0) -> Tensor:
        """x + (1 - t) v(x, t, label), the data that x (B,C,h,w) would be on its way to if it were the state at t."""
        t = torch.full((), time, dtype=torch.float32, device=x.device)
        return x + (1 - time) * self(x, t, label, direction, skip)

    def _hold(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._held.append(args[0] if args else kwargs["hidden_states"])

    def _add(
        self, level: int, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        activation = self._held.pop()  # the decoder runs through the levels backwards
        if self._route is None or self._route[1] == 0:
            return None
        direction, gain = self._route
        skipped = gain * self.skips(level, activation, direction)
        if args:
            return (args[0] + skipped, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": kwargs["hidden_states"] + skipped}


def _adapt(unet: nn.Module, rank: int) -> None:
    """Give every convolution and attention projection an adapter; nothing else records gradients afterwards."""
    from peft import LoraConfig, inject_adapter_in_model

    layers = [name for name, layer in unet.named_modules() if isinstance(layer, nn.Conv2d)]
    layers += [n for n, layer in unet.named_modules() if isinstance(layer, nn.Linear) and ".attentions." in n]
    # alpha = rank makes the factor in front of B A one, as published.
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=layers, init_lora_weights="gaussian")
    inject_adapter_in_model(config, unet)


def pair_labels(base: VelocityNetwork, pair: Pair, channels: int) -> tuple[int, int]:
    """The labels of a pair's source and target in a base of all domains, or in one trained for the pair alone.

    Raises:
        ParameterError: the base was made for another number of domains or of latent channels.
    """
    n, held = base.config.n_domains, base.config.in_channels
    if held == channels and n == len(pair.domains):
        return pair.domains.index(pair.source), pair.domains.index(pair.target)
    if held == channels and n == DIRECTIONS:
        return 0, 1
    raise ParameterError(
        f"The base is made for {n} domains and {held} latent channels, but there are {len(pair.domains)} domains "
        f"and the codec has {channels} channels. Take network and codec of one MedShift training."
    )


def base_identity(base: VelocityNetwork) -> dict[str, Any]:
    """JSON values that tell a base from every other: the hash of its weights, and its shape."""
    return {"sha256": weights_sha256(base.state_dict()), "network": base.config.to_dict()}


def check_base(state: Mapping[str, Any], base: VelocityNetwork) -> None:
    """Refuse a base other than the one that adapters were trained on.

    Args:
        state: of the training, with `base_identity` as its entry "base".
        base: the network to put the adapters in.

    Raises:
        CheckpointError: another shape, other weights, or a state that names no base.
    """
    wanted, given = state.get("base"), base_identity(base)
    if wanted is None:
        raise CheckpointError(
            f"A training of {state.get('kind', 'an unknown method')!r} names no base network: it has no adapters. "
            "Give the folder of a training that has."
        )
    if wanted != given:
        what = "with other weights" if wanted["network"] == given["network"] else "of another shape"
        raise CheckpointError(
            f"These adapters were trained on a base network {what}: its SHA-256 is "
            f"{wanted['sha256'][:16]}…, that of the one given {given['sha256'][:16]}…. Give the MedShift network of "
            "their training, or train them again on this one."
        )
