"""Energies of linear, global and pixel-wise paths on the pairs of a task, and whether the gain holds on other heads."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from medshift.codec import PatchCodec
from medshift.data.paired_tasks import TaskViews
from medshift.path_energy import Profiles, energies, energy, global_optimum, heterogeneity, pixel_optimum, sde_weight
from medshift.path_energy import time_profiles as measured
from medshift.stages.halves import PAIRED
from medshift.stages.job import Job

GROUPS = 5  # of pixels by their contrast, whose profiles are kept for a picture


def build(job: Job, *, task: str, pairs: int, times: int) -> None:
    """Write energies.csv (one row a world) and profiles.json.

    The worlds: the weight that the SDE implies; the weights w_p(t) measured on these pairs; and, of optima measured on
    the pairs of one half of the heads, what they cost under the weights of the other half.

    Args:
        job: its input ``paired``.
        task: one of `medshift.data.paired_tasks.TASKS`.
        pairs: how many training pairs.
        times: nodes in time.
    """
    known = TaskViews(task, job.inputs["paired"], PAIRED, limit=pairs)
    images = known.exposure(0)
    codec = PatchCodec(2).fit(images)
    source, target = (codec.encode(part) for part in images)
    t = np.linspace(0.0, 1.0, times)
    every = measured(source, target, t=t)
    rows = [{"world": "the SDE's own weight", **energies(sde_weight(t), every.contrast, t)}]
    rows.append({"world": "measured weights", **energies(every.weights, every.contrast, t)})
    heads = torch.tensor(known.table["head"].tolist())
    first = (heads % 2 == 0) if len(heads.unique()) > 1 else torch.arange(len(heads)) % 2 == 0
    rows.append({"world": "measured on other heads", **_held_out(source, target, first, t)})
    pd.DataFrame(rows).to_csv(job.folder / "energies.csv", index=False)
    grouped = measured(source, target, GROUPS, t=t)
    facts = {
        "heterogeneity": heterogeneity(every.weights, every.contrast, t),
        "t": t.tolist(),
        "groups": (grouped.weights / grouped.weights.mean(1, keepdims=True)).tolist(),
        "contrast": grouped.contrast.tolist(),
        "pairs": len(source),
    }
    (job.folder / "profiles.json").write_text(json.dumps(facts, indent=1))


def _held_out(source: Tensor, target: Tensor, first: Tensor, t: np.ndarray) -> dict[str, float]:
    """Energies, under the profiles of the second part, of paths that are best for the first."""
    fitted: Profiles = measured(source[first], target[first], t=t)
    judged = measured(source[~first], target[~first], t=t)
    paths = {
        "linear": t,
        "global": global_optimum(fitted.weights, fitted.contrast, t),
        "pixel-wise": pixel_optimum(fitted.weights, t),
    }
    return {name: energy(path, judged.weights, judged.contrast, t) for name, path in paths.items()}
