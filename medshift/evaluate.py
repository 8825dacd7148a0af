"""Scores of translated views, one row an image, against the source and against the truth of the same view.

The truth comes in two forms: ``clean``, the target domain's image free of noise, and ``noisy``, one exposure of it. A
second exposure of the same view is the *noise twin*, the ceiling: no method can know the noise of the first. All
numbers are taken inside the open field of the collimator.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from medshift.data.domains import EXPOSURES, EvaluationSet
from medshift.errors import ParameterError
from medshift.metrics.intervals import Interval, hierarchical_interval
from medshift.metrics.physics import high_pass_std
from medshift.metrics.structure import psnr, ssim
from medshift.translate import MedShift, Translator

TWIN = "noise twin"
FAILURE_DB = 20.0


def score(output: Tensor, views: EvaluationSet, source: str, target: str, **labels: Any) -> pd.DataFrame:
    """One row a view: PSNR [dB] and SSIM to the source, to the clean and to the noisy truth, and high-pass noise.

    Args:
        output: translated images (N,1,H,W) of exposure 0 of ``source``.
        views: where they come from.
        source: the domain translated from.
        target: the domain translated to.
        labels: columns to add to every row (method, tau, ...).
    """
    mask = views.open_field
    references = {
        "source": views.exposure(source, 0),
        "clean": views.clean(target),
        "noisy": views.exposure(target, 0),
    }
    table = pd.DataFrame({"role": views.role, "view": np.arange(len(views))})
    table[["head", "region", "insert"]] = views.table[["head", "region", "insert"]].to_numpy()
    for name, reference in references.items():
        # Capped, so that the mean exists where an image equals its reference.
        table[f"psnr_{name}"] = psnr(output, reference, mask).clamp(max=100.0).numpy()
        table[f"ssim_{name}"] = ssim(output, reference, mask).numpy()
    table["high_pass"] = high_pass_std(output, mask).numpy()
    table["high_pass_target"] = high_pass_std(references["noisy"], mask).numpy()
    return table.assign(source=source, target=target, **labels)


def score_twin(views: EvaluationSet, source: str, target: str, exposures: int = EXPOSURES - 1) -> pd.DataFrame:
    """The noise twin's rows: exposures 1, 2, ... of the target scored as if they were translations, then averaged."""
    tables = [score(views.exposure(target, k), views, source, target) for k in range(1, 1 + exposures)]
    table = tables[0].copy()
    numbers = table.select_dtypes("number").columns.difference(["view", "head"])
    table[numbers] = np.mean([t[numbers].to_numpy() for t in tables], axis=0)
    return table.assign(method=TWIN)


def score_floors(floors: Iterable[Translator], views: EvaluationSet, source: str, target: str) -> pd.DataFrame:
    """The rows of every floor and of the noise twin."""
    image = views.exposure(source, 0)
    rows = [score(f.translate(image, source, target), views, source, target, method=f.name) for f in floors]
    return pd.concat([*rows, score_twin(views, source, target)], ignore_index=True)


def translate_taus(
    translator: MedShift,
    images: Tensor,
    source: str,
    target: str,
    taus: Sequence[float],
    batch: int,
    *,
    device: str | torch.device = "cpu",
    **solver: Any,
) -> list[Tensor]:
    """Translations (N,1,H,W) at every tau on the CPU, computed on ``device``, the encode leg shared."""
    outputs: list[list[Tensor]] = [[] for _ in taus]
    for part in images.split(batch):
        z = translator.encode(part.to(device), source, list(taus), **solver)
        for i, tau in enumerate(taus):
            output = translator.decode(z[i], target, tau, size=(part.shape[-2], part.shape[-1]), **solver)
            outputs[i].append(output.float().cpu())
    return [torch.cat(parts) for parts in outputs]


