"""Guidance of the encode leg × guidance of the decode leg × tau, against the truth."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from safetensors.torch import save_file

from medshift.data.domains import EvaluationSet
from medshift.evaluate import score
from medshift.stages.job import Job
from medshift.stages.network import open_translator

SHOWN = 4  # views whose images are kept


def build(
    job: Job,
    *,
    source: str,
    target: str,
    role: str,
    views: int,
    taus: Sequence[float],
    scales: Sequence[float],
    batch: int,
) -> None:
    """Write scores.csv, one row a view, target (``target``, and ``source`` for A to A), scale of each leg, and tau.

    images.safetensors keeps the first views, half precision, by ``<target>/<tau>/<encode>/<decode>``.

    An encode leg serves every decode leg, so the cube costs one encode for each scale.

    Args:
        job: its inputs ``views`` and ``network``.
        source: domain translated from.
        target: domain translated to.
        role: ``validation`` or a tier.
        views: how many of it.
        taus: where the legs meet.
        scales: of guidance.
        batch: images translated at once.
    """
    model = open_translator(job.inputs["network"], job.device)
    some = EvaluationSet(job.inputs["views"], role, limit=views)
    images, rows, shown = some.exposure(source, 0), [], {}
    size = (images.shape[-2], images.shape[-1])
    for k, encode in enumerate(scales):
        parts = [model.encode(p.to(job.device), source, list(taus), guidance=encode) for p in images.split(batch)]
        for i, tau in enumerate(taus):
            for decode in scales:
                for domain in (source, target):
                    made = [model.decode(z[i], domain, tau, size=size, guidance=decode).float().cpu() for z in parts]
                    kept = torch.cat(made)[:SHOWN].half().contiguous()
                    shown[f"{domain}/{tau:g}/{encode:g}/{decode:g}"] = kept
                    labels = {"tau": tau, "encode": encode, "decode": decode}
                    rows.append(score(torch.cat(made), some, source, domain, method=model.name, **labels))
        job.progress((k + 1) / len(scales))
    pd.concat(rows).to_csv(job.folder / "scores.csv", index=False)
    save_file(shown, job.folder / "images.safetensors")
