"""Translations of one pair of domains at every tau, kept as images: what the metrics of 04_tau_tradeoff are taken of.

Translating and judging are two stages, so that a change of a metric never translates anew.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from medshift.baselines.fresh_noise import FreshNoise
from medshift.data.domains import EvaluationSet
from medshift.stages.images import FolderImages, open_images
from medshift.stages.job import Job
from medshift.stages.network import open_translator
from medshift.translate import MedShift

MEDSHIFT, FRESH, CYCLE = "MedShift", "fresh noise", "cycle"


def build(
    job: Job,
    *,
    source: str,
    target: str,
    role: str,
    views: int,
    taus: Sequence[float],
    batch: int,
    fresh: bool,
    cycled: int,
    seed: int,
) -> None:
    """Write images.safetensors, half precision, by ``<method>/<tau>``, and nfe.json.

    Args:
        job: its inputs ``views`` and ``network``.
        source: domain translated from.
        target: domain translated to.
        role: ``validation`` or a tier; of a user's own images always the test images.
        views: the first so many of the role.
        taus: where the legs meet.
        batch: images translated at once.
        fresh: also decode from freshly noised sources (SDEdit on the same network), one draw.
        cycled: how many of the translations go back to the source again.
        seed: of the fresh noise.
    """
    model = open_translator(job.inputs["network"], job.device)
    images = source_images(job, source, role, views)
    noise = latent_noise(model, images, job.device, seed) if fresh else None
    outputs: dict[str, list[Tensor]] = {}
    for k, part in enumerate(images.split(batch)):
        drawn = None if noise is None else noise[k * batch : (k + 1) * batch].to(job.device)
        for name, made in _translate(model, part.to(job.device), source, target, taus, drawn):
            outputs.setdefault(name, []).append(made.half().cpu())
        job.progress((k + 1) / (-(-len(images) // batch) + bool(cycled)))
    found = {name: torch.cat(parts).contiguous() for name, parts in outputs.items()}
    for tau in taus if cycled else ():
        there = found[f"{MEDSHIFT}/{tau:g}"][:cycled].float()
        back = [model.translate(part.to(job.device), target, source, tau=tau) for part in there.split(batch)]
        found[f"{CYCLE}/{tau:g}"] = torch.cat(back).half().cpu().contiguous()
    save_file(found, job.folder / "images.safetensors")
    nfe = {MEDSHIFT: {f"{t:g}": model.nfe(t) for t in taus}, FRESH: {f"{t:g}": model.nfe(t) // 2 for t in taus}}
    (job.folder / "nfe.json").write_text(json.dumps(nfe, indent=1))


def source_images(job: Job, source: str, role: str, views: int) -> Tensor:
    """The images (N,1,H,W) that are translated."""
    images = open_images(job.inputs["views"], job.data)
    if isinstance(images, FolderImages):
        return images.found.images(images.domains.index(source), "test", limit=views)
    return EvaluationSet(images.folder, role, limit=views).exposure(source, 0)


def _translate(
    model: MedShift,
    images: Tensor,
    source: str,
    target: str,
    taus: Sequence[float],
    noise: Tensor | None,
) -> list[tuple[str, Tensor]]:
    """Name and images (B,1,H,W) of every translation of one batch; the encode leg is run once."""
    size = (images.shape[-2], images.shape[-1])
    inverted = model.encode(images, source, taus)
    made = [
        (f"{MEDSHIFT}/{tau:g}", model.decode(z, target, tau, size=size)) for tau, z in zip(taus, inverted, strict=True)
    ]
    if noise is not None:
        other = FreshNoise(model)
        made += [(f"{FRESH}/{tau:g}", other.translate(images, source, target, tau=tau, noise=noise)) for tau in taus]
    return made


def latent_noise(model: MedShift, images: Tensor, device: str, *seed: int) -> Tensor:
    """Standard normal noise for the latents of ``images`` (N,1,H,W), drawn on the CPU: alike on every device."""
    one = model.codec.encode(images[:1].to(device))
    return noise_of((len(images), *one.shape[1:]), *seed)


def noise_of(shape: tuple[int, ...], *seed: int) -> Tensor:
    """Standard normal noise of a shape, named by one or more numbers."""
    state = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> np.uint64(1))
    return torch.randn(shape, generator=torch.Generator().manual_seed(state))


def load_sweep(folder: Path) -> dict[str, dict[float, Tensor]]:
    """Method -> tau -> images (N,1,H,W), float32, of a finished sweep."""
    found: dict[str, dict[float, Tensor]] = {}
    for name, images in load_file(folder / "images.safetensors").items():
        method, _, tau = name.rpartition("/")
        found.setdefault(method, {})[float(tau)] = images.float()
    return {method: dict(sorted(by_tau.items())) for method, by_tau in found.items()}
