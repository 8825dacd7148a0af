"""Drive `medshift.train.train` in a stage: progress lines, a history of losses, and the share of each process."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from medshift import checkpoint
from medshift.errors import ParameterError
from medshift.processes import World
from medshift.stages.job import Job
from medshift.train import StepRecord, Trainable, TrainConfig, train

LINES = 2000  # of history.jsonl at most

T = TypeVar("T")


def micro_batch(batch: int, accumulation: int) -> tuple[int, int]:
    """Images of a micro-batch and micro-batches of this process, the effective batch being ``batch``.

    Each of r processes takes accumulation / r of the micro-batches, so r processes see the numbers that one does;
    with more processes than micro-batches these are made smaller.

    Raises:
        ParameterError: the batch cannot be shared evenly.
    """
    size = World().size
    parts = accumulation if accumulation % size == 0 else accumulation * size
    if batch % parts:
        raise ParameterError(
            f"A batch of {batch} cannot be cut into {parts} equal parts ({size} processes, accumulation "
            f"{accumulation}); choose a batch that is a multiple of {parts}."
        )
    return batch // parts, parts // size


def within_memory(job: Job, batch: int, attempt: Callable[[int, int], T], *, multiple: int = 1) -> T:
    """Train in the fewest micro-batches that the GPU holds, found by trying.

    Where memory runs out before there is a checkpoint, the attempt is made again, from its start, with twice as many.
    A training that was stopped goes on with as many as it had. Random numbers belong to micro-batches, so their number
    is part of what comes out, as the rounding of another GPU is.

    Args:
        job: where.
        batch: images of a step.
        attempt: called with the images of a micro-batch and the micro-batches of this process; makes all anew.
        multiple: of which a micro-batch stays a multiple.

    Raises:
        torch.OutOfMemoryError: no smaller micro-batch can be tried: the last one already is of ``multiple`` images,
            there is a checkpoint, or other processes take part, who would not know.
        ParameterError: see `micro_batch`.
    """
    newest = checkpoint.latest(job.folder)
    accumulation = 1 if newest is None else int(checkpoint.load(newest, only=()).state["train"]["micro_batches"])
    while True:
        n, parts = micro_batch(batch, accumulation)
        try:
            return attempt(n, parts)
        except torch.OutOfMemoryError:
            if World().size > 1 or n % (2 * multiple) or checkpoint.latest(job.folder) is not None:
                raise
        # Outside of the handler: what the error's frames hold is free by now.
        accumulation *= 2
        warnings.warn(
            f"Memory ran out on {job.device} for {n} images at once; a batch of {batch} is now trained as "
            f"{accumulation} micro-batches of {n // 2}.",
            stacklevel=2,
        )


def fit(
    job: Job,
    method: Trainable,
    draw: Callable[..., Any],
    config: TrainConfig,
    *,
    watch: Callable[[StepRecord], None] = lambda record: None,
) -> None:
    """Train to the end, or from the last checkpoint to the end; losses go to history.jsonl.

    A training that has reached its end is left as it is, by however many processes it was done.

    Args:
        job: where; progress is told from the process of rank 0 alone.
        method: what to train.
        draw: the ``batches`` of `medshift.train.train`.
        config: how.
        watch: called with every record, for validation.
    """
    newest = checkpoint.latest(job.folder)
    if newest is not None and int(newest.name.rpartition("-")[2]) == config.steps:
        return
    first, history = World().rank == 0, job.folder / "history.jsonl"
    pending: list[StepRecord] = []
    every = max(1, config.steps // LINES)
    data = {name: folder.name for name, folder in job.inputs.items()}
    for record in train(method, draw, folder=job.folder, config=config, data=data):
        watch(record)
        pending.append(record)
        last = record.step % config.checkpoint_every == 0 or record.step == config.steps
        if first and (record.step % config.check_every == 0 or last):
            _append(history, [r for r in pending if r.step % every == 0])
            loss = float(next(iter(record.losses.values())))
            job.progress(record.step / config.steps, f"step {record.step}, loss {loss:.3f}")
            pending.clear()


def _append(history: Path, records: Sequence[StepRecord]) -> None:
    """Add one JSON line a record; a resumed run repeats the steps after its last checkpoint, the later line counts."""
    with history.open("a") as file:
        for r in records:
            row = {"step": r.step, "images": r.images, "learning_rate": r.learning_rate, "seconds": round(r.seconds, 4)}
            file.write(json.dumps(row | {name: round(float(loss), 6) for name, loss in r.losses.items()}) + "\n")
