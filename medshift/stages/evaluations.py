"""How good a translation is with few evaluations of the network: solver × grid × steps at several tau.

Every candidate translates the same views, and so does the recipe as published, to which results compare it view by
view. The network is evaluated as `medshift.fast` arranges it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from medshift.data.domains import EvaluationSet
from medshift.evaluate import score
from medshift.fast import load_fast
from medshift.metrics.features import extractor
from medshift.metrics.realism import fid
from medshift.ode import integrate, leg_knots
from medshift.stages.job import Job
from medshift.translate import MedShift

COLUMNS = ["view", "head", "region", "psnr_clean", "ssim_clean"]


def build(
    job: Job,
    *,
    source: str,
    target: str,
    role: str,
    views: int,
    taus: Sequence[float],
    candidates: Mapping[str, Mapping[str, Any]],
    features: str,
    batch: int,
) -> None:
    """Write scores.csv (one row a view) and distances.csv (FID, of all heads and without each of them).

    Args:
        job: its inputs ``views`` and ``network``.
        source: domain translated from.
        target: domain translated to.
        role: ``validation`` or a tier.
        views: how many are translated; as many others of the target are the reference of the FID.
        taus: where the legs meet.
        candidates: name -> solver, grid and steps; of dopri5 the tolerance in place of these.
        features: extractor of the FID.
        batch: images translated at once.
    """
    model = load_fast(job.inputs["network"], device=job.device)
    every = EvaluationSet(job.inputs["views"], role, limit=2 * views)
    some = EvaluationSet(job.inputs["views"], role, limit=views)
    found = extractor(features, device=job.device)
    heads = every.table["head"].to_numpy()
    reference = found(every.exposure(target, 0)[len(some) :])
    scores, distances = [], []
    for k, (name, knobs) in enumerate(candidates.items()):
        for tau in taus:
            output, nfe = _translated(model, some.exposure(source, 0).to(job.device), source, target, tau, batch, knobs)
            labels: dict[str, Any] = {"tau": tau, "candidate": name, "nfe": nfe}
            table = score(output, some, source, target)[COLUMNS]
            scores.append(table.assign(**labels))
            theirs = found(output.clamp(-1.0, 1.0))
            for left_out, value in _distances(theirs, reference, heads[: len(some)], heads[len(some) :]):
                distances.append(labels | {"left_out": left_out, "fid": value})
        job.progress((k + 1) / len(candidates))
    pd.concat(scores).to_csv(job.folder / "scores.csv", index=False)
    pd.DataFrame(distances).to_csv(job.folder / "distances.csv", index=False)


@torch.no_grad()
def _translated(
    model: MedShift, images: Tensor, source: str, target: str, tau: float, batch: int, knobs: Mapping[str, Any]
) -> tuple[Tensor, float]:
    """Images (N,1,H,W) on the CPU, and evaluations an image: of dopri5, whose steps suit each batch, the mean."""
    parts, evaluations = [], 0.0
    for part in images.split(batch):
        z, own = part, 0
        size = (part.shape[-2], part.shape[-1])
        z = model.codec.encode(part)
        for domain, backward in ((source, True), (target, False)):
            *_, end = _leg(model, z, domain, tau, backward, **knobs)
            z, own = end.x, own + end.evaluations
        parts.append(model.codec.decode(z, size=size).float().cpu())
        evaluations += own * len(part) / len(images)
    return torch.cat(parts), evaluations


def _leg(
    model: MedShift,
    z: Tensor,
    domain: str,
    tau: float,
    backward: bool,
    *,
    solver: str,
    grid: str = "refined",
    steps: int = 1,
    tolerance: float = 1e-5,
) -> Any:
    knots = (tau, 1.0) if solver == "dopri5" else leg_knots(tau, grid, steps)
    way = knots[::-1] if backward else knots
    return integrate(model.velocity, z, model.labels(domain, z), way, solver=solver, tolerance=tolerance)


def _distances(
    ours: np.ndarray, reference: np.ndarray, heads: np.ndarray, their_heads: np.ndarray
) -> list[tuple[str, float]]:
    """FID of all rows, and without each head of either set, for a jackknife."""
    found = [("", fid(ours, reference))]
    for head in np.unique(heads):
        found.append((str(head), fid(ours[heads != head], reference[their_heads != head])))
    return found
