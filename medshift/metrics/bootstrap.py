"""Intervals for means of per-image metrics when images are not independent.

Views of one head, and of one pose region of it, resemble each other, so resampling views as if they were independent
makes intervals too short. Here whole heads are drawn with replacement, then pose regions within each, then views.
The interval is bias-corrected and accelerated (Efron 1987), the acceleration from leaving out one head at a time.
Not for FID, coverage or AUC, which a bootstrap with replacement inflates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import norm

from medshift.errors import ParameterError


@dataclass(frozen=True)
class Interval:
    """A mean with its interval; ``n`` images from ``heads`` heads."""

    mean: float
    low: float
    high: float
    n: int
    heads: int

    def __str__(self) -> str:
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]"


def _resample(table: pd.DataFrame, levels: list[str], rng: np.random.Generator, draws: int) -> np.ndarray:
    """Bootstrap sums and counts of the groups at ``levels`` (draws, 2)."""
    if not levels:
        values = table["value"].to_numpy()
        drawn = values[rng.integers(len(values), size=(draws, len(values)))]
        return np.stack([drawn.sum(axis=1), np.full(draws, len(values))], axis=1)
    groups = [_resample(g, levels[1:], rng, draws) for _, g in table.groupby(levels[0], sort=True)]
    stacked = np.stack(groups)
    chosen = rng.integers(len(groups), size=(len(groups), draws))
    return stacked[chosen, np.arange(draws)].sum(axis=0)


def hierarchical_interval(
    values: np.ndarray,
    table: pd.DataFrame,
    *,
    levels: tuple[str, ...] = ("head", "region"),
    confidence: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Interval:
    """The mean of per-image ``values`` (N,) and its hierarchical BCa interval.

    Args:
        values: one number an image, finite.
        table: N rows with a column for each of ``levels``, outermost first.
        confidence: of the two-sided interval.
        draws: bootstrap samples.
        seed: of the resampling.

    Raises:
        ParameterError: sizes differ, a value is not finite, or there is one group only at the outermost level.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) != len(table) or not np.isfinite(values).all():
        raise ParameterError(f"{len(values)} values, finite, are needed for {len(table)} views.")
    data = table[list(levels)].assign(value=values)
    outer = levels[0]
    heads = data[outer].nunique()
    if heads < 2:
        raise ParameterError(f"An interval over {outer}s needs at least two of them; the table has {heads}.")
    sums = _resample(data, list(levels), np.random.default_rng(seed), draws)
    means = sums[:, 0] / sums[:, 1]
    mean = float(values.mean())
    left_out = np.array([data.loc[data[outer] != h, "value"].mean() for h in data[outer].unique()])
    centred = left_out.mean() - left_out
    spread = (centred**2).sum() ** 1.5
    acceleration = float((centred**3).sum() / (6.0 * spread)) if spread > 0 else 0.0
    below = np.clip((means < mean).mean() + 0.5 * (means == mean).mean(), 1.0 / draws, 1.0 - 1.0 / draws)
    bias = norm.ppf(below)
    z = norm.ppf([(1 - confidence) / 2, (1 + confidence) / 2])
    levels_ = norm.cdf(bias + (bias + z) / (1 - acceleration * (bias + z)))
    low, high = np.quantile(means, levels_)
    return Interval(mean, float(low), float(high), len(values), heads)
