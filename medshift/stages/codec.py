"""Give a codec the statistics of its latents on the training images."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from medshift import checkpoint
from medshift.codec import KLCodec, PatchCodec, from_description
from medshift.errors import ParameterError
from medshift.stages.autoencoder import load_autoencoder
from medshift.stages.images import STATISTICS_IMAGES, open_images
from medshift.stages.job import Job

ROOT = Path(__file__).resolve().parents[2]  # a relative folder of weights is one of this checkout


def build(job: Job, *, kind: str, factor: int, folder: str = "", weights: str = "") -> dict[str, str]:
    """Write a checkpoint of the codec alone.

    Args:
        job: its input ``views`` holds the images, ``autoencoder`` the weights of kind ``kl``.
        kind: ``patch``, ``kl`` or ``pretrained``.
        factor: pixels a latent pixel spans, for ``patch``.
        folder: of a pretrained autoencoder.
        weights: SHA-256 of that one's files, see `weights_of`.
    """
    made: PatchCodec | KLCodec
    if kind == "patch":
        made = PatchCodec(factor)
    elif kind == "kl":
        made = load_autoencoder(job.inputs["autoencoder"])
    elif kind == "pretrained":
        made = KLCodec.from_local(ROOT / folder)
    else:
        raise ParameterError(f"No codec is called {kind!r}; there are patch, kl and pretrained.")
    images = open_images(job.inputs["views"], job.data).training(STATISTICS_IMAGES)
    made.fit(part for some in images for part in some.split(32))
    checkpoint.save(job.folder, 0, {"codec": made.tensors()}, {"codec": made.describe()})
    return {"codec's fingerprint": made.fingerprint()}


def weights_of(folder: str) -> str:
    """SHA-256 of the weight files in a folder of a pretrained autoencoder; empty where there are none."""
    digest = hashlib.sha256()
    files = sorted((ROOT / folder).glob("*.safetensors"))
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest() if files else ""


def open_codec(folder: Path, device: str = "cpu") -> PatchCodec | KLCodec:
    """The codec of a finished stage."""
    held = checkpoint.load(folder)
    with torch.no_grad():
        return from_description(held.state["codec"], held.tensors["codec"]).to(device)
