"""Batches of the paired tasks: true pairs, or pairs that an unpaired method proposes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file
from torch import Tensor

from medshift.coupling import coupling_features, minibatch_ot
from medshift.data.batches import sent
from medshift.data.paired_tasks import TASKS, TaskViews
from medshift.errors import ParameterError
from medshift.stages.halves import PAIRED, halves, own_generator

Pairs = Literal["true", "ot", "medshift"]
Draw = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]
UNPAIRED_TASK = "modality"  # whose source and target are domains, with unpaired training views


def paired_batches(
    task: str, pairs: Pairs, batch: int, *, paired: Path, views: Path, proposed: Path | None, device: str
) -> Draw:
    """The ``batches`` of a training: images (2B,1,H,W), sources first, and labels (2B,), which no paired method reads.

    Args:
        task: one of `medshift.data.paired_tasks.TASKS`.
        pairs: ``true``; ``ot``, unpaired views coupled by optimal transport of each batch; ``medshift``, sources with
            MedShift's translations of them.
        batch: 2B.
        paired: folder of the stage ``paired_views``.
        views: folder of the stage ``views``.
        proposed: folder of the stage ``proposed``, for ``medshift``.
        device: to put them on.

    Raises:
        ParameterError: an odd batch, or proposals for a task whose images are no domains.
    """
    if batch % 2 or batch < 2:
        raise ParameterError(f"A batch of {batch} has no two halves; choose an even number.")
    if pairs != "true" and task != UNPAIRED_TASK:
        raise ParameterError(f"Only the task {UNPAIRED_TASK} has unpaired views to propose pairs from, not {task}.")
    if pairs == "ot":
        return _coupled(halves(views, TASKS[task].source, TASKS[task].target, batch, device=device))
    labels = torch.tensor([0, 1]).repeat_interleave(batch // 2).to(device)
    if pairs == "medshift":
        assert proposed is not None
        return _proposed(load_file(proposed / "pairs.safetensors"), labels, device)
    known = TaskViews(task, paired, PAIRED)

    def draw(step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return sent(torch.cat(known.draw(batch // 2, own_generator(generator))), device), labels

    return draw


def _coupled(unpaired: Draw) -> Draw:
    """The target's half in the order of the exact optimal plan of the batch, by features of shape and place."""

    def draw(step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        images, labels = unpaired(step, generator)
        source, target = images.chunk(2)
        order = minibatch_ot(coupling_features(source), coupling_features(target))
        return torch.cat([source, target[order]]), labels

    return draw


def _proposed(held: dict[str, Tensor], labels: Tensor, device: str) -> Draw:
    n = len(labels) // 2

    def draw(step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        own = own_generator(generator)
        index = torch.randint(len(held["source"]), (n,), generator=own, device=own.device)
        flip = (torch.rand(n, generator=own, device=own.device) < 0.5)[:, None, None, None]
        parts = [held[name][index].float() for name in ("source", "target")]
        return sent(torch.cat([torch.where(flip, part.flip(-1), part) for part in parts]), device), labels

    return draw
