"""What inverting a source without noise of its own does: the spectrum of z_tau, and of what comes out.

The same views enter as they are (one exposure), free of noise, and clamped, with a share of their pixels at exactly one
value as on a display that clips air. Each is inverted plainly and with forward-noised first steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from medshift.baselines.forward_noised import ForwardNoised
from medshift.data.domains import EvaluationSet
from medshift.evaluate import score
from medshift.flow import interpolate
from medshift.metrics.manifold import latent_spectrum
from medshift.stages.job import Job
from medshift.stages.kept import KeptViews
from medshift.stages.network import open_translator
from medshift.stages.sweep import latent_noise


def build(
    job: Job,
    *,
    source: str,
    target: str,
    role: str,
    views: int,
    taus: Sequence[float],
    starts: Sequence[float],
    clamped: float,
    batch: int,
    seed: int,
) -> None:
    """Write scores.csv, and spectra.csv of z_tau with what it would be if the source were merely noised.

    Args:
        job: its inputs ``views`` and ``network``.
        source: domain translated from.
        target: domain translated to.
        role: ``validation`` or a tier.
        views: how many of it.
        taus: where the legs meet.
        starts: times from which the ODE inverts; 1 is plain inversion.
        clamped: share of the pixels that are clipped to one bright value.
        batch: images translated at once.
        seed: of the forward noise.
    """
    model = open_translator(job.inputs["network"], job.device)
    some = KeptViews(job.inputs["views"], role, limit=views)
    rows, spectra = [], []
    versions = source_versions(some, source, clamped)
    noise = latent_noise(model, next(iter(versions.values())), job.device, seed).to(job.device)
    for done, (version, images) in enumerate(versions.items()):
        latent = model.codec.encode(images.to(job.device)).float().cpu()
        for start in starts:
            other = ForwardNoised(model, start)
            for tau in (t for t in taus if t <= start):
                z, output = [], []
                for part, drawn in zip(images.split(batch), noise.split(batch), strict=True):
                    z.append(other.encode(part.to(job.device), source, tau, noise=drawn))
                    made = model.decode(z[-1], target, tau, size=(part.shape[-2], part.shape[-1]))
                    output.append(made.float().cpu())
                labels: dict[str, Any] = {"version": version, "start": start, "tau": tau}
                found = torch.cat(z).float().cpu()
                spectra.append(_spectrum(found).assign(kind="inverted", std=float(found.std()), **labels))
                noised = interpolate(latent, noise.cpu(), torch.tensor(tau))
                spread = {"z_std": _std(found), "noised_std": _std(noised)}
                table = score(torch.cat(output), some, source, target, method=other.name, **labels)
                rows.append(table.assign(**spread))
                spectra.append(_spectrum(noised).assign(kind="noised", std=float(noised.std()), **labels))
        job.progress((done + 1) / len(versions))
    pd.concat(rows).to_csv(job.folder / "scores.csv", index=False)
    pd.concat(spectra).to_csv(job.folder / "spectra.csv", index=False)


def source_versions(views: EvaluationSet, source: str, clamped: float) -> dict[str, Tensor]:
    """The same views as one exposure, free of noise, and clamped at the level that the brightest share exceeds."""
    exposure, clean = views.exposure(source, 0), views.clean(source)
    level = torch.quantile(exposure.flatten(1), 1 - clamped, dim=1)[:, None, None, None]
    return {"one exposure": exposure, "noise-free": clean, "clamped": torch.minimum(exposure, level)}


def _std(z: Tensor) -> np.ndarray:
    """Standard deviation (N,) of each latent."""
    return z.flatten(1).std(dim=1).numpy()


def _spectrum(z: Tensor) -> pd.DataFrame:
    frequency, power = latent_spectrum(z)
    return pd.DataFrame({"frequency": frequency.numpy(), "power": power.mean(dim=0).numpy()})
