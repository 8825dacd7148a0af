"""Pairs that MedShift proposes: unpaired training images of the source, and its translations of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import save_file

from medshift.data.domains import TrainingSet
from medshift.data.paired_tasks import TASKS
from medshift.stages.job import Job
from medshift.stages.network import open_translator


@torch.no_grad()
def build(job: Job, *, task: str, images: int, knobs: Mapping[str, Any], batch: int, seed: int) -> None:
    """Write pairs.safetensors: ``source`` and ``target`` (N,1,H,W), half precision.

    Args:
        job: its inputs ``views`` and ``network``.
        task: whose source and target are domains.
        images: N, of the training images of the source.
        knobs: of the translation.
        batch: images translated at once.
        seed: of the exposures.
    """
    model = open_translator(job.inputs["network"], job.device)
    source = TrainingSet(job.inputs["views"], 1).images(TASKS[task].source, images, seed=seed)
    made = []
    for start in range(0, len(source), batch):
        part = source[start : start + batch].to(job.device)
        made.append(model.translate(part, TASKS[task].source, TASKS[task].target, **knobs).float().cpu())
        job.progress((start + len(part)) / len(source))
    pairs = {"source": source, "target": torch.cat(made)}
    save_file({name: part.half().contiguous() for name, part in pairs.items()}, job.folder / "pairs.safetensors")