def tau_sweep(
    translator: MedShift,
    views: EvaluationSet,
    source: str,
    target: str,
    taus: Sequence[float],
    solvers: Mapping[str, Mapping[str, Any]],
    *,
    batch: int = 32,
    device: str | torch.device = "cpu",
) -> pd.DataFrame:
    """Scores at every tau under every solver (name -> keyword arguments of `MedShift.encode`)."""
    image = views.exposure(source, 0)
    tables = []
    for name, solver in solvers.items():
        outputs = translate_taus(translator, image, source, target, taus, batch, device=device, **solver)
        tables += [
            score(output, views, source, target, method=translator.name, solver=name, tau=tau)
            for tau, output in zip(taus, outputs, strict=True)
        ]
    return pd.concat(tables, ignore_index=True)


def choose_tau(sweep: pd.DataFrame, solver: str, metric: str = "psnr_clean") -> float:
    """The tau with the best mean of ``metric``; give it validation views alone."""
    means = sweep[sweep["solver"] == solver].groupby("tau")[metric].mean()
    return float(str(means.idxmax()))


def headroom(method: pd.DataFrame, floors: pd.DataFrame, metric: str = "psnr_clean") -> tuple[Interval, str]:
    """(method - best floor) / (noise twin - best floor), its 95 % interval over heads, and the best floor's name.

    The best floor is the one with the best mean on these very views, so the floors are favoured, not the method.
    The interval of a ratio of means is that of its linearisation: r_i = (m_i - f_i - h (c_i - f_i)) / mean(c - f) + h.

    Args:
        method: one row a view, with columns view, head, region and ``metric``.
        floors: as many rows of each floor and of the noise twin, named in the column ``method``; in any order.
        metric: higher is better.

    Raises:
        ParameterError: the twin or every floor is missing, rows are not one a view or not of the method's views, or
            the twin is no better than the best floor.
    """
    names = set(floors["method"])
    if TWIN not in names or len(names) < 2:
        raise ParameterError(f"Headroom needs a floor and the rows of {TWIN!r}; there are {sorted(names)}.")
    means = floors[floors["method"] != TWIN].groupby("method")[metric].mean()
    best = str(means.idxmax())
    joined = method
    for name, column in ((best, "floor"), (TWIN, "twin")):
        rows = floors.loc[floors["method"] == name, ["view", metric]].rename(columns={metric: column})
        if method["view"].duplicated().any() or rows["view"].duplicated().any():
            raise ParameterError(f"A view has several rows of the method or of {name!r}; give one tier, draw and tau.")
        if set(rows["view"]) != set(method["view"]):
            raise ParameterError(
                f"The {len(rows)} views of {name!r} are not the {len(method)} of the method; score both on the same."
            )
        joined = joined.merge(rows, on="view")
    gain, most = (joined[column].to_numpy() - joined["floor"].to_numpy() for column in (metric, "twin"))
    if not most.mean() > 0:
        raise ParameterError(f"The floor {best!r} is as good as {TWIN!r}, so there is no headroom to take a share of.")
    ratio = float(gain.mean() / most.mean())
    return hierarchical_interval((gain - ratio * most) / most.mean() + ratio, joined), best


def summary(table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Means with intervals over heads, and the share of views below 20 dB, one row a group."""
    rows = []
    for key, group in table.groupby(list(by), sort=False):
        row: dict[str, object] = dict(zip(by, key if isinstance(key, tuple) else (key,), strict=True))
        for metric in ("psnr_clean", "ssim_clean", "psnr_noisy", "ssim_noisy", "psnr_source", "ssim_source"):
            interval = hierarchical_interval(group[metric].to_numpy(), group)
            row |= {metric: interval.mean, f"{metric}_low": interval.low, f"{metric}_high": interval.high}
        row["below_20_db"] = float((group["psnr_clean"] < FAILURE_DB).mean())
        row["high_pass_ratio"] = float(group["high_pass"].mean() / group["high_pass_target"].mean())
        row |= {"n": len(group), "heads": int(group["head"].nunique())}
        rows.append(row)
    return pd.DataFrame(rows)
