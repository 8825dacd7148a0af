"""Time, operations and bytes of the kernels of a function, one operation at a time, against what bounds them.

Every operation that is dispatched is named for torch's profiler by what it is and by the shapes it sees; its time is
that of the kernels that it starts on a GPU, or that of the operation on a CPU. Its bound is the slower of its
operations at the best matrix product of its dtype and its bytes at the best copy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from measuring import CPU
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from medshift.costs.flops import FORMULAS

# The first class whose words are in an operation's name.
CLASSES = {
    "convolution": ("convolution", "conv2d", "conv_transpose"),
    "attention": ("attention",),
    "matrix product": ("addmm", "aten::mm", "bmm", "baddbmm"),
    "normalisation": ("group_norm",),
    "optimiser and average": ("_foreach", "_fused_adam", "lerp", "norm"),
    "copies and casts": ("copy", "_to_copy", "clone", "cat", "contiguous"),
}
ELEMENTWISE = "elementwise"
MARK = "roofline "  # before the names that the profiler is to show
GOOD = 0.6  # share of its own bound at which an operation runs well


@dataclass
class Operation:
    """One operation on tensors of certain shapes.

    Args:
        kind: its class.
        dtype: of its first floating tensor.
        flops: of one call, of products and convolutions, by torch's formulas.
        bytes: of all tensors that it reads or writes in one call, each once, twice what it changes in place.
        calls: in one call of the function.
        seconds: of all of them.
    """

    kind: str
    dtype: torch.dtype
    flops: float
    bytes: float
    calls: int = 0
    seconds: float = 0.0

    def bound(self, tops: Mapping[torch.dtype, float], copied: float) -> float:
        """Seconds that all calls take at least, at the best product and the best copy."""
        return self.calls * max(self.flops / tops.get(self.dtype, tops[torch.float32]), self.bytes / copied)


@dataclass
class Kernels:
    """A class of operations: sums over them, and of `good` those that reach `GOOD` of their own bound."""

    calls: int = 0
    seconds: float = 0.0
    flops: float = 0.0
    bytes: float = 0.0
    bound: float = 0.0
    good: float = 0.0


def kind(name: str) -> str:
    """The class of an operation, ``aten::...``."""
    return next((c for c, words in CLASSES.items() if any(word in name for word in words)), ELEMENTWISE)


class Traffic(TorchDispatchMode):
    """Names what is dispatched for the profiler and counts its operations and bytes; views move nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, Operation] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.is_view:
            return func(*args, **kwargs)
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        packet = func._overloadpacket
        shapes = ",".join(f"{tuple(t.shape)}{t.dtype}{t.stride()}" for t in inputs[:4])
        key = f"{MARK}{packet.__name__} {len(inputs)} {shapes}"
        with record_function(key):
            out = func(*args, **kwargs)
        outputs = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        if not inputs and not outputs:
            return out
        if key not in self.found:
            known = {id(t) for t in inputs}
            moved = [*inputs, *(t for t in outputs if id(t) not in known), *_written(func, args)]
            size = sum(t.numel() * t.element_size() for t in moved)
            dtypes = [t.dtype for t in (*inputs, *outputs) if t.is_floating_point()]
            operations = _operations(packet, args, kwargs, out)
            own = Operation(kind(f"aten::{packet.__name__}"), (dtypes or [torch.float32])[0], operations, size)
            self.found[key] = own
        self.found[key].calls += 1
        return out


def _written(func: Any, args: Any) -> list[Tensor]:
    """Tensors that an operation changes in place, of which it reads and writes every byte."""
    changed = [
        value
        for own, value in zip(func._schema.arguments, args, strict=False)
        if own.alias_info is not None and own.alias_info.is_write
    ]
    return [t for t in tree_leaves(changed) if isinstance(t, Tensor)]


def _operations(packet: Any, args: Any, kwargs: Any, out: Any) -> float:
    if packet in FORMULAS:
        return FORMULAS[packet](*(a.shape if isinstance(a, Tensor) else a for a in args))
    return flop_registry[packet](*args, **kwargs, out_val=out) if packet in flop_registry else 0


def operations(function: Callable[[], object], repeats: int, device: torch.device = CPU) -> list[Operation]:
    """Operations of one call of a function, which may take gradients; time is the mean over `repeats` calls."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with Traffic() as traffic:
        function()  # shapes that were never seen take longer
        for own in traffic.found.values():
            own.calls = 0
        with profile(activities=activities) as profiler:
            for _ in range(repeats):
                function()
            if on_gpu:
                torch.cuda.synchronize(device)
    for event in profiler.events():
        if event.name in traffic.found and str(event.device_type).endswith("CPU"):
            # On a CPU the name's own time holds what naming costs; what it calls does not.
            spent = event.device_time_total if on_gpu else sum(child.cpu_time_total for child in event.cpu_children)
            traffic.found[event.name].seconds += spent / 1e6 / repeats
    for own in traffic.found.values():
        own.calls //= repeats
    return [own for own in traffic.found.values() if own.seconds]


def classes(found: list[Operation], tops: Mapping[torch.dtype, float], copied: float) -> dict[str, Kernels]:
    """Class -> its sums, the one that takes longest first."""
    sums: dict[str, Kernels] = {}
    for own in found:
        into, bound = sums.setdefault(own.kind, Kernels()), own.bound(tops, copied)
        into.calls += own.calls
        into.seconds += own.seconds
        into.flops += own.calls * own.flops
        into.bytes += own.calls * own.bytes
        into.bound += bound
        into.good += own.seconds if bound >= GOOD * own.seconds else 0.0
    return dict(sorted(sums.items(), key=lambda item: -item[1].seconds))


HEADER = ["kernels", "ms", "share of kernels", "calls", "GFLOP", "GFLOP/s", "MB", "GB/s", "of the roofline"]
HEADER += [f"of its time in operations at {GOOD:.0%} of their own bound"]


def rows(sums: Mapping[str, Kernels]) -> list[list[object]]:
    """One row a class, and one of all."""
    whole = Kernels()
    for own in sums.values():
        for part in vars(whole):
            setattr(whole, part, getattr(whole, part) + getattr(own, part))
    found = []
    for name, own in [*sums.items(), ("**all**", whole)]:
        cells = [f"{1e3 * own.seconds:.2f}", f"{own.seconds / whole.seconds:.0%}", own.calls, f"{own.flops / 1e9:.3g}"]
        cells += [f"{own.flops / own.seconds / 1e9:.3g}", f"{own.bytes / 1e6:.3g}"]
        cells += [f"{own.bytes / own.seconds / 1e9:.3g}", f"{own.bound / own.seconds:.0%}"]
        found.append([name, *cells, f"{own.good / own.seconds:.0%}"])
    return found
