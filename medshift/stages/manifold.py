"""How shared is z_tau? Numbers, spectra and embeddings of the inverted latents of all domains."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import pandas as pd
import torch
from scipy.stats import quantile_test
from torch import Tensor

from medshift.data.domains import EvaluationSet
from medshift.evaluate import score
from medshift.metrics.manifold import (
    dealt,
    embed,
    knn_mixing,
    latent_spectrum,
    median_distance,
    mmd,
    retrieval,
    sliced_w2,
)
from medshift.metrics.subsets import jackknife_interval
from medshift.metrics.two_sample import domain_auc
from medshift.stages.job import Job
from medshift.stages.latents import INVERTED, NOISED, SWAPPED, load_latents

ByTau = dict[str, dict[float, Tensor]]
Columns = dict[str, float]
Rows = Tensor | np.ndarray


def build(
    job: Job,
    *,
    role: str,
    pairs: Sequence[tuple[str, str]],
    swap: tuple[str, str],
    neighbours: int,
    embedded: Sequence[float],
    methods: Sequence[str],
    seed: int,
) -> None:
    """Write pairs.csv, domains.csv, spectra.csv, embedding.csv and swap.csv.

    In pairs.csv and domains.csv a metric's ``_low`` and ``_high`` are its 95 % interval over heads, empty where heads
    are too few. ``_floor`` is what the metric says where there is no difference between domains: for distances and
    mixing the same computation, on the same views, with every latent from one domain (mean over the domains); for
    retrieval what chance finds.

    Args:
        job: its inputs ``views`` and ``latents``.
        role: the tier of the latents.
        pairs: domains compared two by two.
        swap: as for the latents.
        neighbours: k of the mixing.
        embedded: taus drawn in the plane.
        methods: of the embedding.
        seed: of projections and of the embedding.
    """
    kinds = {kind: load_latents(job.inputs["latents"], kind) for kind in (INVERTED, NOISED)}
    n = len(next(iter(next(iter(kinds[INVERTED].values())).values())))
    views = EvaluationSet(job.inputs["views"], role, limit=n)
    heads = views.table["head"].to_numpy()
    pd.DataFrame(_pairs(kinds, pairs, heads, seed, job)).to_csv(job.folder / "pairs.csv", index=False)
    pd.DataFrame(_domains(kinds, heads, neighbours)).to_csv(job.folder / "domains.csv", index=False)
    pd.concat(_spectra(kinds)).to_csv(job.folder / "spectra.csv", index=False)
    job.progress(0.8)
    pd.concat(_embeddings(kinds, heads, embedded, methods, seed)).to_csv(job.folder / "embedding.csv", index=False)
    pd.concat(_swap(job, swap, role)).to_csv(job.folder / "swap.csv", index=False)
    job.progress(1.0)


def _pairs(
    kinds: dict[str, ByTau], pairs: Sequence[tuple[str, str]], heads: np.ndarray, seed: int, job: Job
) -> Iterator[dict[str, object]]:
    """Two domains at one tau. The AUC and the distances take one half of the views from each, so none is in both."""
    half = dealt(heads, 2) == 0
    for k, (first, second) in enumerate(pairs):
        for tau in kinds[INVERTED][first]:
            for kind, latents in kinds.items():
                a, b = latents[first][tau], latents[second][tau]
                auc = domain_auc(a[half], b[~half], heads[half], heads[~half])
                yield {
                    "first": first,
                    "second": second,
                    "tau": tau,
                    "kind": kind,
                    "auc": auc.value,
                    "auc_low": auc.low,
                    "auc_high": auc.high,
                    "n": auc.n,
                    **_distances(a, b, half, heads, seed),
                    **_retrieval(a, b, heads),
                    "views": len(a),
                    "heads": auc.heads,
                }
        job.progress(0.6 * (k + 1) / len(pairs))


def _distances(a: Tensor, b: Tensor, half: np.ndarray, heads: np.ndarray, seed: int) -> Columns:
    """Distances of one half of the views in ``a`` from the other in ``b``, and as floor of both halves in one domain.

    Value and floor hold the same views, so of the same heads. Halves of different heads would add to the floor what
    heads differ by, which is not in the value.
    """
    bandwidth = median_distance(a[half], b[~half])
    metrics = {"sliced_w2": partial(sliced_w2, seed=seed), "mmd": partial(mmd, bandwidth=bandwidth)}
    columns: Columns = {}
    for name, metric in metrics.items():
        columns |= _over_heads(name, metric, a[half], b[~half], heads=(heads[half], heads[~half]))
        columns[f"{name}_floor"] = float(np.mean([metric(x[half], x[~half]) for x in (a, b)]))
    return columns


def _over_heads(name: str, metric: Callable[..., float], *sets: Rows, heads: Sequence[np.ndarray]) -> Columns:
    """The metric and its interval; none of two heads, of which one would be left, as nothing is compared within one."""
    if len(np.unique(heads[0])) < 3:
        return {name: metric(*sets), f"{name}_low": np.nan, f"{name}_high": np.nan}
    found = jackknife_interval(metric, *(np.asarray(rows) for rows in sets), heads=heads)
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}


def _retrieval(a: Tensor, b: Tensor, heads: np.ndarray) -> Columns:
    """Retrieval of all views; the median rank is that of the heads' medians, its interval of order statistics."""
    found = retrieval(a, b)
    share = _over_heads("retrieval", lambda first: float(first.mean()), found.first, heads=(heads,))
    share |= {end: float(np.clip(share[end], 0, 1)) for end in ("retrieval_low", "retrieval_high")}
    medians = pd.Series(found.rank).groupby(heads).median()
    interval = quantile_test(medians, q=medians.median(), p=0.5).confidence_interval(0.95)
    return {
        **share,
        "retrieval_floor": found.chance,
        "median_rank": float(medians.median()),
        "median_rank_low": float(interval.low),
        "median_rank_high": float(interval.high),
        "median_rank_floor": (len(heads) + 1) / 2,
    }


