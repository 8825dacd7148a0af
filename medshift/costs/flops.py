"""Floating-point operations of networks, codecs and trainings, counted without running them at their size.

`torch.utils.flop_counter` counts matrix products, convolutions and attention, two operations a multiplication and
addition, and nothing else: no normalisation, no activation, no optimiser. Networks and autoencoders are counted on fake
tensors, which have shapes and no memory. Methods trained for a pair look at values, which fake tensors have not: their
steps are run at three small sizes. For layers that see a pixel's neighbours the count is linear in the number of
pixels, for attention quadratic, so three sizes tell the count at any size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from medshift.codec import KLCodec, PatchCodec
from medshift.codec_training import KLTraining
from medshift.errors import ParameterError
from medshift.methods import training
from medshift.network import NetworkConfig, VelocityNetwork, build_network, scaled
from medshift.pairwise import Pair, PairMethod

__all__ = [
    "FORMULAS", "autoencoder_step", "counted", "decoding", "encoding", "evaluation", "method", "method_step",
    "of_network", "parameters",
]  # fmt: skip

SIDES = (64, 96, 128)  # pixels at which a step that looks at values is run
IMAGES = 4  # of such a step: the fewest that every method takes, two of each domain


def _attention(query: Sequence[int], key: Sequence[int], value: Sequence[int], *rest: Any, **more: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_gradient(
    gradient: Sequence[int], query: Sequence[int], key: Sequence[int], value: Sequence[int], *rest: Any, **more: Any
) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


# The fused attention of the CPU, which torch's counter passes over; shapes to operations.
FORMULAS: dict[Any, Any] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_gradient,
}


def counted(function: Callable[[], object]) -> int:
    """Floating-point operations of one call."""
    counter = FlopCounterMode(display=False, custom_mapping=FORMULAS)
    # Which module an operation belongs to does not matter here, and finding out fails on graphs made of parts that
    # partly record no gradient.
    counter.mod_tracker = _Nowhere()  # type: ignore[assignment]
    with counter:
        function()
    return int(counter.get_total_flops())


class _Nowhere(nullcontext[None]):
    """Stands for torch's record of the module that is being evaluated."""

    parents = frozenset({"Global"})

    def __exit__(self, *error: object) -> None:
        """torch calls this without arguments."""


def of_network(config: NetworkConfig, side: int, *, batch: int = 1, backward: bool = False) -> int:
    """Operations of one evaluation of a velocity network at latents of `side`², or of that and its gradient.

    Raises:
        ParameterError: no pixel or no image.
    """
    if side < 1 or batch < 1:
        raise ParameterError(f"side is {side} and batch {batch}, expected 1 or more of each.")
    with FakeTensorMode():
        network = VelocityNetwork(config)
        x, label = torch.empty(batch, config.in_channels, side, side), torch.zeros(batch, dtype=torch.int64)

        def work() -> None:
            velocity = network(x, torch.tensor(0.5), label)
            if backward:
                velocity.sum().backward()

        return counted(work)


@lru_cache(maxsize=256)
def evaluation(preset: str, channels: int, side: int, *, width: float = 1.0, backward: bool = False) -> int:
    """`of_network` for one image, of a size by name whose channels are `width` times as wide."""
    return of_network(_config(preset, channels, width), side, backward=backward)


@lru_cache(maxsize=64)
def parameters(preset: str, channels: int) -> int:
    """Weights of a network, for five domains."""
    with torch.device("meta"):
        network = VelocityNetwork(_config(preset, channels, 1.0))
    return sum(parameter.numel() for parameter in network.parameters())


def _config(preset: str, channels: int, width: float) -> NetworkConfig:
    with torch.device("meta"):
        return build_network(preset, n_domains=5, in_channels=channels, **scaled(preset, width)).config


