"""One training loop for every trainable method.

`train` is a generator: each optimiser step yields a `StepRecord`, and logging, pictures and stopping early live in
the caller's ``for`` loop. It drives anything that has the four methods of `Trainable`.

What of an example does not depend on the weights, such as its latent, a method may do beforehand (`Preparing`). With
``echo`` = e every example then serves e steps in a row, each time beside others and with other noise and times: a batch
is e parts, of which one is new (data echoing, Choi et al. 2019, arXiv:1907.05550).

Every random number of a step comes from generators seeded by (seed, step, index of the micro-batch over all ranks).
Nothing else is random, the learning rate is a function of the step, and a checkpoint holds weights, averages and
moments exactly. So a run that was stopped anywhere and started again by the same call ends with the same weights, bit
for bit, on the same hardware; and r ranks with a micro-batches each see the numbers that one rank with r·a sees.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from medshift import checkpoint
from medshift.errors import CheckpointError, TrainingError
from medshift.processes import StopSignals, World
from medshift.schedules import DRAWS, TrainConfig, average_decay, schedule, step_seed, training_dtype

__all__ = ["Preparing", "StepRecord", "TrainConfig", "Trainable", "train"]

Batch = Sequence[Tensor]  # the first entry is (B, ...)
Batches = Callable[[int, torch.Generator], Batch]


class Trainable(Protocol):
    """What the loop asks of a method.

    Attributes:
        averaged: names of the modules whose moving average is kept.
    """

    averaged: tuple[str, ...]

    def modules(self) -> Mapping[str, nn.Module]:
        """All modules, trained or frozen, by name: a checkpoint holds them."""

    def optimizers(self) -> Mapping[str, Optimizer]:
        """Optimisers by name, at their peak learning rate."""

    def step(self, batch: Batch, generator: torch.Generator) -> Mapping[str, Tensor]:
        """Named losses (): each optimiser descends the one of its own name, if there; the others are logged."""

    def state(self) -> dict[str, Any]:
        """JSON values that say what this is and rebuild it: kind, architecture, codec, hyperparameters."""


@runtime_checkable
class Preparing(Protocol):
    """A `Trainable` whose `step` takes what `prepare` makes of a batch."""

    def prepare(self, batch: Batch) -> Batch:
        """A batch of as many examples, by no weight that is learnt; without gradients, in the run's precision."""


@dataclasses.dataclass(frozen=True)
class StepRecord:
    """What one optimiser step did. Tensors are left on the device: reading one waits for it.

    Args:
        step: optimiser steps done, from 1.
        images: images seen by all processes since the start of the run.
        losses: name -> (), means over micro-batches and processes.
        grad_norm: optimiser -> norm of its gradient before clipping, ().
        learning_rate: factor of the schedule times the peak rate of the first optimiser.
        seconds: wall-clock time of the step; on a GPU, of issuing it.
        averages: the moving averages as they are now, for pictures and validation.
    """

    step: int
    images: int
    losses: dict[str, Tensor]
    grad_norm: dict[str, Tensor]
    learning_rate: float
    seconds: float
    averages: Mapping[str, AveragedModel]


def train(
    method: Trainable,
    batches: Batches,
    *,
    folder: Path | str,
    config: TrainConfig,
    data: Mapping[str, Any] | None = None,
) -> Iterator[StepRecord]:
    """Train a method, from its last checkpoint in `folder` where there is one.

    SIGINT and SIGTERM end the step in hand, write a checkpoint and then act as they would have.

    Args:
        method: what to train; its modules are on the device to use.
        batches: ``batches(step, generator)`` makes a micro-batch, or with ``echo`` = e an e-th of one, every random
            choice of it from the generator, which is one of the modules' device.
        folder: of the run's checkpoints.
        config: how to train.
        data: JSON values that say what the batches are made of; a run resumes only with the same.

    Yields:
        One record per optimiser step done by this call; none if the run is complete.

    Raises:
        CheckpointError: the folder holds another run, or a checkpoint is damaged or cannot be written.
        ParameterError: bfloat16 is asked for of a device without it.
        TrainingError: a loss or gradient is no longer finite.
    """
    run = _Run(method, batches, Path(folder), config, data or {})
    run.resume()
    with StopSignals() as stop:
        while run.step < config.steps:
            record = run.advance()
            due = run.step % config.checkpoint_every == 0 or run.step == config.steps
            if due:
                run.save()
            elif run.step % config.check_every == 0:
                run.check_finite()
            yield record
            stop.received = run.world.maximum(stop.received, run.device)
            if stop.received:
                if not due:
                    run.save()
                return