def _domains(kinds: dict[str, ByTau], heads: np.ndarray, k: int) -> Iterator[dict[str, object]]:
    """All domains at one tau, no view in two of them: mixing of neighbours; and the spread of all latents."""
    names, every = list(kinds[INVERTED]), np.arange(len(heads))
    part, mixing = dealt(heads, len(names)), partial(knn_mixing, k=k)
    for kind, latents in kinds.items():
        for tau in latents[names[0]]:
            z = torch.stack([latents[name][tau] for name in names])
            yield {
                "kind": kind,
                "tau": tau,
                **_over_heads("mixing", mixing, z[part, every], part, heads, heads=(heads,) * 3),
                "mixing_floor": float(np.mean([mixing(x, part, heads) for x in z])),
                "std": float(z.std()),
                "views": len(heads),
                "heads": len(np.unique(heads)),
            }


def _spectra(kinds: dict[str, ByTau]) -> Iterator[pd.DataFrame]:
    for kind, latents in kinds.items():
        for domain, by_tau in latents.items():
            for tau, z in by_tau.items():
                frequency, power = latent_spectrum(z)
                columns = {"frequency": frequency.numpy(), "power": power.mean(dim=0).numpy()}
                yield pd.DataFrame(columns).assign(kind=kind, domain=domain, tau=tau, std=float(z.std()))


def _embeddings(
    kinds: dict[str, ByTau], heads: np.ndarray, taus: Sequence[float], methods: Sequence[str], seed: int
) -> Iterator[pd.DataFrame]:
    """Every view in one domain alone: were it in all, dots of all colours would meet by showing one image."""
    names = list(kinds[INVERTED])
    part = dealt(heads, len(names))
    place = pd.DataFrame({"domain": np.array(names)[part], "head": heads, "view": np.arange(len(heads))})
    for kind, latents in kinds.items():
        for tau in taus:
            z = torch.stack([latents[name][tau] for name in names])[part, np.arange(len(heads))]
            for method in methods:
                xy = embed(z, seed=seed, method=method)
                yield place.assign(kind=kind, method=method, tau=tau, x=xy[:, 0], y=xy[:, 1])


def _swap(job: Job, swap: tuple[str, str], role: str) -> Iterator[pd.DataFrame]:
    """Scores of the second domain's images decoded from its own z_tau and from the first's."""
    for whose, by_tau in load_latents(job.inputs["latents"], SWAPPED).items():
        for tau, images in by_tau.items():
            views = EvaluationSet(job.inputs["views"], role, limit=len(images))
            yield score(images, views, swap[0], swap[1], method=whose, tau=tau)
