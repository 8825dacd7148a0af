"""Translations of views with an object no training head has, and of the same views without it."""

from __future__ import annotations

import torch
from safetensors.torch import save_file
from torch import Tensor

from medshift.data.domains import EvaluationSet
from medshift.stages.job import Job
from medshift.stages.network import open_translator

PRESENT, ABSENT = "present", "absent"


def build(job: Job, *, source: str, target: str, tau: float, exposures: int, batch: int) -> None:
    """Write images.safetensors, half precision: ``present`` and ``absent`` (exposures, N,1,H,W).

    Args:
        job: its inputs ``views``, ``untouched`` and ``network``.
        source: domain translated from.
        target: domain translated to.
        tau: where the legs meet.
        exposures: how often each view is taken and translated.
        batch: images translated at once.
    """
    model = open_translator(job.inputs["network"], job.device)
    found: dict[str, Tensor] = {}
    for done, (name, stage) in enumerate(((PRESENT, "views"), (ABSENT, "untouched"))):
        views = EvaluationSet(job.inputs[stage], "T3")
        images = torch.cat([views.exposure(source, k) for k in range(exposures)])
        parts = []
        for part in images.split(batch):
            parts.append(model.translate(part.to(job.device), source, target, tau=tau).half().cpu())
            job.progress((done + sum(map(len, parts)) / len(images)) / 2)
        found[name] = torch.cat(parts).unflatten(0, (exposures, len(views))).contiguous()
    save_file(found, job.folder / "images.safetensors")
