"""Inverted latents z_tau of the same views in every domain: what 05_shared_manifold looks at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from medshift.data.domains import EvaluationSet
from medshift.flow import interpolate
from medshift.stages.images import FolderImages, open_images
from medshift.stages.job import Job
from medshift.stages.network import open_translator
from medshift.stages.sweep import latent_noise

INVERTED, NOISED, SWAPPED = "inverted", "noised", "swapped"


def build(
    job: Job,
    *,
    role: str,
    views: int,
    taus: Sequence[float],
    batch: int,
    swap: tuple[str, str],
    swapped: int,
    seed: int,
) -> None:
    """Write latents.safetensors, half precision.

    ``inverted/<domain>/<tau>`` is z_tau (N,C,h,w) of exposure 0 of every view, ``noised/<domain>/<tau>`` the same
    latents merely noised, (1-tau) ε + tau x, with noise of their own. ``swapped/<whose>/<tau>`` are images of the
    second domain of ``swap`` decoded from the z_tau of ``own`` (that domain's) and of ``other`` (the first's).

    Args:
        job: its inputs ``views`` and ``network``.
        role: ``validation`` or a tier; of a user's own images always the test images.
        views: the first so many of the role.
        taus: where the encode leg stops.
        batch: images encoded at once.
        swap: two domains.
        swapped: how many views are decoded for it.
        seed: of the noise.
    """
    model = open_translator(job.inputs["network"], job.device)
    domains = model.domain_names or ()
    found: dict[str, Tensor] = {}
    for number, domain in enumerate(domains):
        images = _images(job, domain, role, views)
        z: list[list[Tensor]] = [[] for _ in taus]
        latents: list[Tensor] = []
        for part in images.split(batch):
            latents.append(model.codec.encode(part.to(job.device)).cpu())
            for i, z_tau in enumerate(model.encode(part.to(job.device), domain, taus)):
                z[i].append(z_tau.half().cpu())
        for i, tau in enumerate(taus):
            noise = latent_noise(model, images, job.device, seed, number, i)
            found[f"{INVERTED}/{domain}/{tau:g}"] = torch.cat(z[i]).contiguous()
            found[f"{NOISED}/{domain}/{tau:g}"] = interpolate(torch.cat(latents), noise, torch.tensor(tau)).half()
        job.progress((number + 1) / (len(domains) + 1))
    for whose, domain in (("other", swap[0]), ("own", swap[1])):
        for tau in taus:
            some = found[f"{INVERTED}/{domain}/{tau:g}"][:swapped].float()
            made = [model.decode(part.to(job.device), swap[1], tau) for part in some.split(batch)]
            found[f"{SWAPPED}/{whose}/{tau:g}"] = torch.cat(made).half().cpu().contiguous()
    save_file(found, job.folder / "latents.safetensors")


def _images(job: Job, domain: str, role: str, views: int) -> Tensor:
    images = open_images(job.inputs["views"], job.data)
    if isinstance(images, FolderImages):
        return images.found.images(images.domains.index(domain), "test", limit=views)
    return EvaluationSet(images.folder, role, limit=views).exposure(domain, 0)


def load_latents(folder: Path, kind: str) -> dict[str, dict[float, Tensor]]:
    """Domain (or whose) -> tau -> tensor, float32, of one kind."""
    found: dict[str, dict[float, Tensor]] = {}
    for name, tensor in load_file(folder / "latents.safetensors").items():
        this, whose, tau = name.split("/")
        if this == kind:
            found.setdefault(whose, {})[float(tau)] = tensor.float()
    return {whose: dict(sorted(by_tau.items())) for whose, by_tau in found.items()}
