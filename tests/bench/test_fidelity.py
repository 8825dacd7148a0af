"""Whether `fast` is as good as the plain path: PSNR between the two, and both against the truth, on unseen heads.

Views are those of the folder in MEDSHIFT_BENCH_VIEWS, that of a finished stage `views` of profile cpu, or without it of
procedural heads that are rendered here.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from measuring import QUICK
from scipy.stats import t as student
from torch import Tensor

from medshift.data.domains import EvaluationSet, ViewCounts, plan_views, render
from medshift.data.heads import Heads, HeadSplit
from medshift.evaluate import score
from medshift.fast import fast
from medshift.flow_training import load_flow
from medshift.metrics.features import extractor
from medshift.metrics.intervals import hierarchical_interval
from medshift.metrics.realism import fid
from medshift.metrics.structure import psnr
from medshift.translate import AS_PUBLISHED, MedShift

pytestmark = [pytest.mark.bench, pytest.mark.slow, pytest.mark.timeout(3600)]
WEIGHTS = Path(__file__).parents[2] / "medshift/weights/cpu/medshift"
SOURCE, TARGET, FEATURES, SIZE = "synthetic-high", "real-normal", "ST-AlexNet", 64
VIEWS, TAUS, SCALES, BATCH = (8, (0.3,), (1.0,), 4) if QUICK else (48, (0.02, 0.3), (1.0, 2.0), 24)


def views_folder(place: Path) -> tuple[Path, str]:
    """The views and what they are of."""
    if given := os.environ.get("MEDSHIFT_BENCH_VIEWS"):
        return Path(given), "heads of the profile cpu"
    counts = ViewCounts(train=5, validation=2, T0=2, T1=2, T2=2 * VIEWS, T3=2)
    split, spacing = (HeadSplit(2, 2, 2), 4.0) if QUICK else (HeadSplit(2, 2, 8), 2.0)
    render(plan_views(counts, split, 0), Heads("phantom", phantom_spacing_mm=spacing), SIZE, place)
    return place, "procedural heads, which the network was not trained on"


def over_heads(statistic: Callable[[np.ndarray], float], heads: np.ndarray) -> tuple[float, float, float]:
    """A statistic of the rows that a mask chooses, and its 95 % interval by leaving out one head at a time."""
    whole = statistic(np.ones(len(heads), bool))
    without = np.array([statistic(heads != head) for head in np.unique(heads)])
    g = len(without)
    error = np.sqrt((g - 1) / g * ((without - without.mean()) ** 2).sum())
    reach = float(student.ppf(0.975, g - 1) * error)
    return whole, whole - reach, whole + reach


def shown(values: tuple[float, float, float], digits: int, sign: str = "") -> str:
    mean, low, high = (f"{value:{sign}.{digits}f}" for value in values)
    return f"{mean} [{low}, {high}]"


def translated(model: MedShift, images: Tensor, tau: float, scale: float) -> Tensor:
    parts = [model.translate(p, SOURCE, TARGET, tau=tau, guidance=scale, **AS_PUBLISHED) for p in images.split(BATCH)]
    return torch.cat(parts).float()


def test_fast_is_as_good_as_plain(report: Any, tmp_path: Path) -> None:
    folder, whose = views_folder(tmp_path / "views")
    flow = load_flow(WEIGHTS)
    velocities = {"plain": flow.network, "fast": fast(flow.network)}
    models = {n: MedShift(v, flow.codec, len(flow.domains), flow.domains) for n, v in velocities.items()}
    every, some = (EvaluationSet(folder, "T2", limit=n) for n in (2 * VIEWS, VIEWS))
    images, found = some.exposure(SOURCE, 0), extractor(FEATURES)
    heads = every.table["head"].to_numpy()
    own, theirs = heads[: len(some)], heads[len(some) :]
    reference = found(every.exposure(TARGET, 0)[len(some) :])
    rows = []
    for tau in TAUS:
        for scale in SCALES:
            outputs = {name: translated(model, images, tau, scale) for name, model in models.items()}
            between = psnr(outputs["fast"], outputs["plain"], some.open_field)
            scores = {name: score(output, some, SOURCE, TARGET) for name, output in outputs.items()}
            features = {name: found(output.clamp(-1, 1)) for name, output in outputs.items()}

            def distance(name: str, kept: np.ndarray, features: Any = features) -> float:
                outside = set(own[~kept])  # the same head leaves both sets
                return fid(features[name][kept], reference[~np.isin(theirs, list(outside))])

            for name, table in scores.items():
                cells = [f"{tau:g}", f"{scale:g}", name]
                cells.append(f"{between.mean():.1f}, {between.min():.1f}" if name == "fast" else "")
                for column, digits in (("psnr_clean", 2), ("ssim_clean", 4)):
                    values = table[column].to_numpy()
                    interval = hierarchical_interval(values, table)
                    cells.append(shown((interval.mean, interval.low, interval.high), digits))
                    if name == "fast":
                        gain = hierarchical_interval(values - scores["plain"][column].to_numpy(), table)
                        cells.append(shown((gain.mean, gain.low, gain.high), digits + 1, "+"))
                    else:
                        cells.append("")
                cells.append(shown(over_heads(lambda kept, n=name: distance(n, kept), own), 4))
                differs = over_heads(lambda kept: distance("fast", kept) - distance("plain", kept), own)
                cells.append(shown(differs, 5, "+") if name == "fast" else "")
                rows.append(cells)
    header = ["τ", "w", "path", "PSNR between the two [dB]: mean, least", "PSNR to the truth [dB]", "difference"]
    header += ["SSIM to the truth", "difference", f"FID ({FEATURES})", "difference"]
    dtype = str(velocities["fast"].dtype).removeprefix("torch.")
    note = (
        f"{SOURCE} to {TARGET}, {len(some)} views of {len(np.unique(own))} unseen heads (T2; {whose}), and "
        f"{len(reference)} others of them for the FID; 50 uniform Euler steps; `fast` in {dtype}, plain in float32; "
        "images span 2. "
        "The truth is free of noise. 95 % intervals over heads: t over heads for PSNR and SSIM, jackknife for the FID; "
        "differences are fast minus plain on the same views."
    )
    report.table("fast beside plain: quality", header, rows, note)
