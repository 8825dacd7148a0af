r"""A trained network as a faster velocity, for translating and not for training.

`fast(network)` is a velocity like any other: ``MedShift(fast(network), codec, n_domains)`` works unchanged, and so do
guidance (both branches in one batch), every solver and every method on top. The network stays the plain path.

What it does, and what each part was worth, is measured by `make bench`:

* the network is evaluated as `medshift.lean_network` arranges it;
* in bfloat16 where the device multiplies it in hardware, else in single precision; the integrator's sums stay in the
  precision of x;
* what time and label say to the network is computed once for each time and kept, for all labels: solvers come back to
  the same times in every leg, batch and target. On a GPU, where asking for the value of t would wait for the device,
  it is computed anew by one matrix product instead.

In single precision it equals the network to 1e-4 of the velocity's norm, in bfloat16 to 2e-2. Over a translation such
errors average out; they grow where the flow itself is chaotic: at small :math:`\tau`, on images unlike the training's.

`compiled` puts torch.compile around it, for GPUs, whose kernel launches it saves by CUDA graphs. On two CPU cores it
gains nothing over the arrangement above and takes a minute for each size of image.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from medshift import checkpoint
from medshift.codec import from_description
from medshift.errors import CheckpointError, ParameterError
from medshift.flow import Batch, Labels, Time
from medshift.lean_network import Conditioning, LeanUNet, arranged
from medshift.schedules import autocast_dtype
from medshift.translate import MedShift

if TYPE_CHECKING:
    from medshift.network import VelocityNetwork

__all__ = ["FastVelocity", "compiled", "fast", "load_fast"]

KEPT_TIMES = 512  # whose conditioning is kept; a leg of 50 Heun intervals has 51
KIND, NETWORK = "flow-matching", "velocity-unet"  # of the checkpoints that `load_fast` reads
AVERAGE = "module."  # before each name of a moving average

Evaluate = Callable[[Tensor, Tensor], Tensor]


class FastVelocity:
    """A velocity, see `fast`. It records no gradients, and what becomes of the network later does not reach it.

    Args:
        conditioning: what times and labels say to the blocks.
        lean: the U-Net.
        evaluate: the same function as `lean`, perhaps compiled; None for `lean` itself.

    Attributes:
        dtype: of the evaluation.
        null_label: the class that stands for "no domain", K.
    """

    def __init__(self, conditioning: Conditioning, lean: LeanUNet, evaluate: Evaluate | None = None) -> None:
        self.conditioning, self.lean, self.evaluate = conditioning, lean, evaluate or lean
        self.dtype, self.null_label, self.stride = lean.dtype, lean.null_label, lean.stride
        self.tables: dict[float, Tensor] = {}

    @torch.no_grad()
    def __call__(self, x: Batch, t: Time, label: Labels) -> Batch:
        """The velocity (B, C, H, W) in the dtype of x; arguments and errors are those of the network's `forward`."""
        self._check(x, t, label)
        height, width = x.shape[2:]
        tall, wide = -height % self.stride, -width % self.stride
        top, left = tall // 2, wide // 2
        padded = F.pad(x, (left, wide - left, top, tall - top), mode="replicate") if tall or wide else x
        with torch.autocast(x.device.type, enabled=False):
            velocity = self.evaluate(padded, self.rows(t, label))
        return velocity[:, :, top : top + height, left : left + width]

    def rows(self, t: Time, label: Labels) -> Tensor:
        """What is said to each block, (B, sum of its widths), float32, for times () or (B,) and labels (B,)."""
        if t.ndim or label.device.type != "cpu":
            return self.conditioning(t, label)
        time = float(t)
        if time not in self.tables:
            if len(self.tables) >= KEPT_TIMES:
                self.tables.clear()
            self.tables[time] = self.conditioning(t, torch.arange(self.null_label + 1))
        return self.tables[time][label]

    def _check(self, x: Batch, t: Time, label: Labels) -> None:
        batch, channels = len(x), self.lean.channels
        if x.ndim != 4 or x.shape[1] != channels:
            raise ParameterError(f"This network expects latents (B, {channels}, H, W), not {tuple(x.shape)}.")
        if not t.is_floating_point() or t.ndim > 1 or (t.ndim == 1 and len(t) != batch):
            raise ParameterError(f"t must be float of shape () or ({batch},), not {t.dtype} {tuple(t.shape)}.")
        if label.shape != (batch,) or label.dtype != torch.int64:
            raise ParameterError(f"label must be int64 ({batch},), not {label.dtype} {tuple(label.shape)}.")


def fast(network: VelocityNetwork, *, dtype: torch.dtype | None = None) -> FastVelocity:
    """A copy of `network` for fast evaluation, on its device.

    Args:
        network: trained, see `medshift.flow_training.load_flow`.
        dtype: float32 or bfloat16; None for bfloat16 where the device has it in hardware. bfloat16 on a device that
            only emulates it becomes float32, with a warning: emulation is slower than single precision.

    Raises:
        ParameterError: another dtype, or a network with adapters in it.
    """
    return _fast(network.config.to_dict(), network.state_dict(), dtype)


