r"""A trained network as a faster velocity, for translating and not for training.

`fast(network)` is a velocity like any other: ``MedShift(fast(network), codec, n_domains)`` works unchanged, and so do
guidance (both branches in one batch), every solver and every method on top. The network stays the plain path.

What it does, and what each part was worth, is measured by `make bench`:

* the network is evaluated as `medshift.lean_network` arranges it;
* in bfloat16 where the device multiplies it in hardware, else in single precision; the integrator's sums stay in the
  precision of x;
* what time and label say to the network is computed once for each time and kept, for all labels: solvers come back to
  the same times in every leg, batch and target. They hand them over on the host (`medshift.ode.at_time`); for a t on a
  GPU, whose value nobody could read without waiting, it is computed anew by one matrix product instead.

In single precision it equals the network to 1e-4 of the velocity's norm, in bfloat16 to 2e-2. Over a translation such
errors average out; they grow where the flow itself is chaotic: at small :math:`\tau`, on images unlike the training's.

`compiled` puts torch.compile around it, for GPUs, whose kernel launches it saves by CUDA graphs; there `load_fast` does
so, for shapes that come often enough. On two CPU cores it gains nothing over the arrangement above and takes a minute
for each size of image.
"""

from __future__ import annotations

import warnings
from collections import Counter
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
WORTH = 1000  # evaluations of one shape after which a GPU's are compiled: reckoned, not yet measured on a GPU
WARMING = 3  # calls after which a CUDA graph has been run, recorded and replayed
KIND, NETWORK = "flow-matching", "velocity-unet"  # of the checkpoints that `load_fast` reads
AVERAGE = "module."  # before each name of a moving average

Evaluate = Callable[[Tensor, Tensor], Tensor]
Shape = tuple[torch.Size, torch.dtype]


class FastVelocity:
    """A velocity, see `fast`. It records no gradients, and what becomes of the network later does not reach it.

    Args:
        conditioning: what times and labels say to the blocks.
        lean: the U-Net.
        evaluate: the same function as `lean`, perhaps compiled; None for `lean` itself.

    Where memory runs out, the rows of a batch are evaluated in halves from then on, after a warning.

    Attributes:
        dtype: of the evaluation.
        most: rows at once; None for all.
        null_label: the class that stands for "no domain", K.
    """

    def __init__(self, conditioning: Conditioning, lean: LeanUNet, evaluate: Evaluate | None = None) -> None:
        self.conditioning, self.lean, self.evaluate = conditioning, lean, evaluate or lean
        self.dtype, self.null_label, self.stride = lean.dtype, lean.null_label, lean.stride
        self.tables: dict[float, Tensor] = {}
        self.most: int | None = None

    @torch.no_grad()
    def __call__(self, x: Batch, t: Time, label: Labels) -> Batch:
        """The velocity (B, C, H, W) in the dtype of x; arguments and errors are those of the network's `forward`."""
        self._check(x, t, label)
        height, width = x.shape[2:]
        tall, wide = -height % self.stride, -width % self.stride
        top, left = tall // 2, wide // 2
        padded = F.pad(x, (left, wide - left, top, tall - top), mode="replicate") if tall or wide else x
        with torch.autocast(x.device.type, enabled=False):
            velocity = self._in_parts(padded, self.rows(t, label))
        return velocity[:, :, top : top + height, left : left + width]

    def _in_parts(self, x: Tensor, rows: Tensor) -> Tensor:
        while True:
            n = min(self.most or len(x), len(x))
            try:
                if n == len(x):
                    return self.evaluate(x, rows)
                return torch.cat([self.evaluate(*part) for part in zip(x.split(n), rows.split(n), strict=True)])
            except torch.OutOfMemoryError:
                if n <= 1:
                    raise
            # Outside of the handler: what the error's frames hold is free by now.
            self.most = n // 2
            warnings.warn(
                f"Memory ran out on {x.device} for {n} latents at once; from here on at most {self.most} are evaluated "
                "at a time.",
                stacklevel=4,
            )

    def rows(self, t: Time, label: Labels) -> Tensor:
        """What is said to each block, (B, sum of its widths), float32, for times () or (B,) and labels (B,)."""
        if t.ndim or t.device.type != "cpu":
            return self.conditioning(t, label)
        time = float(t)
        if time not in self.tables:
            if len(self.tables) >= KEPT_TIMES:
                self.tables.clear()
            self.tables[time] = self.conditioning(t, torch.arange(self.null_label + 1, device=label.device))
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
    fraction of the time, most of which goes into importing what the layers of a network to train are made of. On a GPU
    the network is `compiled` for shapes that were evaluated `WORTH` times.

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
    if torch.device(device).type == "cuda":
        velocity = compiled(velocity, after=WORTH)
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


