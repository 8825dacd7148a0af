"""What training for one pair of domains is, whoever draws its batches: its schedule and what is watched."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from medshift import checkpoint
from medshift.discriminator_watch import DiscriminatorWatch
from medshift.methods import open_training
from medshift.methods_index import TRAINED
from medshift.metrics.perceptual import mae
from medshift.metrics.structure import psnr
from medshift.network import VelocityNetwork
from medshift.pairwise import PairMethod, Recipe
from medshift.processes import World
from medshift.schedules import TrainConfig
from medshift.stages.calling import translated
from medshift.stages.job import Job
from medshift.stages.training import fit
from medshift.train import StepRecord
from medshift.translate import Codec

LOOKS = 25  # at the validation views, evenly over a training: five of them in its last fifth
VIEWS, BATCH = 16, 16


class Shown(NamedTuple):
    """Validation views to look at: images and truths (N,1,H,W), the open field (N,1,H,W), and the pair's names."""

    images: Tensor
    truth: Tensor
    mask: Tensor
    pair: tuple[str, str]


def own_recipe(kind: str) -> Recipe:
    """The recipe of a method of `medshift.methods_index.TRAINED` before its configuration is read."""
    module, method, _ = TRAINED[kind]
    return getattr(importlib.import_module(module), method).recipe


def train_for_pair(
    job: Job,
    method: PairMethod,
    draw: Callable[..., Any],
    *,
    images: int,
    parts: int,
    checkpoint_every: int,
    seed: int,
    watches: Sequence[Callable[[StepRecord], None]] = (),
) -> None:
    """Fit a method by its own recipe, writing checkpoints and history.jsonl; a discriminator is watched.

    Args:
        job: where.
        method: on the job's device.
        draw: batches, as `medshift.stages.training.fit` takes them.
        images: seen in training, of both domains together.
        parts: micro-batches of a step.
        checkpoint_every: images between checkpoints.
        seed: of every random number.
        watches: told every step.
    """
    recipe = method.recipe
    plan = TrainConfig(
        steps=steps_of(recipe, images),
        seed=seed,
        schedule=recipe.schedule,
        warmup=recipe.warmup,
        clip_norm=recipe.clip_norm,
        ema_decay=recipe.ema_decay,
        accumulation=parts,
        checkpoint_every=max(1, checkpoint_every // recipe.batch),
    )
    told = list(watches)
    if "discriminator" in method.optimizers():
        told.append(DiscriminatorWatch(job.folder))

    def watch(record: StepRecord) -> None:
        for one in told:
            one(record)

    fit(job, method, draw, plan, watch=watch)


def steps_of(recipe: Recipe, images: int) -> int:
    """Steps that see so many images, at least one."""
    return max(1, images // recipe.batch)


def digest(job: Job, nets: Mapping[str, VelocityNetwork] | None = None) -> str:
    """SHA-256 of the weights that a finished training keeps."""
    held = open_training(job.folder, nets=nets or {})
    return checkpoint.weights_sha256(
        {f"{n}.{k}": v for n in held.kept for k, v in held.modules()[n].state_dict().items()}
    )


class Validation:
    """Writes errors to the truth on validation views, with the moving averages, evenly over a training.

    Args:
        job: its folder gets watched.jsonl.
        method: in training.
        codec: of its translations.
        shown: views, up to `VIEWS` of them.
        images: seen in the whole training.
        knobs: of the translations.
    """

    def __init__(
        self, job: Job, method: PairMethod, codec: Codec, shown: Shown, images: int, knobs: Mapping[str, Any]
    ) -> None:
        self.job, self.method, self.codec, self.shown, self.knobs = job, method, codec, shown, knobs
        steps = steps_of(method.recipe, images)
        self.due = {max(1, round(steps * k / LOOKS)) for k in range(1, LOOKS + 1)}

    def __call__(self, record: StepRecord) -> None:
        if record.step not in self.due or World().rank:
            return
        shown = self.shown
        with averaged(self.method, record.averages), torch.random.fork_rng(devices=[]):
            output = translated(
                self.method.translator(),
                self.codec,
                shown.images,
                *shown.pair,
                self.knobs,
                batch=BATCH,
                device=self.job.device,
            )
        row: dict[str, float] = {"step": record.step, "images": record.images}
        row["mae"] = float(mae(output, shown.truth, shown.mask).mean())
        row["psnr"] = float(psnr(output, shown.truth, shown.mask).mean())
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
