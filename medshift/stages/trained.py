"""Train a method for one pair, and watch its error on unseen heads while it learns."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from medshift import checkpoint
from medshift.data.domains import EvaluationSet
from medshift.discriminator_watch import DiscriminatorWatch
from medshift.methods import open_training, training
from medshift.methods_index import BUILT_ON, TRAINED
from medshift.metrics.perceptual import mae
from medshift.metrics.structure import psnr
from medshift.network import VelocityNetwork
from medshift.pairwise import Pair, PairMethod, Recipe
from medshift.processes import World
from medshift.schedules import TrainConfig
from medshift.stages.calling import translated
from medshift.stages.codec import open_codec
from medshift.stages.halves import halves
from medshift.stages.images import RenderedImages, open_images
from medshift.stages.job import Job
from medshift.stages.training import fit, within_memory
from medshift.train import StepRecord
from medshift.translate import Codec

LOOKS = 25  # at the validation views, evenly over a training: five of them in its last fifth
VIEWS, BATCH = 16, 16


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
        recipe = method.recipe
        paired = str(job.inputs["paired"]) if method.needs_pairs else ""
        draw = halves(job.inputs["views"], source, target, n, device=job.device, data=job.data, paired=paired)
        steps = max(1, images // recipe.batch)
        plan = TrainConfig(
            steps=steps,
            seed=seed,
            schedule=recipe.schedule,
            warmup=recipe.warmup,
            clip_norm=recipe.clip_norm,
            ema_decay=recipe.ema_decay,
            accumulation=parts,
            checkpoint_every=max(1, checkpoint_every // recipe.batch),
        )
        watches: list[Callable[[StepRecord], None]] = []
        if isinstance(where, RenderedImages):
            watches.append(_Validation(job, method, codec, source, target, steps, knobs))
        if "discriminator" in method.optimizers():
            watches.append(DiscriminatorWatch(job.folder))

        def watch(record: StepRecord) -> None:
            for one in watches:
                one(record)

        fit(job, method, draw, plan, watch=watch)

    within_memory(job, _recipe(kind).batch, attempt, multiple=2)  # a half of each domain
    held = open_training(job.folder, nets=_nets(job, kind))
    kept = {f"{n}.{k}": v for n in held.kept for k, v in held.modules()[n].state_dict().items()}
    return {f"{kind}'s weights' SHA-256": checkpoint.weights_sha256(kept)}


def _recipe(kind: str) -> Recipe:
    module, method, _ = TRAINED[kind]
    return getattr(importlib.import_module(module), method).recipe


def _nets(job: Job, kind: str) -> dict[str, VelocityNetwork]:
    """The trained network that a method is built on, if it is."""
    if "base" not in job.inputs:
        return {}
    network = open_training(job.inputs["base"], device=job.device).modules()["network"]
    assert isinstance(network, VelocityNetwork)
    return {BUILT_ON[kind]: network}


class _Validation:
    """Writes errors to the truth on validation views, with the moving averages, evenly over a training."""

    def __init__(
        self,
        job: Job,
        method: PairMethod,
        codec: Codec,
        source: str,
        target: str,
        steps: int,
        knobs: Mapping[str, Any],
    ) -> None:
        self.job, self.method, self.codec, self.pair, self.knobs = job, method, codec, (source, target), knobs
        self.due = {max(1, round(steps * k / LOOKS)) for k in range(1, LOOKS + 1)}
        views = EvaluationSet(job.inputs["views"], "validation", limit=VIEWS)
        self.images, self.truth, self.mask = views.exposure(source, 0), views.clean(target), views.open_field

    def __call__(self, record: StepRecord) -> None:
        if record.step not in self.due or World().rank:
            return
        with averaged(self.method, record.averages), torch.random.fork_rng(devices=[]):
            translator = self.method.translator()
            output = translated(
                translator, self.codec, self.images, *self.pair, self.knobs, batch=BATCH, device=self.job.device
            )
        row: dict[str, float] = {"step": record.step, "images": record.images}
        row["mae"] = float(mae(output, self.truth, self.mask).mean())
        row["psnr"] = float(psnr(output, self.truth, self.mask).mean())
        with (self.job.folder / "watched.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")


@contextmanager
def averaged(method: PairMethod, averages: Mapping[str, Any]) -> Iterator[None]:
    """The method with its moving averages in place of its weights, and in evaluation mode; both undone at the end."""
    modules = method.modules()
    own = {name: {k: v.clone() for k, v in modules[name].state_dict().items()} for name in averages}
    modes = {name: module.training for name, module in modules.items()}
    try:
        for name, average in averages.items():
            modules[name].load_state_dict(average.module.state_dict())
        for module in modules.values():
            module.eval()
        yield
    finally:
        for name, state in own.items():
            modules[name].load_state_dict(state)
        for name, module in modules.items():
            module.train(modes[name])
