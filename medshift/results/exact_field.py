"""A control for noise and classify: the same classifiers where the field is exact, so that no network can be at fault.

Predicted realism comes from a linear classifier on noised latents, measured realism from one on clean images. In law
the best classifiers of both have one AUC, since the decode leg is a bijection; those that are linear and learn from a
few hundred images need not. So both domains are replaced by Gaussians with the mean and the leading components of
their training latents and white noise for the rest, the legs by their closed form (`medshift.theory`), and the same two
numbers are taken of as many images, on the same two sides. What is left of a difference is the classifiers' doing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from medshift.data.domains import DOMAINS
from medshift.errors import ParameterError
from medshift.flow import interpolate
from medshift.metrics.two_sample import domain_auc
from medshift.results.findings import over_heads
from medshift.results.realism import scores_of
from medshift.stages.codec import open_codec
from medshift.stages.images import STATISTICS_IMAGES, open_images
from medshift.stages.sweep import MEDSHIFT

COMPONENTS, DRAWS = 128, 3


@dataclass(frozen=True)
class Components:
    """N(mean, U diag(v) Uᵀ + rest (I - U Uᵀ)): mean (D,), orthonormal U (D,K), v (K,), all float64."""

    mean: Tensor
    basis: Tensor
    variances: Tensor
    rest: float

    @classmethod
    def fit(cls, latents: Tensor, components: int = COMPONENTS) -> Components:
        """Mean, leading components and the mean variance of all others of latents (N,D).

        At most half as many components as latents: beyond, a sample's own directions pass for the domain's.

        Raises:
            ParameterError: fewer than four latents.
        """
        if len(latents) < 4:
            raise ParameterError(f"{len(latents)} latents give no covariance; give four or more.")
        x = latents.double()
        mean = x.mean(0)
        _, values, vectors = torch.linalg.svd(x - mean, full_matrices=False)
        variances, k = values.square() / (len(x) - 1), min(components, len(x) // 2)
        rest = float(variances[k:].sum() / (x.shape[1] - k))
        return cls(mean, vectors[:k].T.contiguous(), variances[:k], rest)

    def of_covariance(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """``function`` of the covariance, taken of its eigenvalues, applied to vectors x (N,D)."""
        outside = function(torch.tensor(self.rest, dtype=x.dtype))
        return outside * x + (x @ self.basis) * (function(self.variances) - outside) @ self.basis.T

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Vectors (n,D)."""
        white = torch.randn(n, len(self.mean), generator=generator, dtype=torch.float64)
        return self.mean + self.of_covariance(torch.sqrt, white)


def translate(x: Tensor, source: Components, target: Components, tau: float) -> Tensor:
    """Vectors x (N,D) of ``source`` taken to ``target`` by exact legs that meet at ``tau`` (N,D)."""

    def noised(v: Tensor) -> Tensor:
        return (1 - tau) ** 2 + tau**2 * v

    z = source.of_covariance(lambda v: (noised(v) / v).sqrt(), x - source.mean)
    z = z + tau * (source.mean - target.mean)
    return target.mean + target.of_covariance(lambda v: (v / noised(v)).sqrt(), z)


def control(
    views: Path,
    codec: Path,
    pair: tuple[str, str],
    taus: Sequence[float],
    *,
    n: int,
    heads: int,
    draws: int = DRAWS,
    seed: int = 0,
) -> pd.DataFrame:
    """AUC predicted and measured where the field is exact, by tau, with the t interval of their gap over draws.

    Args:
        views: stage of the training images.
        codec: stage.
        pair: source and target.
        taus: where the legs meet.
        n: images in each of the two sets, as many as translations were judged with.
        heads: groups that classifiers hold out, as many as heads; here only names, since samples are independent.
        draws: how often both sets are drawn anew.
        seed: of all draws.
    """
    found, images = open_codec(codec), open_images(views).training(STATISTICS_IMAGES)
    latents = {domain: found.encode(images[DOMAINS.index(domain)]).float() for domain in pair}
    shape, size = latents[pair[0]].shape[1:], (int(images[0].shape[-2]), int(images[0].shape[-1]))
    source, target = (Components.fit(latents[domain].flatten(1)) for domain in pair)
    groups, rows = np.arange(n) % heads, []
    for draw in range(draws):
        generator = torch.Generator().manual_seed(1000 * seed + draw)
        x, y = source.sample(n, generator), target.sample(n, generator)
        noise = torch.randn(2, *x.shape, generator=generator, dtype=torch.float64)
        truth = found.decode(y.float().unflatten(1, shape), size)
        for tau in taus:
            a, b = (
                interpolate(s, e, torch.tensor(tau)).float().unflatten(1, shape)
                for s, e in zip((x, y), noise, strict=True)
            )
            output = found.decode(translate(x, source, target, tau).float().unflatten(1, shape), size)
            predicted = domain_auc(a, b, groups, groups).value
            rows.append({"draw": draw, "tau": tau, "predicted": predicted,
                         "measured": domain_auc(output, truth, groups, groups).value})  # fmt: skip
    table = pd.DataFrame(rows)
    table["gap"] = table["measured"] - table["predicted"]
    result = table.groupby("tau")[["predicted", "measured", "gap"]].mean().reset_index()
    ends = [over_heads(group["gap"], group["draw"]) for _, group in table.groupby("tau")]
    return result.assign(low=[e.low for e in ends], high=[e.high for e in ends], draws=draws, n=2 * n)


def control_of(views: Path, codec: Path, pair: tuple[str, str], judged: Path, *, seed: int = 0) -> pd.DataFrame:
    """`control` at the taus, with the number of images and of heads, of a judged sweep."""
    scores = scores_of(judged)
    ours = scores[scores["method"] == MEDSHIFT]
    taus, n = sorted(ours["tau"].unique()), ours["view"].nunique()
    return control(views, codec, pair, taus, n=n, heads=ours["head"].nunique(), seed=seed)
