"""Solver × grid of times × tau at equal evaluations: what of a translation is tau's doing, and what the solver's?

Two things are measured. The agreement of A to B with the truth; and how much noise survives A to A, where an exact
solver is the identity whatever the network says: two exposures of one view differ by noise alone, so the spread of the
difference of their translations, over that of the exposures themselves, is the share of the noise that is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from medshift.data.domains import EvaluationSet
from medshift.evaluate import score, translate_taus
from medshift.metrics.structure import masked_mean
from medshift.stages.job import Job
from medshift.stages.network import open_translator


def build(
    job: Job,
    *,
    source: str,
    target: str,
    role: str,
    views: int,
    noise_views: int,
    taus: Sequence[float],
    solvers: Mapping[str, Mapping[str, Any]],
    batch: int,
) -> None:
    """Write scores.csv (source to target), and retention.csv (target to target), with the noise's std in latents.

    Args:
        job: its inputs ``views`` and ``network``.
        source: domain translated from.
        target: domain translated to, and the one whose noise is followed.
        role: ``validation`` or a tier.
        views: how many for the scores.
        noise_views: how many for the noise, each with two exposures.
        taus: where the legs meet.
        solvers: name -> solver, grid and steps.
        batch: images translated at once.
    """
    model = open_translator(job.inputs["network"], job.device)
    some = EvaluationSet(job.inputs["views"], role, limit=views)
    few = EvaluationSet(job.inputs["views"], role, limit=noise_views)
    pair = torch.cat([few.exposure(target, 0), few.exposure(target, 1)])
    first, second = model.codec.encode(pair.to(job.device)).float().cpu().flatten(1).chunk(2)
    noise = ((first - second).square().mean(dim=1) / 2).sqrt()
    scores, kept = [], []
    for k, (name, solver) in enumerate(solvers.items()):
        outputs = translate_taus(
            model, some.exposure(source, 0), source, target, taus, batch, device=job.device, **solver
        )
        again = translate_taus(model, pair, target, target, taus, batch, device=job.device, **solver)
        for tau, output, same in zip(taus, outputs, again, strict=True):
            labels: dict[str, Any] = {"tau": tau, "solver": name, "nfe": model.nfe(tau, **solver)}
            scores.append(score(output, some, source, target, method=model.name, **labels))
            share = noise_spread(same, few.open_field) / noise_spread(pair, few.open_field)
            here = few.table[["head", "region"]].assign(view=range(len(few)), retention=share.numpy(), **labels)
            kept.append(here.assign(noise=noise.numpy()))
        job.progress((k + 1) / len(solvers))
    pd.concat(scores).to_csv(job.folder / "scores.csv", index=False)
    pd.concat(kept).to_csv(job.folder / "retention.csv", index=False)


def noise_spread(pair: Tensor, mask: Tensor) -> Tensor:
    """Standard deviation (N,) of the noise, from two exposures (2N,1,H,W) of N views, inside ``mask`` (N,1,H,W)."""
    first, second = pair.chunk(2)
    return (masked_mean((first - second) ** 2, mask) / 2).sqrt()
