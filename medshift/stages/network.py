"""Train the velocity network, and watch its loss on unseen heads while it learns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from medshift.errors import ParameterError
from medshift.fast import fast, load_fast
from medshift.flow_training import FlowMatching, load_flow
from medshift.network import VelocityNetwork, build_network, scaled
from medshift.processes import World
from medshift.schedules import TrainConfig
from medshift.stages.codec import open_codec
from medshift.stages.images import RenderedImages, open_images
from medshift.stages.job import Job
from medshift.stages.training import fit, micro_batch
from medshift.stages.watching import ValidationLoss
from medshift.train import StepRecord
from medshift.translate import MedShift

LOOKS = 10  # at the validation loss, evenly over a training


def build(
    job: Job,
    *,
    network: str,
    width: float = 1.0,
    images: int,
    batch: int,
    accumulation: int = 1,
    echo: int = 1,
    learning_rate: float,
    checkpoint_every: int,
    sigma_min: float = 0.0,
    label_dropout: float = 0.1,
    time_law: str = "logit-normal-mixed",
    seed: int,
) -> dict[str, str]:
    """Train, writing checkpoints, history.jsonl and validation.jsonl; resumes.

    Args:
        job: its inputs ``views`` and ``codec``.
        network: size by name, see `medshift.network.PRESETS`.
        width: factor of that size's channels.
        images: seen in training.
        batch: effective, over processes and micro-batches.
        accumulation: micro-batches of a step.
        echo: steps that an exposure serves, encoded once; see `medshift.train`.
        learning_rate: peak, of AdamW.
        checkpoint_every: steps between checkpoints.
        sigma_min: what is left of the noise at t = 1.
        label_dropout: probability of the null label.
        time_law: of the training times, see `medshift.flow.sample_time`.
        seed: of every random number.

    Raises:
        ParameterError: a micro-batch cannot be cut into ``echo`` equal parts.
    """
    source = open_images(job.inputs["views"], job.data)
    codec = open_codec(job.inputs["codec"], job.device)
    n, parts = micro_batch(batch, accumulation)
    if n % echo:
        raise ParameterError(
            f"A micro-batch of {n} images cannot be cut into {echo} equal parts, of which each step draws one anew; "
            "choose train.echo and train.batch so that it can."
        )
    torch.manual_seed(seed)
    shape = scaled(network, width)
    net = build_network(network, n_domains=len(source.domains), in_channels=codec.channels, **shape).to(job.device)
    options: dict[str, Any] = {"sigma_min": sigma_min, "label_dropout": label_dropout, "time_law": time_law}
    method = FlowMatching(net, codec, source.domains, learning_rate=learning_rate, **options)
    steps = max(1, images // batch)
    config = TrainConfig(steps=steps, seed=seed, checkpoint_every=checkpoint_every, accumulation=parts, echo=echo)
    fit(job, method, source.batches(n // echo, job.device), config, watch=_watcher(job, source, codec, steps))
    return {"weights' SHA-256": load_flow(job.folder).sha256}


def _watcher(job: Job, source: Any, codec: Any, steps: int) -> Any:
    """What writes the validation loss of the moving average ten times in a training, from rank 0."""
    if not isinstance(source, RenderedImages) or World().rank:
        return lambda record: None
    loss, due = ValidationLoss(source.folder, codec), {round(steps * k / LOOKS) for k in range(1, LOOKS + 1)}

    def watch(record: StepRecord) -> None:
        if record.step not in due:
            return
        network = record.averages["network"].module
        assert isinstance(network, VelocityNetwork)
        row = {"step": record.step, "images": record.images, "by_head": loss(fast(network))}
        with (job.folder / "validation.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    return watch


def open_translator(folder: Path, device: str = "cpu") -> MedShift:
    """The trained model of a finished stage, around a fast velocity: see `medshift.fast.load_fast`."""
    return load_fast(folder, device=device)