def load_fast(folder: Path | str, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> MedShift:
    """The MedShift of a checkpoint, around a fast velocity of the moving average of its weights.

    It equals ``MedShift(fast(flow.network), flow.codec, ...)`` with ``flow = load_flow(folder)``, and is there in a
    fraction of the time, most of which goes into importing what the layers of a network to train are made of.

    Args:
        folder: the checkpoint's, or that of the run.
        dtype: see `fast`.
        device: where to put network and codec.

    Raises:
        CheckpointError: no checkpoint, a damaged one, or one of another method or architecture.
        ParameterError: another dtype.
    """
    held = checkpoint.load(folder, only=("network-ema", "codec"))
    method = held.state.get("method", {})
    if method.get("kind") != KIND:
        raise CheckpointError(
            f"{held.path} is a checkpoint of {method.get('kind', 'an unknown method')!r}, not of {KIND!r}; "
            "give the folder of a MedShift training."
        )
    if (kind := method["network"].get("kind")) != NETWORK:
        raise CheckpointError(f"{held.path} holds a network {kind!r}; this version knows {NETWORK!r}.")
    codec = {key: value for key, value in method["codec"].items() if key != "fingerprint"}
    average = held.tensors["network-ema"].items()
    tensors = {name[len(AVERAGE) :]: value.to(device) for name, value in average if name.startswith(AVERAGE)}
    try:
        velocity = _fast(method["network"], tensors, dtype)
    except (KeyError, ParameterError, RuntimeError) as error:
        raise CheckpointError(
            f"The weights in {held.path} belong to another architecture than the one it names ({error}); train again."
        ) from error
    domains = tuple(method["domains"])
    return MedShift(velocity, from_description(codec, held.tensors["codec"]).to(device), len(domains), domains)


def _fast(config: Mapping[str, Any], tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> FastVelocity:
    device = next(iter(tensors.values())).device
    if dtype not in (None, torch.float32, torch.bfloat16):
        raise ParameterError(f"dtype is {dtype}, expected torch.float32 or torch.bfloat16, or None to choose.")
    able = autocast_dtype(device) or torch.float32
    if dtype == torch.bfloat16 != able:
        warnings.warn(f"{device} has no bfloat16 in hardware; the network is evaluated in float32.", stacklevel=3)
    return FastVelocity(*arranged(config, tensors, dtype if dtype == torch.float32 else able))


def compiled(velocity: FastVelocity, *, sizes: int = 4) -> FastVelocity:
    """`velocity` with its network under torch.compile, as CUDA graphs on a GPU.

    Each new shape of a batch is compiled at its first use, for static shapes. Where there is no compiler, or it
    fails, and for shapes past the first `sizes`, the network is evaluated as before, after one warning.

    Args:
        velocity: made by `fast`.
        sizes: shapes to compile at most.

    Raises:
        ParameterError: `sizes` is below 1.
    """
    if sizes < 1:
        raise ParameterError(f"sizes is {sizes}, expected 1 or more shapes to compile.")
    return FastVelocity(velocity.conditioning, velocity.lean, _Compiled(velocity.lean, sizes))


class _Compiled:
    """A lean network compiled for each of the first shapes it meets."""

    def __init__(self, lean: LeanUNet, sizes: int) -> None:
        self.lean, self.sizes = lean, sizes
        self.graphs: dict[tuple[torch.Size, torch.dtype], Evaluate] = {}
        self.given_up = False

    def __call__(self, x: Tensor, rows: Tensor) -> Tensor:
        key = (x.shape, x.dtype)
        if key in self.graphs:
            return self.graphs[key](x, rows)
        if self.given_up:
            return self.lean(x, rows)
        if len(self.graphs) >= self.sizes:
            return self._give_up(f"latents of more than {self.sizes} shapes were met", x, rows)
        graph = _compile(self.lean, x.device)
        try:
            velocity = graph(x, rows)
        except Exception as error:  # noqa: BLE001  the compilers raise whatever they like
            return self._give_up(f"torch.compile failed ({type(error).__name__})", x, rows)
        self.graphs[key] = graph
        return velocity

    def _give_up(self, why: str, x: Tensor, rows: Tensor) -> Tensor:
        self.given_up = True
        warnings.warn(f"{why}; from here on the network is evaluated without a compiler.", stacklevel=5)
        return self.lean(x, rows)


def _compile(lean: LeanUNet, device: torch.device) -> Evaluate:
    # A new function for each shape: torch counts compilations by function, and stops silently at eight.
    def evaluate(x: Tensor, rows: Tensor) -> Tensor:
        return lean(x, rows)

    if device.type != "cuda":
        return torch.compile(evaluate, dynamic=False, fullgraph=True)
    graph = torch.compile(evaluate, dynamic=False, fullgraph=True, mode="reduce-overhead")
    # A CUDA graph writes its next result where this one lies; solvers hold several.
    return lambda x, rows: graph(x, rows).clone()
