"""Memory of a training step and of an evaluation of the velocity network, for a GPU, estimated without one.

The step is run on fake tensors, which have shape, type and lifetime but no storage, and the bytes alive are counted:
what autograd saves, copies in half precision, gradients on their way back. They are of a fake CPU, since autograd
refuses those of CUDA where there is no GPU, with the two rules by which a GPU's autocast differs: group normalisation
and interpolation in float32. torch's `MemTracker` counts the same several times slower; the tests compare the two.

Left out are the CUDA context (`CONTEXT`), and what `HEADROOM` is for: workspaces of convolutions and attention,
fragmentation of the allocator, the codec and the images of a batch.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode

from medshift.errors import ParameterError
from medshift.flow import flow_matching_loss
from medshift.guidance import guided, in_precision
from medshift.network import VelocityNetwork, build_network, scaled

__all__ = ["Memory", "accumulation_that_fits", "evaluation_memory", "training_memory", "usable_bytes"]

GIB = 2**30
CONTEXT = GIB // 2  # bytes that CUDA takes for itself
HEADROOM = 0.85  # share of the rest that is planned with
COPIES = 5  # of the weights in training: themselves, gradients, two moments of AdamW, the moving average
GRAIN = 512  # bytes that CUDA's allocator rounds up to
FEW, MANY = 1, 64  # images of the two batches that are counted
DOMAINS = 5  # a row each in the label embedding, which is nothing beside the rest


@dataclass(frozen=True)
class Memory:
    """Bytes, affine in the images of a micro-batch.

    Args:
        state: the weights and, in training, all that belongs to them.
        fixed: beside them, whatever the micro-batch: the weights in half precision.
        per_image: added by each image.
    """

    state: int
    fixed: int
    per_image: int

    def at(self, n: int) -> int:
        """Bytes for a micro-batch of n images."""
        return self.state + self.fixed + n * self.per_image


def training_memory(
    preset: str, *, side: int, channels: int, width: float = 1.0, dtype: torch.dtype | None = torch.bfloat16
) -> Memory:
    """Peak of a training step, the gradients of an earlier micro-batch in place.

    Args:
        preset: size of the network, see `medshift.network.PRESETS`.
        side: of the latents [pixels].
        channels: C of the latents.
        width: factor of the size's channels.
        dtype: of autocast; None for float32.

    Raises:
        ParameterError: no such network, or a side or number of channels below 1.
    """
    return _memory(preset, side, channels, width, dtype, True)


def evaluation_memory(
    preset: str, *, side: int, channels: int, width: float = 1.0, dtype: torch.dtype | None = torch.bfloat16
) -> Memory:
    """Peak of one evaluation of the guided velocity, which takes two rows an image; see `training_memory`."""
    return _memory(preset, side, channels, width, dtype, False)


@lru_cache(maxsize=64)
def _memory(preset: str, side: int, channels: int, width: float, dtype: torch.dtype | None, training: bool) -> Memory:
    if side < 1 or channels < 1:
        raise ParameterError(f"Latents have at least one pixel and one channel, not side {side}, {channels} channels.")
    with _Counting() as count:
        network = build_network(preset, n_domains=DOMAINS, in_channels=channels, **scaled(preset, width))
        weights = sum(4 * p.numel() for p in network.parameters())
        if training:
            for parameter in network.parameters():
                parameter.grad = torch.zeros_like(parameter)
        run = train_step if training else evaluate
        few, many = (count.peak_of(partial(run, network, n, side, dtype)) for n in (FEW, MANY))
    # The peak is the largest of affine functions, one for each moment, so between the two its chord lies above it.
    per_image = math.ceil((many - few) / (MANY - FEW))
    return Memory(weights * (COPIES if training else 1), max(0, few - FEW * per_image), per_image)


def train_step(network: VelocityNetwork, n: int, side: int, dtype: torch.dtype | None) -> None:
    """Loss of n latents (n, C, side, side) and its gradients, as `medshift.train` takes them on a GPU."""
    latents = torch.randn(n, network.config.in_channels, side, side)
    label, generator = torch.zeros(n, dtype=torch.int64), torch.Generator().manual_seed(0)
    with _CudaRules(), torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        loss = flow_matching_loss(network, latents, label, generator, null_label=network.null_label)
    torch.autograd.backward(loss, inputs=list(network.parameters()))


def evaluate(network: VelocityNetwork, n: int, side: int, dtype: torch.dtype | None) -> None:
    """The guided velocity of n latents (n, C, side, side)."""
    velocity = guided(in_precision(network, dtype), 2.0, network.null_label)
    latents, label = torch.randn(n, network.config.in_channels, side, side), torch.zeros(n, dtype=torch.int64)
    with torch.no_grad(), _CudaRules():
        velocity(latents, torch.tensor(0.5), label)


class _CudaRules(TorchFunctionMode):
    """Do in float32 what autocast does in float32 on a GPU and not on a CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (F.group_norm, F.interpolate):
            args = [a.float() if isinstance(a, Tensor) else a for a in args]
        return func(*args, **(kwargs or {}))


class _Counting(FakeTensorMode):
    """Fake tensors whose living bytes are counted; views share what they are a view of."""

    def __init__(self) -> None:
        super().__init__()
        self.alive, self.peak, self.depth = 0, 0, 0
        self.sizes: dict[int, int] = {}

    def peak_of(self, run: Callable[[], None]) -> int:
        """The most bytes alive at a time while ``run`` runs, beside those alive before."""
        before = self.peak = self.alive
        run()
        return self.peak - before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.depth += 1
        try:
            result = super().__torch_dispatch__(func, types, args, kwargs)
        finally:
            self.depth -= 1
        # Some operations are made of others here, whose results a kernel of the GPU never writes down.
        if not self.depth:
            for one in result if isinstance(result, list | tuple) else (result,):
                if isinstance(one, Tensor):
                    self._add(one.untyped_storage())
        return result

    def _add(self, storage: Any) -> None:
        if (key := storage._cdata) in self.sizes:
            return
        self.sizes[key] = math.ceil(storage.nbytes() / GRAIN) * GRAIN
        self.alive += self.sizes[key]
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.alive -= self.sizes.pop(key)


def usable_bytes(total: int) -> int:
    """Bytes of a GPU's ``total`` that a step may plan with; 0 where there is nothing left."""
    return max(0, int(HEADROOM * (total - CONTEXT)))


def accumulation_that_fits(batch: int, bytes_free: int, fixed: int, per_image: int) -> int:
    """The fewest equal micro-batches of ``batch`` images that fit.

    Args:
        batch: images of a step.
        bytes_free: to plan with, see `usable_bytes`.
        fixed: bytes whatever the micro-batch.
        per_image: bytes that each of its images adds.

    Raises:
        ParameterError: not even one image fits, or a number is out of its range.
    """
    if batch < 1 or bytes_free < 0 or fixed < 0 or per_image < 1:
        raise ParameterError(f"No batch of {batch} can take {fixed} + n {per_image} bytes of {bytes_free}.")
    for parts in (parts for parts in range(1, batch + 1) if batch % parts == 0):
        if fixed + batch // parts * per_image <= bytes_free:
            return parts
    raise ParameterError(
        f"Training this network takes {(fixed + per_image) / GIB:.1f} GiB of GPU memory at one image at a time, and "
        f"{bytes_free / GIB:.1f} GiB can be planned with; choose a smaller profile, or a smaller train.network."
    )
