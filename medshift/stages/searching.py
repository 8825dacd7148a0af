"""Choose a method's tau on validation views, by its translations' PSNR to the truth.

By successive halving: every candidate is looked at on a few views, and the best of them on all (Jamieson and Talwalkar
2016, arXiv:1502.07943). What is best on all views is likely among the best on a few, since the curve over tau is
smooth; it need not be. docs/searches.md compares it to looking at all on all.
"""

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

FIRST_LOOK = 4  # validation views at which every candidate is looked at: one of each head of the profile cpu
KEPT = 4  # candidates that are looked at on all views


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

    Its column ``views`` says on how many views a candidate was looked at; only those that saw all of them can be
    chosen. Its column ``edge`` says of the tau that is chosen whether it is the lowest or the highest of those tried
    while there are lower or higher ones: the best may then lie outside.

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

    def scored(some: Sequence[int], n: int) -> dict[int, float]:
        tried = [candidates[k] for k in some]
        if isinstance(translator, MedShift) and _differ_in_tau_alone(tried):
            outputs = _swept(translator, images[:n], source, target, tried, batch, job.device)
        else:
            how: dict[str, Any] = {"batch": batch, "device": job.device, "seed": (seed, 0)}
            outputs = (translated(translator, codec, images[:n], source, target, knobs, **how) for knobs in tried)
        return {
            k: float(psnr(output, truth[:n], mask[:n]).mean()) for k, output in zip(some, outputs, strict=True)
        }

    found: dict[int, tuple[float, int]] = {}  # candidate -> PSNR, and on how many views
    left = list(range(len(candidates)))
    for n, most in rounds(len(candidates), len(images)):
        looked = scored(left, n)
        found |= {k: (value, n) for k, value in looked.items()}
        left = sorted(sorted(left, key=lambda k: -looked[k])[:most])
    (best,) = left
    rows: list[dict[str, Any]] = [
        {"knobs": json.dumps(dict(candidates[k])), "psnr": value, "views": n, "edge": "none"}
        for k, (value, n) in found.items()
    ]
    rows[best]["edge"] = edge_of(candidates[best]["tau"], [knobs["tau"] for knobs in candidates])
    pd.DataFrame(rows).to_csv(job.folder / "search.csv", index=False)
    return candidates[best]


def rounds(candidates: int, views: int) -> list[tuple[int, int]]:
    """Views of each round of a search, and how many candidates are left after it; the last leaves one."""
    few = [(FIRST_LOOK, KEPT)] if candidates > KEPT and views > FIRST_LOOK else []
    return [*few, (views, 1)]


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
