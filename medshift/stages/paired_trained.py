"""Train a method on the pairs of a task, and watch its error on unseen heads while it learns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from medshift.codec import PatchCodec
from medshift.data.paired_tasks import TASKS, TaskViews
from medshift.methods import training
from medshift.pairwise import Pair
from medshift.stages.halves import PAIRED
from medshift.stages.job import Job
from medshift.stages.pair_training import VIEWS, Shown, Validation, digest, own_recipe, train_for_pair
from medshift.stages.paired_batches import Pairs, paired_batches
from medshift.stages.training import within_memory

STATISTICS = 400  # training pairs by which latents are standardised


def build(
    job: Job,
    *,
    task: str,
    kind: str,
    config: Mapping[str, Any],
    pairs: Pairs,
    images: int,
    checkpoint_every: int,
    knobs: Mapping[str, Any],
    seed: int,
) -> dict[str, str]:
    """Train, writing checkpoints, history.jsonl and watched.jsonl; resumes.

    Latents are patches of 2×2 pixels, standardised by source and target images of the task together: a mixing field
    mixes the two, so they need one scale.

    Args:
        job: its inputs ``views`` and ``paired``; ``proposed`` for pairs that MedShift proposes.
        task: one of `medshift.data.paired_tasks.TASKS`.
        kind: one of `medshift.methods_index.TRAINED`.
        config: entries of its configuration that differ from the defaults.
        pairs: whose pairs, see `medshift.stages.paired_batches`.
        images: seen in training, sources and targets together.
        checkpoint_every: images between checkpoints.
        knobs: of the translations that are watched.
        seed: of every random number.
    """
    known = TaskViews(task, job.inputs["paired"], PAIRED)
    codec = PatchCodec(2).fit(known.draw(STATISTICS, torch.Generator().manual_seed(0))).to(job.device)
    names = (TASKS[task].source, TASKS[task].target)
    views = TaskViews(task, job.inputs["views"], "validation", limit=VIEWS)
    shown = Shown(views.exposure(0)[0], views.clean()[1], views.open_field, names)

    def attempt(n: int, parts: int) -> None:
        torch.manual_seed(seed)
        method = training(kind, codec, Pair(*names, names), config)
        for module in method.modules().values():
            module.to(job.device)
        draw = paired_batches(
            task,
            pairs,
            n,
            paired=job.inputs["paired"],
            views=job.inputs["views"],
            proposed=job.inputs.get("proposed"),
            device=job.device,
        )
        watches = [Validation(job, method, codec, shown, images, knobs)]
        train_for_pair(
            job, method, draw, images=images, parts=parts, checkpoint_every=checkpoint_every, seed=seed, watches=watches
        )

    within_memory(job, own_recipe(kind).batch, attempt, multiple=2)  # a half of each domain
    return {f"{kind} on {task}, weights' SHA-256": digest(job)}
