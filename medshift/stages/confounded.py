"""Views whose domains do not share their mix of poses, as real unpaired sets never do.

A label is *confounded* with content where one domain sees other anatomy than the next. Here the content is the
direction: synthetic domains see more frontal views, real ones more lateral views. The dial is the total variation
between the two mixes, 0 for one mix and 1 for two that share nothing.

References:
    Cohen, Luck, Honari, Distribution Matching Losses Can Hallucinate Features in Medical Image Translation, 2018,
    arXiv:1805.08841.
"""

from __future__ import annotations

import shutil
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from medshift.data.domains import DOMAINS, is_synthetic
from medshift.data.projection import Projection, load_projections, save_projections
from medshift.errors import DataError
from medshift.stages.job import Job

LATERAL = np.sin(np.deg2rad(45.0))  # |sin azimuth| above this is a lateral view, at or below it a frontal one


def build(job: Job, *, total_variation: float, seed: int) -> dict[str, str]:
    """Write a folder like that of its input ``views``, with fewer training views; evaluation views are the same.

    Every domain keeps the same number of training views, whatever the dial: that of the rarest kind in any domain.

    Args:
        job: its input ``views``.
        total_variation: between the mixes of synthetic and real domains, in [0, 1].
        seed: of the choice.

    Raises:
        DataError: a domain has no frontal or no lateral view.
    """
    source = job.inputs["views"]
    table = pd.read_csv(source / "views.csv", keep_default_na=False)
    lateral = np.abs(np.sin(np.deg2rad(table["azimuth"]))) > LATERAL
    of_domain = {domain: table.index[table["role"] == f"train:{domain}"] for domain in DOMAINS}
    n = min(int((lateral[rows] == kind).sum()) for rows in of_domain.values() for kind in (True, False))
    if not n:
        raise DataError(f"A domain of {source} lacks frontal or lateral training views; render more of them.")
    rng, dropped = np.random.default_rng(seed), []
    for domain, rows in of_domain.items():
        share = (1 + total_variation) / 2 if is_synthetic(domain) else (1 - total_variation) / 2
        frontal = round(share * n)
        kept = [
            rng.choice(rows[(lateral[rows] == kind).to_numpy()], size, replace=False)
            for kind, size in ((False, frontal), (True, n - frontal))
        ]
        index = np.sort(np.concatenate(kept))
        dropped.append(np.setdiff1d(rows, index))
        _keep(source, job.folder, domain, torch.as_tensor(index - rows[0]))
    for path in source.glob("*.safetensors"):
        if not path.name.startswith("train-"):
            shutil.copy2(path, job.folder / path.name)
    table.drop(np.concatenate(dropped)).to_csv(job.folder / "views.csv", index=False)
    return {"training views of a domain": str(n)}


def _keep(source: Path, folder: Path, domain: str, index: torch.Tensor) -> None:
    """Write the training views ``index`` of one domain."""
    name = f"train-{domain}.{'simulated' if is_synthetic(domain) else 'real'}.safetensors"
    views = load_projections(source / name)
    save_projections(folder / name, Projection(**{f.name: getattr(views, f.name)[index] for f in fields(Projection)}))
