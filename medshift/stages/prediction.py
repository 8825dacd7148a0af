"""Realism against tau, predicted without a network: noise the two data sets and classify them.

With an exact field and w = 1 the divergence of translations to their target is that of the two *noised data sets*
(`medshift.theory`). So a classifier between (1-tau) ε + tau x of the source's images and of the target's says how real
a translation can be at that tau, before anything is trained.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from medshift.data.domains import DOMAINS, EvaluationSet
from medshift.flow import interpolate
from medshift.metrics.two_sample import domain_auc
from medshift.stages.codec import open_codec
from medshift.stages.images import open_images
from medshift.stages.job import Job
from medshift.stages.sweep import noise_of
from medshift.theory import half_shift_tau, shift_spread

TRAINING, UNSEEN = "training images", "unseen heads"


def build(job: Job, *, source: str, target: str, taus: Sequence[float], views: int, training: int, seed: int) -> None:
    """Write auc.csv and spread.json.

    Two predictions: from training images of both domains, which is what a user has; and from unseen heads, the source's
    images from the first views of T2 and the target's from as many others, as the translations are judged.

    Args:
        job: its inputs ``views`` and ``codec``.
        source: domain translated from.
        target: domain translated to.
        taus: of the noise.
        views: images of each domain from T2.
        training: training images of each domain.
        seed: of the noise.
    """
    codec = open_codec(job.inputs["codec"], job.device)
    sets = {
        TRAINING: _training(job, (source, target), training),
        UNSEEN: _unseen(job, source, target, views),
    }
    rows = []
    for k, (name, ((a, heads_a), (b, heads_b))) in enumerate(sets.items()):
        latents = [codec.encode(x.to(job.device)).float().cpu() for x in (a, b)]
        for i, tau in enumerate(taus):
            x, y = (_noised(z, tau, (seed, side, i)) for side, z in enumerate(latents))
            found = domain_auc(x, y, heads_a, heads_b)
            rows.append(
                {"images": name, "tau": tau, "auc": found.value, "low": found.low, "high": found.high, "n": found.n}
            )
            job.progress((k + (i + 1) / len(taus)) / len(sets))
    pd.DataFrame(rows).to_csv(job.folder / "auc.csv", index=False)
    (a, _), (b, _) = sets[TRAINING]
    spread = shift_spread(*(codec.encode(x.to(job.device)).float().cpu() for x in (a, b)))
    facts = {"spread": spread, "half_shift_tau": half_shift_tau(spread)}
    (job.folder / "spread.json").write_text(json.dumps(facts, indent=1))


def _noised(latent: Tensor, tau: float, seed: tuple[int, ...]) -> Tensor:
    return interpolate(latent, noise_of(tuple(latent.shape), *seed), torch.tensor(tau))


Labelled = tuple[Tensor, np.ndarray]


def _training(job: Job, pair: tuple[str, str], n: int) -> tuple[Labelled, Labelled]:
    """Training images of both domains with their heads."""
    images = open_images(job.inputs["views"], job.data).training(n)
    table = pd.read_csv(job.inputs["views"] / "views.csv", keep_default_na=False)

    def labelled(domain: str) -> Labelled:
        found = images[DOMAINS.index(domain)]
        heads = table.loc[table["role"] == f"train:{domain}", "head"].to_numpy()
        return found, heads[: len(found)]

    return labelled(pair[0]), labelled(pair[1])


def _unseen(job: Job, source: str, target: str, views: int) -> tuple[Labelled, Labelled]:
    """The source's images of the first views of T2, the target's of as many others of the same heads."""
    some = EvaluationSet(job.inputs["views"], "T2", limit=2 * views)
    heads, n = some.table["head"].to_numpy(), len(some) // 2
    return (some.exposure(source, 0)[:n], heads[:n]), (some.exposure(target, 0)[n:], heads[n:])
