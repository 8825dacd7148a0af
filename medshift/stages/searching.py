"""Choose a method's tau on validation views, by its translations' PSNR to the truth."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from medshift.data.domains import EvaluationSet
from medshift.many import sweep
from medshift.metrics.structure import psnr
from medshift.stages.calling import translated
from medshift.stages.job import Job
from medshift.translate import Codec, MedShift, Translator


def search(
    job: Job,
    translator: Translator,
    codec: Codec,
    candidates: Sequence[Mapping[str, Any]],
    *,
    source: str,
    target: str,
    searched: int,
    batch: int,
    seed: int,
) -> Mapping[str, Any]:
    """The candidate with the best mean PSNR [dB] to the truth on validation views; all of them in search.csv.

    Its column ``edge`` says of the tau that is chosen whether it is the lowest or the highest of those tried while
    there are lower or higher ones: the best may then lie outside.

    Args:
        job: where to write; its input ``views``.
        translator: the method.
        codec: whose latents noise is shaped like.
        candidates: knobs, tau among them.
        source: domain translated from.
        target: domain translated to.
        searched: the first so many validation views.
        batch: images translated at once.
        seed: of the noise, of which each candidate has the first draw.
    """
    views = EvaluationSet(job.inputs["views"], "validation", limit=searched)
    images, truth, mask = views.exposure(source, 0), views.clean(target), views.open_field
    if isinstance(translator, MedShift) and _differ_in_tau_alone(candidates):
        outputs = _swept(translator, images, source, target, candidates, batch, job.device)
    else:
        how: dict[str, Any] = {"batch": batch, "device": job.device, "seed": (seed, 0)}
        outputs = (translated(translator, codec, images, source, target, knobs, **how) for knobs in candidates)
    rows = [
        {"knobs": json.dumps(dict(knobs)), "psnr": float(psnr(output, truth, mask).mean()), "edge": "none"}
        for knobs, output in zip(candidates, outputs, strict=True)
    ]  # type: list[dict[str, Any]]
    best = max(range(len(rows)), key=lambda k: float(rows[k]["psnr"]))
    rows[best]["edge"] = edge_of(candidates[best]["tau"], [knobs["tau"] for knobs in candidates])
    pd.DataFrame(rows).to_csv(job.folder / "search.csv", index=False)
    return candidates[best]


def edge_of(tau: float, tried: Sequence[float]) -> str:
    """``lowest``, ``highest`` or ``none``: which end of those tried ``tau`` is, where it is not that of [0, 1] too."""
    if len(set(tried)) < 2:
        return "none"
    return "lowest" if 0 < tau == min(tried) else "highest" if 1 > tau == max(tried) else "none"


def _differ_in_tau_alone(candidates: Sequence[Mapping[str, Any]]) -> bool:
    return all({**knobs, "tau": 0} == {**candidates[0], "tau": 0} for knobs in candidates)


def _swept(
    model: MedShift,
    images: Tensor,
    source: str,
    target: str,
    candidates: Sequence[Mapping[str, Any]],
    batch: int,
    device: str,
) -> Iterator[Tensor]:
    """Translations (N,1,H,W) at each tau in turn, from one encode leg."""
    taus = [knobs["tau"] for knobs in candidates]
    others = {name: value for name, value in candidates[0].items() if name != "tau"}
    parts = [sweep(model, part.to(device), source, [target], taus, **others) for part in images.split(batch)]
    for tau in taus:
        yield torch.cat([part[target, tau].float().cpu() for part in parts])
