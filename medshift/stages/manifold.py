"""How shared is z_tau? Numbers, spectra and embeddings of the inverted latents of all domains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from medshift.data.domains import EvaluationSet
from medshift.evaluate import score
from medshift.metrics.manifold import embed, knn_mixing, latent_spectrum, mmd, retrieval, sliced_w2
from medshift.metrics.two_sample import domain_auc
from medshift.stages.job import Job
from medshift.stages.latents import INVERTED, NOISED, SWAPPED, load_latents

ByTau = dict[str, dict[float, Tensor]]


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
    half = (np.arange(len(heads)) // max(1, len(set(heads)))) % 2 == 0
    for k, (first, second) in enumerate(pairs):
        for tau in kinds[INVERTED][first]:
            for kind, latents in kinds.items():
                a, b = latents[first][tau], latents[second][tau]
                x, y = a[half], b[~half]
                auc = domain_auc(x, y, heads[half], heads[~half])
                found = retrieval(a, b)
                yield {
                    "first": first,
                    "second": second,
                    "tau": tau,
                    "kind": kind,
                    "auc": auc.value,
                    "auc_low": auc.low,
                    "auc_high": auc.high,
                    "n": auc.n,
                    "sliced_w2": sliced_w2(x, y, seed=seed),
                    "mmd": mmd(x, y),
                    "retrieval": found.top1,
                    "median_rank": found.median_rank,
                    "chance": found.chance,
                    "views": len(a),
                }
        job.progress(0.6 * (k + 1) / len(pairs))


def _domains(kinds: dict[str, ByTau], heads: np.ndarray, k: int) -> Iterator[dict[str, object]]:
    """All domains at one tau: mixing of neighbours, and the spread of the latents."""
    names = list(kinds[INVERTED])
    labels, groups = np.repeat(np.arange(len(names)), len(heads)), np.tile(heads, len(names))
    for kind, latents in kinds.items():
        for tau in latents[names[0]]:
            z = torch.cat([latents[name][tau] for name in names])
            yield {"kind": kind, "tau": tau, "mixing": knn_mixing(z, labels, groups, k=k), "std": float(z.std())}


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
    latents = kinds[INVERTED]
    names = list(latents)
    place = pd.DataFrame({"domain": np.repeat(names, len(heads)), "head": np.tile(heads, len(names))})
    for tau in taus:
        z = torch.cat([latents[name][tau] for name in names])
        for method in methods:
            xy = embed(z, seed=seed, method=method)
            yield place.assign(
                view=np.tile(np.arange(len(heads)), len(names)), method=method, tau=tau, x=xy[:, 0], y=xy[:, 1]
            )


def _swap(job: Job, swap: tuple[str, str], role: str) -> Iterator[pd.DataFrame]:
    """Scores of the second domain's images decoded from its own z_tau and from the first's."""
    for whose, by_tau in load_latents(job.inputs["latents"], SWAPPED).items():
        for tau, images in by_tau.items():
            views = EvaluationSet(job.inputs["views"], role, limit=len(images))
            yield score(images, views, swap[0], swap[1], method=whose, tau=tau)
