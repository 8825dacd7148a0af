"""A control for noise and classify: the same classifiers where the field is exact, so that no network can be at fault.

Predicted realism comes from a linear classifier on noised latents, measured realism from one on clean images. In law
the best classifiers of both have one AUC, since the decode leg is a bijection; those that are linear and learn from a
few hundred images need not. So both domains are replaced by Gaussians with the mean and the leading components of
their training latents and white noise for the rest, the legs by their closed form (`medshift.theory`), and the same two
numbers are taken of as many images, on the same two sides. What is left of a difference is the classifiers' doing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from medshift.data.domains import DOMAINS, EvaluationSet
from medshift.flow import interpolate
from medshift.metrics.two_sample import domain_auc
from medshift.stages.codec import open_codec
from medshift.stages.images import STATISTICS_IMAGES, open_images
from medshift.stages.job import Job
from medshift.theory import Components, exact_translation


def build(
    job: Job, *, source: str, target: str, taus: Sequence[float], views: int, draws: int, batch: int, seed: int
) -> None:
    """Write control.csv: AUC predicted and measured where the field is exact, a row a draw and tau.

    Args:
        job: its inputs ``views`` and ``codec``.
        source: domain translated from.
        target: domain translated to.
        taus: where the legs meet.
        views: translations of T2 that were judged; as many images are drawn, in as many groups as those have heads.
            Groups are here only names, since samples are independent.
        draws: how often both sets are drawn anew.
        batch: images decoded at once.
        seed: of all draws.
    """
    codec, images = open_codec(job.inputs["codec"], job.device), open_images(job.inputs["views"], job.data)
    judged, train = EvaluationSet(job.inputs["views"], "T2", limit=views), images.training(STATISTICS_IMAGES)
    size = (int(train[0].shape[-2]), int(train[0].shape[-1]))
    n, heads = len(judged), judged.table["head"].nunique()
    latents = [codec.encode(train[DOMAINS.index(domain)].to(job.device)).float().cpu() for domain in (source, target)]
    shape = latents[0].shape[1:]
    a, b = (Components.fit(latent.flatten(1)) for latent in latents)

    def decoded(x: Tensor) -> Tensor:
        parts = x.float().unflatten(1, shape).split(batch)
        return torch.cat([codec.decode(part.to(job.device), size).float().cpu() for part in parts])

    groups, rows = np.arange(n) % heads, []
    for draw in range(draws):
        generator = torch.Generator().manual_seed(1000 * seed + draw)
        x, y = a.sample(n, generator), b.sample(n, generator)
        noise = torch.randn(2, *x.shape, generator=generator, dtype=torch.float64)
        truth = decoded(y)
        for i, tau in enumerate(taus):
            z_a, z_b = (
                interpolate(start, end, torch.tensor(tau)).float().unflatten(1, shape)
                for start, end in zip((x, y), noise, strict=True)
            )
            predicted = domain_auc(z_a, z_b, groups, groups).value
            measured = domain_auc(decoded(exact_translation(x, a, b, tau)), truth, groups, groups).value
            rows.append({"draw": draw, "tau": tau, "predicted": predicted, "measured": measured, "n": 2 * n})
            job.progress((draw + (i + 1) / len(taus)) / draws)
    pd.DataFrame(rows).to_csv(job.folder / "control.csv", index=False)
