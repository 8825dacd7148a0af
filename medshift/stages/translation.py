"""Translate some evaluation views with one setting of the sampler and score them: one run of an ablation."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from medshift.data.domains import EvaluationSet
from medshift.evaluate import FAILURE_DB, score
from medshift.fast import fast
from medshift.flow_training import load_flow
from medshift.guidance import CountingVelocity
from medshift.metrics.intervals import hierarchical_interval
from medshift.stages.job import Job
from medshift.translate import MedShift

METRICS = ("psnr_clean", "ssim_clean", "psnr_source", "ssim_source", "psnr_noisy")


@lru_cache(maxsize=2)
def _views(folder: Path, role: str, limit: int) -> EvaluationSet:
    return EvaluationSet(folder, role, limit=limit)


@lru_cache(maxsize=4)
def _source(folder: Path, role: str, limit: int, domain: str) -> Tensor:
    return _views(folder, role, limit).exposure(domain, 0)


def build(
    job: Job,
    *,
    source: str,
    target: str,
    role: str,
    views: int,
    tau: float,
    guidance: tuple[float, float],
    steps: int,
    solver: str,
    grid: str,
    batch: int,
) -> None:
    """Write scores.csv, one row a view, and summary.json, means with intervals over heads.

    Args:
        job: its inputs ``views`` and ``network``.
        source: domain translated from.
        target: domain translated to.
        role: ``validation`` or a tier.
        views: how many of it; views take turns over heads.
        tau: where the legs meet.
        guidance: scales of the encode and the decode leg; 0 is the null label.
        steps: intervals on the whole of [0, 1]; of no effect on dopri5.
        solver: see `medshift.ode.SOLVERS`.
        grid: see `medshift.ode.GRIDS`.
        batch: images translated at once.
    """
    flow = load_flow(job.inputs["network"], device=job.device)
    counted = CountingVelocity(fast(flow.network))
    model = MedShift(counted, flow.codec, len(flow.domains), flow.domains)
    some = _views(job.inputs["views"], role, views)
    images = _source(job.inputs["views"], role, views, source)
    knobs: dict[str, Any] = {"guidance": tuple(guidance), "steps": steps, "solver": solver, "grid": grid}
    outputs = []
    for part in images.split(batch):
        outputs.append(model.translate(part.to(job.device), source, target, tau=tau, **knobs).float().cpu())
        job.progress(sum(map(len, outputs)) / len(images))
    rows = score(torch.cat(outputs), some, source, target, method=model.name, tau=tau)
    rows.to_csv(job.folder / "scores.csv", index=False)
    summary = summarise(rows) | {
        "nfe": counted.rows / len(images),
        "parameters": sum(p.numel() for p in flow.network.parameters()),
        "images_seen": flow.state["images"],
    }
    (job.folder / "summary.json").write_text(json.dumps(summary, indent=1))


def summarise(rows: pd.DataFrame) -> dict[str, float]:
    """Means with 95 % intervals over heads, failures, and the high-pass noise over the target's."""
    found: dict[str, float] = {"n": len(rows), "heads": int(rows["head"].nunique())}
    for metric in METRICS:
        interval = hierarchical_interval(rows[metric].to_numpy(), rows)
        found |= {metric: interval.mean, f"{metric}_low": interval.low, f"{metric}_high": interval.high}
    found["below_20_db"] = float((rows["psnr_clean"] < FAILURE_DB).mean())
    found["high_pass_ratio"] = float(rows["high_pass"].mean() / rows["high_pass_target"].mean())
    return {name: round(value, 6) for name, value in found.items()}
