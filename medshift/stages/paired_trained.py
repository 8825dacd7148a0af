"""Train a method on the pairs of a task, and watch its error on unseen heads while it learns."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import torch

from medshift import checkpoint
from medshift.codec import PatchCodec
from medshift.data.paired_tasks import TASKS, TaskViews
from medshift.discriminator_watch import DiscriminatorWatch
from medshift.methods import open_training, training
from medshift.metrics.perceptual import mae
from medshift.metrics.structure import psnr
from medshift.pairwise import Pair, PairMethod
from medshift.processes import World
from medshift.schedules import TrainConfig
from medshift.stages.calling import translated
from medshift.stages.halves import PAIRED
from medshift.stages.job import Job
from medshift.stages.paired_batches import Pairs, paired_batches
from medshift.stages.trained import LOOKS, averaged
from medshift.stages.training import fit, micro_batch
from medshift.train import StepRecord
from medshift.translate import Codec

STATISTICS = 400  # training pairs by which latents are standardised
VIEWS, BATCH = 16, 16


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
    torch.manual_seed(seed)
    names = (TASKS[task].source, TASKS[task].target)
    method = training(kind, codec, Pair(*names, names), config)
    for module in method.modules().values():
        module.to(job.device)
    recipe = method.recipe
    n, parts = micro_batch(recipe.batch, 1)
    draw = paired_batches(
        task,
        pairs,
        n,
        paired=job.inputs["paired"],
        views=job.inputs["views"],
        proposed=job.inputs.get("proposed"),
        device=job.device,
    )
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
    watches: list[Callable[[StepRecord], None]] = [_Validation(job, method, codec, task, steps, knobs)]
    if "discriminator" in method.optimizers():
        watches.append(DiscriminatorWatch(job.folder))

    def watch(record: StepRecord) -> None:
        for one in watches:
            one(record)

    fit(job, method, draw, plan, watch=watch)
    held = open_training(job.folder)
    kept = {f"{n}.{k}": v for n in held.kept for k, v in held.modules()[n].state_dict().items()}
    return {f"{kind} on {task}, weights' SHA-256": checkpoint.weights_sha256(kept)}


class _Validation:
    """Writes errors to the noise-free truth of validation heads, with the moving averages, evenly over a training."""

    def __init__(
        self, job: Job, method: PairMethod, codec: Codec, task: str, steps: int, knobs: Mapping[str, Any]
    ) -> None:
        self.job, self.method, self.codec, self.task, self.knobs = job, method, codec, TASKS[task], knobs
        self.due = {max(1, round(steps * k / LOOKS)) for k in range(1, LOOKS + 1)}
        views = TaskViews(task, job.inputs["views"], "validation", limit=VIEWS)
        self.images, self.truth, self.mask = views.exposure(0)[0], views.clean()[1], views.open_field

    def __call__(self, record: StepRecord) -> None:
        if record.step not in self.due or World().rank:
            return
        with averaged(self.method, record.averages), torch.random.fork_rng(devices=[]):
            output = translated(
                self.method.translator(),
                self.codec,
                self.images,
                self.task.source,
                self.task.target,
                self.knobs,
                batch=BATCH,
                device=self.job.device,
            )
        row: dict[str, float] = {"step": record.step, "images": record.images}
        row["mae"] = float(mae(output, self.truth, self.mask).mean())
        row["psnr"] = float(psnr(output, self.truth, self.mask).mean())
        with (self.job.folder / "watched.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
