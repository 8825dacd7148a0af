"""Train a KL autoencoder on the training views."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from medshift.checkpoint import weights_sha256
from medshift.codec import KLCodec
from medshift.codec_training import KLTraining, load_codec
from medshift.schedules import TrainConfig
from medshift.stages.images import open_images
from medshift.stages.job import Job
from medshift.stages.training import fit, within_memory


def build(job: Job, *, widths: Sequence[int], channels: int, images: int, batch: int, seed: int) -> dict[str, str]:
    """Train, writing checkpoints and history.jsonl; resumes. Where a GPU does not hold a batch: `within_memory`.

    Args:
        job: its input ``views`` holds the images.
        widths: of the levels, each halving the image.
        channels: of the latents.
        images: seen in training.
        batch: images of a step.
        seed: of every random number.
    """
    steps = max(1, images // batch)

    def attempt(n: int, parts: int) -> None:
        draw = open_images(job.inputs["views"], job.data).batches(n, job.device)
        torch.manual_seed(seed)
        method = KLTraining(KLCodec.build(tuple(widths), channels).to(job.device), warmup=int(0.5 * steps))
        config = TrainConfig(steps=steps, seed=seed, checkpoint_every=max(1, steps // 4), accumulation=parts)
        fit(job, method, draw, config)

    within_memory(job, batch, attempt)
    return {"autoencoder's SHA-256": weights_sha256(load_autoencoder(job.folder).state_dict())}


def load_autoencoder(folder: Path) -> KLCodec:
    """The autoencoder of a finished stage, statistics of its latents not yet measured."""
    return load_codec(folder)
