"""Every metric of one sweep: images against source and truth, sets against the target's images of other views.

The reference of a set metric is as many images of the target domain, from other views of the same unseen heads. A
second set of the target's own images is judged beside the translations: the target-against-target floor. Intervals of
metrics of sets are over heads, each left out in turn from translations and reference alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from medshift.baselines.blur_tone import BlurTone
from medshift.data.domains import EvaluationSet
from medshift.evaluate import TWIN, score
from medshift.metrics.edges import edge_map
from medshift.metrics.features import extractor, why_not
from medshift.metrics.intervals import hierarchical_interval
from medshift.metrics.landmarks import landmark_drift, mean_drift, measured_landmarks
from medshift.metrics.noise import (
    grey_histograms,
    histogram_w1,
    histograms_w1,
    noise_from_residual,
    noise_power_spectrum,
    power_distance,
)
from medshift.metrics.perceptual import lpips, mae, ms_ssim, st_lpips, why_no_lpips
from medshift.metrics.realism import cmmd, conditional_fid, density_coverage, fid, fid_bias_note, kid
from medshift.metrics.structure import masked_mean, psnr
from medshift.metrics.subsets import jackknife_interval
from medshift.metrics.two_sample import domain_auc
from medshift.stages.images import STATISTICS_IMAGES, open_images
from medshift.stages.job import Job
from medshift.stages.kept import KeptViews
from medshift.stages.sweep import CYCLE, FRESH, MEDSHIFT, load_sweep

NOTHING, TARGET = "doing nothing", "target's own images"
DEEP = ("FID", "KID", "density", "coverage", "conditional FID")  # of every extractor but CLIP
HALF_LEVEL = 1 / 255  # half a grey level of a display of 8 bits: closer to the range, a value is rounded into it
PERCEPTUAL_SIDE = 32  # pixels; smaller images have no LPIPS
THREE_SCALES_SIDE = 44  # pixels; smaller images have room for two scales of MS-SSIM


def build(
    job: Job,
    *,
    source: str,
    target: str,
    role: str,
    views: int,
    images: bool,
    sets: bool,
    deep: Sequence[str],
    components: int,
    neighbours: int,
) -> None:
    """Write scores.csv (one row a view, method and tau), sets.csv (one row a metric, method and tau) and cycle.csv.

    Args:
        job: its inputs ``views`` and ``sweep``.
        source: domain translated from.
        target: domain translated to.
        role: the tier of the sweep.
        views: how many it translated.
        images: also every costly metric of an image, and methods without a network; else PSNR, SSIM and noise alone.
        sets: also metrics of sets.
        deep: extractors of sets; one whose weights are missing leaves rows that say so.
        components: principal components of the conditional FID.
        neighbours: k of density and coverage.
    """
    swept = load_sweep(job.inputs["sweep"])
    every = EvaluationSet(job.inputs["views"], role, limit=2 * views)
    some = KeptViews(job.inputs["views"], role, limit=views)
    outputs = _outputs(job, swept, some, source, target, fixed=images)
    rows = []
    for k, (method, tau, output) in enumerate(outputs):
        rows.append(_score_images(output, some, source, target, method, tau, costly=images))
        job.progress(0.5 * (k + 1) / len(outputs))
    pd.concat(rows).to_csv(job.folder / "scores.csv", index=False)
    if CYCLE in swept:
        _cycles(swept[CYCLE], some, source).to_csv(job.folder / "cycle.csv", index=False)
    if sets:
        judge = SetJudge(every, some, source, target, deep, components, neighbours, job.device)
        found = []
        for k, (method, tau, output) in enumerate(outputs):
            found += [{"method": method, "tau": tau} | row for row in judge.rows(output)]
            job.progress(0.5 + 0.5 * (k + 1) / len(outputs))
        found += [{"method": TARGET, "tau": np.nan} | row for row in judge.rows(some.exposure(target, 1))]
        if FRESH in swept:
            found += list(_same_law(swept, some))
        pd.DataFrame(found).to_csv(job.folder / "sets.csv", index=False)


def _outputs(
    job: Job, swept: dict[str, dict[float, Tensor]], some: EvaluationSet, source: str, target: str, *, fixed: bool
) -> list[tuple[str, float, Tensor]]:
    """Method, tau (NaN without one) and images of all that is judged."""
    found = [(method, tau, images) for method in (MEDSHIFT, FRESH) for tau, images in swept.get(method, {}).items()]
    exposure = some.exposure(source, 0)
    found.append((NOTHING, np.nan, exposure))
    if not fixed:
        return found
    images = open_images(job.inputs["views"], job.data)
    floor = BlurTone([part[:STATISTICS_IMAGES] for part in images.training(STATISTICS_IMAGES)], images.domains)
    return [
        *found,
        (floor.name, np.nan, floor.translate(exposure, source, target)),
        (TWIN, np.nan, some.exposure(target, 1)),
    ]


def _score_images(
    output: Tensor, some: EvaluationSet, source: str, target: str, method: str, tau: float, *, costly: bool
) -> pd.DataFrame:
    table = score(output, some, source, target, method=method, tau=tau)
    mask = some.open_field
    entered, clean = some.exposure(source, 0), some.clean(target)
    table["shift"] = shift_done(output, entered, clean, mask).numpy()
    if not costly:
        return table
    noisy = some.exposure(target, 0)
    table["mae_clean"], table["mae_noisy"] = mae(output, clean, mask).numpy(), mae(output, noisy, mask).numpy()
    for name, reference in (("source", entered), ("clean", clean)):
        if min(output.shape[-2:]) >= PERCEPTUAL_SIDE:
            table[f"st_lpips_{name}"] = st_lpips(output, reference, mask).numpy()
            table[f"lpips_{name}"] = np.nan if why_no_lpips() else lpips(output, reference, mask).numpy()
            scales = 3 if min(output.shape[-2:]) >= THREE_SCALES_SIDE else 2
            table[f"ms_ssim_{scales}_{name}"] = ms_ssim(output, reference, mask, scales=scales).numpy()
        edges = edge_map(output, reference, mask)
        table[f"edge_precision_{name}"], table[f"edge_recall_{name}"] = edges.precision.numpy(), edges.recall.numpy()
        table[f"invented_{name}"], table[f"lost_{name}"] = edges.invented.numpy(), edges.lost.numpy()
    pixel_mm = torch.tensor(some.table["fov"].to_numpy()) / output.shape[-1]
    drift = landmark_drift(output, clean, some.landmarks, mask, pixel_mm=pixel_mm)
    table["drift_mm"], table["landmarks"] = mean_drift(drift).numpy(), measured_landmarks(drift).numpy()
    return table


def shift_done(output: Tensor, entered: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    """Share (N,) of the way from source to truth that an output goes: <o-s, t-s> / <t-s, t-s> in the open field."""
    way, gone = (truth - entered) * mask, (output - entered) * mask
    return (gone * way).flatten(1).sum(1) / (way * way).flatten(1).sum(1)


def _cycles(by_tau: dict[float, Tensor], some: EvaluationSet, source: str) -> pd.DataFrame:
    """PSNR to the source of images that went to the target and back."""
    parts = []
    for tau, back in by_tau.items():
        n = len(back)
        value = psnr(back, some.exposure(source, 0)[:n], some.open_field[:n]).clamp(max=100.0)
        here = some.table[["head", "region"]].iloc[:n].assign(tau=tau, view=range(n), psnr_source=value.numpy())
        parts.append(here)
    return pd.concat(parts)


def _same_law(swept: dict[str, dict[float, Tensor]], some: EvaluationSet) -> Iterator[dict[str, object]]:
    """Inverted against fresh noise: with an exact field both have one law, and no classifier tells them apart.

    Each method gives the views of every other position, so that no view is in both sets.
    """
    heads = some.table["head"].to_numpy()
    first = (np.arange(len(some)) // max(1, some.table["head"].nunique())) % 2 == 0
    for tau, inverted in swept[MEDSHIFT].items():
        found = domain_auc(inverted[first], swept[FRESH][tau][~first], heads[first], heads[~first])
        row = {"value": found.value, "low": found.low, "high": found.high, "n": found.n}
        yield {"method": "inverted against fresh", "tau": tau, "metric": "AUC", "features": found.features} | row


@dataclass
class SetJudge:
    """Metrics of a set of images (N,1,H,W) against the target's images of other views."""

    every: EvaluationSet
    some: EvaluationSet
    source: str
    target: str
    deep: Sequence[str]
    components: int
    neighbours: int
    device: str

    def __post_init__(self) -> None:
        n = len(self.some)
        self.reference = self.every.exposure(self.target, 0)[n:][:n]
        self.heads = self.every.table["head"].to_numpy()
        self.mask = self.every.open_field
        self.extractors = {name: extractor(name, device=self.device) for name in self.deep if not why_not(name)}
        self.features = {name: found(self.reference) for name, found in self.extractors.items()}
        pairs = {"entered": self.some.exposure(self.source, 0), "truth": self.some.exposure(self.target, 0)}
        self.paired = {
            name: {what: found(images) for what, images in pairs.items()} for name, found in self.extractors.items()
        }

    def rows(self, images: Tensor) -> Iterator[dict[str, object]]:
        """Metric, features, value, interval, n and a note, one row each; intervals by leaving out a head at a time."""
        n = min(len(images), len(self.reference))
        images, reference = images[:n], self.reference[:n]
        mask, masks = self.mask[:n], self.mask[len(self.some) :][:n]
        heads, theirs = self._heads(n)
        yield self._outside(images)
        found = domain_auc(images, reference, heads, theirs)
        yield self._row("AUC", found.features, found.value, found.low, found.high, n=found.n)
        w1 = histogram_w1(images, reference, mask, masks)
        *tones, middles = grey_histograms(images, reference, mask, masks)
        reach = jackknife_interval(partial(histograms_w1, middles=middles), *tones, heads=(heads, theirs)).reach
        yield self._row("histogram W1", "grey values", w1, w1 - reach, w1 + reach, n=n)
        ours, other = (_noise_powers(*of) for of in ((images, mask), (reference, masks)))
        yield self._jackknifed("spectrum distance", "high-pass residual, dB", power_distance, ours, other)
        if why := why_no_lpips():
            yield self._row("LPIPS", "AlexNet", float("nan"), n=n, note=why)
        for name in self.deep:
            if why := why_not(name):
                for metric in DEEP if name != "CLIP" else ("CMMD",):
                    yield self._row(metric, name, float("nan"), n=n, note=why)
                continue
            # Features see what a display shows; how much of a translation that hides, the first row says.
            yield from self._deep(name, self.extractors[name](images.clamp(-1.0, 1.0)))

    def _heads(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Heads of the first ``n`` views, and of as many of the reference."""
        return self.heads[:n], self.heads[len(self.some) :][:n]

    def _outside(self, images: Tensor) -> dict[str, object]:
        """Share of open pixels that no display shows, and how far out the furthest is."""
        n = len(images)
        out = masked_mean((images.abs() > 1.0 + HALF_LEVEL).double(), self.mask[:n]).numpy()
        found = hierarchical_interval(out, self.every.table.iloc[:n])
        furthest = float(images.abs().where(self.mask[:n], 0.0).max())
        note = f"furthest pixel at {furthest:.2f}"
        return self._row("pixels outside", "[-1,1]", found.mean, found.low, found.high, n=n, note=note)

    def _deep(self, name: str, features: np.ndarray) -> Iterator[dict[str, object]]:
        """Metrics of features (N,D), against as many of the reference."""
        n, reference = len(features), self.features[name][: len(features)]
        if name == "CLIP":
            yield self._jackknifed("CMMD", name, cmmd, features, reference)
            return
        yield self._jackknifed("FID", name, fid, features, reference, note=fid_bias_note(n, features.shape[1]))
        yield self._jackknifed("KID", name, kid, features, reference)
        yield self._jackknifed("density", name, partial(_density, k=self.neighbours), features, reference)
        yield self._jackknifed("coverage", name, partial(_coverage, k=self.neighbours), features, reference)
        heads, _ = self._heads(n)
        left = n - int(np.unique(heads, return_counts=True)[1].max())  # rows without a head
        components = max(1, min(self.components, n // 2, left - 2))
        of = partial(conditional_fid, components=components)
        entered, truth = (self.paired[name][what][:n] for what in ("entered", "truth"))
        found = jackknife_interval(of, entered, truth, features, heads=(heads, heads, heads))
        note = f"{components} principal components"
        yield self._row("conditional FID", name, found.value, found.low, found.high, n=n, note=note)

    def _jackknifed(
        self,
        metric: str,
        features: str,
        of: Callable[..., float],
        ours: np.ndarray,
        reference: np.ndarray,
        note: str = "",
    ) -> dict[str, object]:
        found = jackknife_interval(of, ours, reference, heads=self._heads(len(ours)))
        return self._row(metric, features, found.value, found.low, found.high, n=len(ours), note=note)

    def _row(
        self, metric: str, features: str, value: float, low: float = np.nan, high: float = np.nan, **more: object
    ) -> dict[str, object]:
        row = {"metric": metric, "features": features, "value": value, "low": low, "high": high, "note": ""}
        return row | more


def _noise_powers(images: Tensor, mask: Tensor) -> np.ndarray:
    """Powers (N,K) of what a blur removes of each image."""
    return noise_power_spectrum(*noise_from_residual(images, mask))[1].numpy()


def _density(fake: np.ndarray, real: np.ndarray, k: int) -> float:
    return density_coverage(real, fake, k).density


def _coverage(fake: np.ndarray, real: np.ndarray, k: int) -> float:
    return density_coverage(real, fake, k).coverage