def compiled(velocity: FastVelocity, *, sizes: int = 4, after: int = 0) -> FastVelocity:
    """`velocity` with its network under torch.compile, as CUDA graphs on a GPU.

    Each shape of a batch is compiled for itself, for static shapes. Where there is no compiler, or it fails, or memory
    runs out in it, and for shapes past the first `sizes`, the network is evaluated as before, after one warning. Memory
    that does not suffice for the network either is the usual `torch.OutOfMemoryError`.

    Args:
        velocity: made by `fast`.
        sizes: shapes to compile at most.
        after: evaluations of a shape before it is compiled, so that one that comes seldom never is.

    Raises:
        ParameterError: `sizes` is below 1, or `after` below 0.
    """
    if sizes < 1 or after < 0:
        raise ParameterError(
            f"sizes is {sizes} and after {after}, expected 1 or more shapes to compile and 0 or more evaluations."
        )
    return FastVelocity(velocity.conditioning, velocity.lean, _Compiled(velocity.lean, sizes, after))


class _Compiled:
    """A lean network compiled for each of the first shapes that it meets often."""

    def __init__(self, lean: LeanUNet, sizes: int, after: int) -> None:
        self.lean, self.sizes, self.after = lean, sizes, after
        self.graphs: dict[Shape, Evaluate] = {}
        self.met: Counter[Shape] = Counter()
        self.given_up = False

    def __call__(self, x: Tensor, rows: Tensor) -> Tensor:
        key = (x.shape, x.dtype)
        if key in self.graphs:
            return self.graphs[key](x, rows)
        self.met[key] += 1
        if self.given_up or self.met[key] <= self.after:
            return self.lean(x, rows)
        why = f"latents of more than {self.sizes} shapes were met"
        if len(self.graphs) < self.sizes and not (why := self._add(key, x, rows)):
            return self.graphs[key](x, rows)
        velocity = self.lean(x, rows)  # before all else: where memory is short for this as well, that is the error
        self.given_up = True
        warnings.warn(f"{why}; from here on the network is evaluated without a compiler.", stacklevel=4)
        return velocity

    def _add(self, key: Shape, x: Tensor, rows: Tensor) -> str:
        """Compile for one shape; why that failed, or nothing."""
        graph, on_gpu = _compile(self.lean, x.device), x.device.type == "cuda"
        try:
            for _ in range(WARMING if on_gpu else 1):
                graph(x, rows)
            if on_gpu:
                torch.cuda.synchronize(x.device)  # else a later, innocent call would raise what failed here
        except Exception as error:  # noqa: BLE001  the compilers raise whatever they like
            return _why(error)
        self.graphs[key] = graph
        return ""


def _why(error: BaseException) -> str:
    """What failed; the compilers wrap errors in their own."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, torch.OutOfMemoryError):
            return "memory ran out while the network was compiled"
        inner = inner.__cause__ or inner.__context__
    return f"torch.compile failed ({type(error).__name__})"


def _compile(lean: LeanUNet, device: torch.device) -> Evaluate:
    # A new function for each shape: torch counts compilations by function, and stops silently at eight.
    def evaluate(x: Tensor, rows: Tensor) -> Tensor:
        return lean(x, rows)

    if device.type != "cuda":
        return torch.compile(evaluate, dynamic=False, fullgraph=True)
    graph = torch.compile(evaluate, dynamic=False, fullgraph=True, mode="reduce-overhead")
    # A CUDA graph writes its next result where this one lies; solvers hold several.
    return lambda x, rows: graph(x, rows).clone()
