"""Time, operations and bytes of each class of kernels of a function, and the machine's best copy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from measuring import now
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
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
    "copies and casts": ("copy", "_to_copy", "clone", "cat", "contiguous"),
    "views": ("view", "split", "chunk", "permute", "transpose", "unbind", "slice", "select", "expand", "as_strided"),
}
ELEMENTWISE = "elementwise"


@dataclass
class Kernels:
    """A class of kernels, for one call of the function.

    Args:
        calls: operations.
        seconds: that they took.
        flops: of products and convolutions, by torch's formulas.
        bytes: of all tensors that they read or wrote, each once.
    """

    calls: int = 0
    seconds: float = 0.0
    flops: float = 0.0
    bytes: float = 0.0


def kind(name: str) -> str:
    """The class of an operation, ``aten::...``."""
    return next((c for c, words in CLASSES.items() if any(word in name for word in words)), ELEMENTWISE)


class Traffic(TorchDispatchMode):
    """Operations and bytes of what is dispatched, by class; views move nothing and are left out."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, Kernels] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        outputs = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if not func.is_view and outputs:
            own = self.found.setdefault(kind(f"aten::{func._overloadpacket.__name__}"), Kernels())
            own.calls += 1
            own.bytes += sum(t.numel() * t.element_size() for t in (*inputs, *outputs))
            own.flops += _operations(func._overloadpacket, args, kwargs, out)
        return out


def _operations(packet: Any, args: Any, kwargs: Any, out: Any) -> float:
    if packet in FORMULAS:
        return FORMULAS[packet](*(a.shape if isinstance(a, Tensor) else a for a in args))
    return flop_registry[packet](*args, **kwargs, out_val=out) if packet in flop_registry else 0


def kernel_classes(function: Callable[[], object], repeats: int) -> dict[str, Kernels]:
    """Class -> its kernels, for one call; time is the mean over `repeats` calls."""
    with torch.no_grad(), Traffic() as traffic:
        function()
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(repeats):
            function()
    for event in profiler.events():
        # An operation that calls others is told with them; those outermost are counted, whatever they call.
        if event.cpu_parent is None and event.name.startswith("aten::"):
            own = kind(_innermost(event))
            if own in traffic.found:
                traffic.found[own].seconds += event.cpu_time_total / 1e6 / repeats
    return {name: found for name, found in traffic.found.items() if found.seconds}


def _innermost(event: Any) -> str:
    """The name of the longest operation inside an event: what a convenience function comes down to."""
    while event.cpu_children:
        event = max(event.cpu_children, key=lambda child: child.cpu_time_total)
        if kind(event.name) != ELEMENTWISE:
            return str(event.name)
    return str(event.name)


def best_copy() -> float:
    """The best bytes/s of a copy here and now, reading and writing, of 64 MiB that no cache holds."""
    source = torch.randn(2**24)
    target, best = torch.empty_like(source), 0.0
    for _ in range(7):
        start = now()
        target.copy_(source)
        best = max(best, 2 * 4 * len(source) / (now() - start))
    return best