class _Run:
    """The state of one run: counters, averages, and the losses not yet looked at."""

    def __init__(
        self, method: Trainable, batches: Batches, folder: Path, config: TrainConfig, data: Mapping[str, Any]
    ) -> None:
        self.method, self.batches, self.folder, self.config = method, batches, folder, config
        self.modules, self.optimizers = method.modules(), method.optimizers()
        self.device = next(next(iter(self.modules.values())).parameters()).device
        self.dtype = training_dtype(config.precision, self.device)
        self.world = World()
        self.world.broadcast(self.modules.values())
        self.averages: dict[str, AveragedModel] = {}
        for name in method.averaged:
            self.averages[name] = AveragedModel(self.modules[name]).requires_grad_(False).eval()
        self.peaks = {name: [group["lr"] for group in o.param_groups] for name, o in self.optimizers.items()}
        self.step, self.images = 0, 0
        self.drawn: dict[tuple[int, int], Batch] = {}  # with echo: number of the draw, index -> examples still in use
        self.unchecked: list[tuple[int, Tensor]] = []
        self.identity = self._identity(data)

    def _identity(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """All that decides the weights; what may differ between two calls of one run is left out."""
        config = dataclasses.asdict(self.config)
        for name in ("checkpoint_every", "keep", "check_every", "accumulation", "precision"):
            del config[name]
        if config["echo"] == 1:  # as runs say that know of none
            del config["echo"]
        config["micro_batches"] = self.config.accumulation * self.world.size
        config["precision"] = str(self.dtype or torch.float32).removeprefix("torch.")
        config["learning_rate"] = self.peaks
        return json.loads(json.dumps({"train": config, "method": self.method.state(), "data": dict(data)}))

    def advance(self) -> StepRecord:
        """One optimiser step."""
        start = time.perf_counter()
        losses = self._backward()
        factor = schedule(self.step, self.config)
        norms: dict[str, Tensor] = {}
        for name, optimizer in self.optimizers.items():
            if name not in losses:
                continue
            parameters = _parameters(optimizer)
            self.world.average([p.grad for p in parameters if p.grad is not None])
            norms[name] = clip_grad_norm_(parameters, self.config.clip_norm)
            for group, peak in zip(optimizer.param_groups, self.peaks[name], strict=True):
                group["lr"] = factor * peak
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        for name, average in self.averages.items():
            average.multi_avg_fn = get_ema_multi_avg_fn(average_decay(self.step, self.config.ema_decay))
            average.update_parameters(self.modules[name])
        finite = torch.isfinite(torch.stack([*losses.values(), *norms.values()])).all()
        self.unchecked.append((self.step, finite))
        rate = factor * next(iter(self.peaks.values()))[0]
        return StepRecord(self.step, self.images, losses, norms, rate, time.perf_counter() - start, self.averages)

    def _backward(self) -> dict[str, Tensor]:
        """Gradients of all micro-batches, and the mean losses of all processes."""
        parts = self.config.accumulation
        total: dict[str, Tensor] = {}
        devices = [self.device] if self.device.type == "cuda" else []
        for part in range(parts):
            index = self.world.rank * parts + part
            seed = step_seed(self.config.seed, self.step, index)
            generator = torch.Generator(self.device).manual_seed(seed)
            # Dropout knows torch's global random state only: seed that too, and give it back as it was.
            with torch.random.fork_rng(devices):
                torch.manual_seed(seed)
                if self.config.echo == 1:
                    batch = self._prepared(self.step, generator)
                else:
                    batch = self._echoed(index)
                with self._precision():
                    losses = self.method.step(batch, generator)
                for name, optimizer in self.optimizers.items():
                    if name in losses:
                        torch.autograd.backward(losses[name] / parts, inputs=_parameters(optimizer))
            self.images += len(batch[0]) * self.world.size
            for name, loss in losses.items():
                total[name] = total.get(name, 0.0) + loss.detach().float() / parts
        self.world.average(list(total.values()))
        return total

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)

    def _prepared(self, number: int, generator: torch.Generator) -> Batch:
        batch = self.batches(number, generator)
        if not isinstance(self.method, Preparing):
            return batch
        with torch.no_grad(), self._precision():
            return self.method.prepare(batch)

    def _echoed(self, index: int) -> Batch:
        """Examples of the draws that this step and those around it share, joined.

        Step s uses draws s to s + e - 1. A draw is a function of its number, so a run that goes on makes those anew
        that it has forgotten.
        """
        numbers = range(self.step, self.step + self.config.echo)
        for number in numbers:
            if (number, index) not in self.drawn:
                seed = step_seed(self.config.seed, number, index, DRAWS)
                generator = torch.Generator(self.device).manual_seed(seed)
                self.drawn[number, index] = self._prepared(number, generator)
        parts = [self.drawn[number, index] for number in numbers]
        del self.drawn[self.step, index]
        return [torch.cat(same) for same in zip(*parts, strict=True)]

    def check_finite(self) -> None:
        """Raise `TrainingError` if a loss or gradient since the last check was NaN or infinite."""
        if not self.unchecked:
            return
        flags = torch.stack([finite for _, finite in self.unchecked]).tolist()
        bad = [step for (step, _), finite in zip(self.unchecked, flags, strict=True) if not finite]
        self.unchecked.clear()
        if bad:
            held = checkpoint.latest(self.folder)
            where = f"There is no checkpoint in {self.folder} yet"
            if held:
                where = f"The last good checkpoint is {held}, and the same call goes on from it"
            raise TrainingError(
                f"The loss or its gradient became NaN or infinite in step {bad[0]}; training has stopped. {where}. "
                "Check the images for NaN; if it stops at the same step again, start in a new folder with a smaller "
                "learning rate."
            )

    def save(self) -> None:
        """Write a checkpoint, unless a loss was not finite."""
        self.check_finite()
        if self.world.rank == 0:
            tensors = {name: module.state_dict() for name, module in self.modules.items()}
            tensors |= {f"{name}-ema": average.state_dict() for name, average in self.averages.items()}
            packed: dict[str, Any] = {}
            for name, optimizer in self.optimizers.items():
                moments: dict[str, Tensor] = {}
                packed[name] = checkpoint.pack(optimizer.state_dict(), moments)
                tensors[f"{name}-optimizer"] = moments
            state = {**self.identity, "images": self.images, "optimizers": packed}
            checkpoint.save(self.folder, self.step, tensors, state, keep=self.config.keep)
        self.world.barrier()

    def resume(self) -> None:
        """Go on from the newest checkpoint of the folder, if there is one."""
        path = checkpoint.latest(self.folder)
        if path is None:
            return
        held = checkpoint.load(path)
        mine, theirs = self.identity, {key: held.state.get(key) for key in self.identity}
        if differences := list(_differences(theirs, mine)):
            raise CheckpointError(
                f"{path} belongs to another run: {'; '.join(differences[:5])}. Run with its settings to go on with it, "
                "or choose another folder."
            )
        for name, module in self.modules.items():
            module.load_state_dict(held.tensors[name])
        for name, average in self.averages.items():
            average.load_state_dict(held.tensors[f"{name}-ema"])
        for name, optimizer in self.optimizers.items():
            moments = held.tensors[f"{name}-optimizer"]
            optimizer.load_state_dict(checkpoint.unpack(held.state["optimizers"][name], moments))
        self.step, self.images = held.step, held.state["images"]


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _differences(theirs: Any, mine: Any, path: str = "") -> Iterator[str]:
    if isinstance(theirs, dict) and isinstance(mine, dict):
        for key in sorted(theirs.keys() | mine.keys()):
            yield from _differences(theirs.get(key), mine.get(key), f"{path}.{key}" if path else key)
    elif theirs != mine:
        yield f"{path} is {theirs!r} there and {mine!r} here"