@lru_cache(maxsize=64)
def encoding(widths: tuple[int, ...], channels: int, size: int, *, layers: int = 1, attention: bool = False) -> int:
    """Operations of a KL autoencoder that encodes one image of `size`²."""
    codec = _codec(widths, channels, layers, attention)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        image = torch.empty(1, 1, size, size)
        return counted(lambda: codec.encode(image))


@lru_cache(maxsize=64)
def decoding(widths: tuple[int, ...], channels: int, size: int, *, layers: int = 1, attention: bool = False) -> int:
    """Operations of a KL autoencoder that decodes one image of `size`²."""
    codec = _codec(widths, channels, layers, attention)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        latent = torch.empty(1, channels, size // codec.stride, size // codec.stride)
        return counted(lambda: codec.decode(latent))


@lru_cache(maxsize=8)
def autoencoder_step(widths: tuple[int, ...], channels: int, size: int) -> int:
    """Operations an image of a step that trains a KL autoencoder, the mean of before and after its warm-up."""
    steps = []
    for warmup in (0, 1):
        made = KLTraining(_codec(widths, channels, 1, False), warmup=warmup)
        # A counter of calls that is a number: on fake tensors no value can be asked for.
        del made.discriminator.calls
        made.discriminator.calls = 0  # type: ignore[assignment]
        with FakeTensorMode(allow_non_fake_inputs=True):
            batch = (torch.empty(1, 1, size, size),)
            steps.append(counted(partial(_step, made, batch)))
    return sum(steps) // len(steps)


@lru_cache(maxsize=8)
def _codec(widths: tuple[int, ...], channels: int, layers: int, attention: bool) -> KLCodec:
    with torch.random.fork_rng(devices=[]):  # these weights are never looked at
        return KLCodec.build(widths, channels, layers=layers, attention=attention)


def method(
    kind: str, config: Mapping[str, Any], codec: PatchCodec | KLCodec, **nets: VelocityNetwork
) -> PairMethod:
    """An untrained method for a pair of two domains out of five; torch's random state stays as it was.

    Args:
        kind: one of `medshift.methods_index.TRAINED`.
        config: entries of its configuration that differ from the defaults.
        codec: images to latents and back.
        nets: the network that it is built on, by the keyword of `medshift.methods_index.BUILT_ON`.
    """
    names = tuple("abcde")
    with torch.random.fork_rng(devices=[]):
        return training(kind, codec, Pair(names[0], names[1], names), config, **nets)


def method_step(make: Callable[[], PairMethod], size: int, *, sides: Sequence[int] = SIDES) -> float:
    """Operations an image of a step that trains a method on images of `size`², from steps at three small sizes.

    Args:
        make: the method, anew for each size: some keep images of the size that they have seen.
        size: side of the images, pixels.
        sides: those of the small images.

    Raises:
        ParameterError: not three different sides.
    """
    if len(sides) != 3 or len(set(sides)) != 3:
        raise ParameterError(f"sides are {tuple(sides)}, expected three different ones.")
    found = []
    with torch.random.fork_rng(devices=[]):
        for side in sides:
            torch.manual_seed(0)
            made, batch = make(), (torch.randn(IMAGES, 1, side, side) / 4, torch.tensor([0, 0, 1, 1]))
            found.append(counted(partial(_step, made, batch)) / IMAGES)
    pixels = np.array([(side / size) ** 2 for side in sides])
    law = np.linalg.solve(np.stack([pixels**0, pixels, pixels**2], axis=1), np.array(found))
    return float(law.sum())


def _step(made: Any, batch: Sequence[torch.Tensor]) -> None:
    losses = made.step(batch, torch.Generator().manual_seed(0))
    optimizers: Mapping[str, Optimizer] = made.optimizers()
    for name, optimizer in optimizers.items():
        if name in losses:
            weights: list[nn.Parameter] = [p for group in optimizer.param_groups for p in group["params"]]
            # Not backward(), which would leave fake gradients at weights that are none.
            torch.autograd.grad(losses[name], weights, allow_unused=True, retain_graph=True)
