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
from medshift.stages.training import fit, micro_batch


def build(job: Job, *, widths: Sequence[int], channels: int, images: int, batch: int, seed: int) -> dict[str, str]:
    """Train, writing checkpoints and history.jsonl; resumes.

    Args:
        job: its input ``views`` holds the images.
        widths: of the levels, each halving the image.
        channels: of the latents.
        images: seen in training.
        batch: images of a step.
        seed: of every random number.
    """
    n, accumulation = micro_batch(batch, 1)
    draw = open_images(job.inputs["views"], job.data).batches(n, job.device)
    steps = max(1, images // batch)
    torch.manual_seed(seed)
    method = KLTraining(KLCodec.build(tuple(widths), channels).to(job.device), warmup=int(0.5 * steps))
    config = TrainConfig(steps=steps, seed=seed, checkpoint_every=max(1, steps // 4), accumulation=accumulation)
    fit(job, method, draw, config)
    return {"autoencoder's SHA-256": weights_sha256(load_autoencoder(job.folder).state_dict())}


def load_autoencoder(folder: Path) -> KLCodec:
    """The autoencoder of a finished stage, statistics of its latents not yet measured."""
    return load_codec(folder)
