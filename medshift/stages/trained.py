"""Train a method for one pair, and watch its error on unseen heads while it learns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from medshift.data.domains import EvaluationSet
from medshift.methods import open_training, training
from medshift.methods_index import BUILT_ON
from medshift.network import VelocityNetwork
from medshift.pairwise import Pair
from medshift.stages.codec import open_codec
from medshift.stages.halves import halves
from medshift.stages.images import RenderedImages, open_images
from medshift.stages.job import Job
from medshift.stages.pair_training import VIEWS, Shown, Validation, digest, own_recipe, train_for_pair
from medshift.stages.training import within_memory


def build(
    job: Job,
    *,
    kind: str,
    config: Mapping[str, Any],
    source: str,
    target: str,
    images: int,
    checkpoint_every: int,
    knobs: Mapping[str, Any],
    seed: int,
) -> dict[str, str]:
    """Train, writing checkpoints, history.jsonl and watched.jsonl; resumes.

    Where a GPU does not hold a batch it is taken in smaller parts, see `within_memory`; a method that couples the
    images of a batch, as by optimal transport, then couples fewer at a time.

    Args:
        job: its inputs ``views`` and ``codec``; ``paired`` views, or the ``base`` it is built on, where needed.
        kind: one of `medshift.methods.TRAINED`.
        config: entries of its configuration that differ from the defaults.
        source: domain translated from.
        target: domain translated to.
        images: seen in training, of both domains together.
        checkpoint_every: images between checkpoints.
        knobs: of the translations that are watched.
        seed: of every random number.
    """
    where = open_images(job.inputs["views"], job.data)

    def attempt(n: int, parts: int) -> None:
        torch.manual_seed(seed)
        codec = open_codec(job.inputs["codec"], job.device)
        method = training(kind, codec, Pair(source, target, where.domains), config, **_nets(job, kind))
        for module in method.modules().values():
            module.to(job.device)
        paired = str(job.inputs["paired"]) if method.needs_pairs else ""
        draw = halves(job.inputs["views"], source, target, n, device=job.device, data=job.data, paired=paired)
        watches = []
        if isinstance(where, RenderedImages):
            views = EvaluationSet(job.inputs["views"], "validation", limit=VIEWS)
            shown = Shown(views.exposure(source, 0), views.clean(target), views.open_field, (source, target))
            watches.append(Validation(job, method, codec, shown, images, knobs))
        train_for_pair(
            job, method, draw, images=images, parts=parts, checkpoint_every=checkpoint_every, seed=seed, watches=watches
        )

    within_memory(job, own_recipe(kind).batch, attempt, multiple=2)  # a half of each domain
    return {f"{kind}'s weights' SHA-256": digest(job, _nets(job, kind))}


def _nets(job: Job, kind: str) -> dict[str, VelocityNetwork]:
    """The trained network that a method is built on, if it is."""
    if "base" not in job.inputs:
        return {}
    network = open_training(job.inputs["base"], device=job.device).modules()["network"]
    assert isinstance(network, VelocityNetwork)
    return {BUILT_ON[kind]: network}
