"""Signals that ask a run to stop, and the processes that train together."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Sequence
from types import FrameType, TracebackType
from typing import Any, Self

import torch
from torch import Tensor, distributed, nn

__all__ = ["StopSignals", "World"]


class StopSignals:
    """A context that holds back SIGINT and SIGTERM, and on leaving raises the one received.

    Between entering and leaving, `received` is the number of the signal, or 0. A second signal of the kind acts at
    once, so nobody has to wait for a step that hangs. Outside the main thread signals cannot be caught, and the
    context does nothing.
    """

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()
        if self.received and (kind is None or kind is GeneratorExit):
            signal.raise_signal(self.received)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()


class World:
    """The processes of ``torch.distributed``, or this one alone where it is not initialised.

    Gradients are averaged in one call after the backward pass. That overlaps nothing with the computation, which
    costs a little time on several GPUs, and needs no wrapper around the modules.
    """

    def __init__(self) -> None:
        self.active = distributed.is_available() and distributed.is_initialized()
        self.rank = distributed.get_rank() if self.active else 0
        self.size = distributed.get_world_size() if self.active else 1

    def broadcast(self, modules: Iterable[nn.Module]) -> None:
        """Give every process the weights and buffers of rank 0."""
        if self.active:
            for module in modules:
                for tensor in module.state_dict().values():
                    distributed.broadcast(tensor, src=0)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors of one device by their means over the processes, in place."""
        if not self.active or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1).float() for tensor in tensors])
        distributed.all_reduce(flat)
        parts = (flat / self.size).split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def maximum(self, number: int, device: torch.device | str = "cpu") -> int:
        """The largest of a number that each process has."""
        if not self.active:
            return number
        value = torch.tensor(number, device=device)
        distributed.all_reduce(value, op=distributed.ReduceOp.MAX)
        return int(value)

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.active:
            distributed.barrier()
