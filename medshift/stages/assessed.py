"""Every metric of one method of a comparison, and of each of its draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from medshift.data.domains import EvaluationSet
from medshift.evaluate import score
from medshift.metrics.edges import edge_map
from medshift.metrics.landmarks import landmark_drift, mean_drift, measured_landmarks
from medshift.metrics.perceptual import StLpipsTo, lpips, mae, why_no_lpips
from medshift.stages.compared import load_compared
from medshift.stages.job import Job
from medshift.stages.judged import PERCEPTUAL_SIDE, SetJudge, shift_done
from medshift.stages.kept import KeptViews


def build(
    job: Job,
    *,
    source: str,
    target: str,
    roles: Mapping[str, int],
    headline: str,
    deep: Sequence[str],
    components: int,
    neighbours: int,
) -> None:
    """Write scores.csv (one row a tier, draw and view) and sets.csv (one row a metric of the headline tier and draw).

    Args:
        job: its inputs ``views`` and ``compared``.
        source: domain translated from.
        target: domain translated to.
        roles: tier -> how many views were translated.
        headline: the tier whose sets are judged and whose images get every metric.
        deep: extractors of sets; one whose weights are missing leaves rows that say so.
        components: principal components of the conditional FID.
        neighbours: k of density and coverage.
    """
    made = load_compared(job.inputs["compared"])
    looks = sum(len(made[role]) for role in roles) + 2  # sets take about as long as two
    rows, sets = [], []
    for role, n in roles.items():
        some = _views(job.inputs["views"], role, n)
        for draw, output in enumerate(made[role]):
            rows.append(_scores(output, some, source, target, full=role == headline).assign(role=role, draw=draw))
            job.progress(len(rows) / looks)
    pd.concat(rows).to_csv(job.folder / "scores.csv", index=False)
    judge = _judge(
        job.inputs["views"], headline, roles[headline], source, target, tuple(deep), components, neighbours, job.device
    )
    for draw, output in enumerate(made[headline]):
        sets += [{"draw": draw} | row for row in judge.rows(output)]
    pd.DataFrame(sets).to_csv(job.folder / "sets.csv", index=False)


@lru_cache(maxsize=8)
def _views(folder: Path, role: str, n: int) -> KeptViews:
    return KeptViews(folder, role, limit=n)


@lru_cache(maxsize=2)
def _judge(
    folder: Path,
    role: str,
    n: int,
    source: str,
    target: str,
    deep: tuple[str, ...],
    components: int,
    neighbours: int,
    device: str,
) -> SetJudge:
    """One judge for all methods of a comparison: features of the reference are taken once."""
    every = EvaluationSet(folder, role, limit=2 * n)
    return SetJudge(every, _views(folder, role, n), source, target, deep, components, neighbours, device)


@lru_cache(maxsize=4)
def _st_lpips_to(some: KeptViews, source: str, target: str, reference: str) -> StLpipsTo:
    """For all draws and methods of a comparison; views are the same ones where `_views` gave them."""
    return StLpipsTo(some.exposure(source, 0) if reference == "source" else some.clean(target), some.open_field)


def _scores(output: Tensor, some: KeptViews, source: str, target: str, *, full: bool) -> pd.DataFrame:
    """One row a view: truth and source, tone, noise; of the headline tier also perceptual metrics, edges, landmarks."""
    table = score(output, some, source, target)
    mask, entered, clean = some.open_field, some.exposure(source, 0), some.clean(target)
    table["mae_clean"] = mae(output, clean, mask).numpy()
    table["shift"] = shift_done(output, entered, clean, mask).numpy()
    if not full:
        return table
    for name, reference in (("source", entered), ("clean", clean)):
        large = min(output.shape[-2:]) >= PERCEPTUAL_SIDE
        table[f"st_lpips_{name}"] = _st_lpips_to(some, source, target, name)(output).numpy() if large else np.nan
        table[f"lpips_{name}"] = lpips(output, reference, mask).numpy() if large and not why_no_lpips() else np.nan
    edges = edge_map(output, clean, mask)
    table["invented"], table["lost"] = edges.invented.numpy(), edges.lost.numpy()
    pixel_mm = torch.tensor(some.table["fov"].to_numpy()) / output.shape[-1]
    drift = landmark_drift(output, clean, some.landmarks, mask, pixel_mm=pixel_mm)
    table["drift_mm"], table["landmarks"] = mean_drift(drift).numpy(), measured_landmarks(drift).numpy()
    return table
