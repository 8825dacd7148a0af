"""Intervals and floors for metrics of whole sets, from disjoint subsets: no row is ever drawn twice.

A bootstrap with replacement repeats rows, which FID, coverage and AUC take for structure of the data. See
`medshift.metrics.bootstrap` for means of metrics of images, where it is right.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from medshift.errors import ParameterError

__all__ = ["SetInterval", "disjoint_halves", "disjoint_interval"]


@dataclass(frozen=True)
class SetInterval:
    """A metric of whole sets with its interval.

    Attributes:
        value: the metric of all rows, bias and all.
        low: end of the interval for what `value` would be on average over sets of that size.
        high: its other end.
        standard_error: of `value`.
        subset_mean: mean over the subsets: the metric at their smaller size, where its bias is larger.
        subsets: how many there were.
    """

    value: float
    low: float
    high: float
    standard_error: float
    subset_mean: float
    subsets: int


def disjoint_interval(
    metric: Callable[..., float],
    *sets: np.ndarray,
    groups: np.ndarray | tuple[np.ndarray, ...] | None = None,
    subsets: int = 8,
    confidence: float = 0.95,
    seed: int = 0,
) -> SetInterval:
    """An interval for ``metric(*sets)`` from disjoint subsets, no row drawn twice.

    The units (rows, or whole groups such as heads) are dealt at random into K subsets, and θ_k is the metric of the
    k-th. With subset k a share f_k of the units, the squared standard error at full size is Σ f_k (θ_k - θ̄)²/(K-1),
    that is s²/K for equal shares; the interval is the value at full size ± that times Student's t of K-1.

    Assumed: units are independent, and the metric's variance falls as 1/size. Of a kernel distance between equal laws
    the variance falls faster, so its interval is too long there. Subsets must stay large enough for
    the metric to mean the same: for FID, more rows than features.

    Args:
        metric: one number of the sets, as `kid` is, or ``lambda a, b: density_coverage(a, b).coverage``.
        sets: features (N,D).
        groups: none (each row a unit, row i of all sets kept together); labels (N,) that hold for the rows of every
            set; or a tuple of labels (N,) for each set, whose rows are then no pairs. Sets of the same groups are
            dealt alike; groups of unequal size are cut to one number of rows in each subset.
        subsets: K.
        confidence: of the two-sided interval.
        seed: of the dealing.

    Raises:
        ParameterError: there are fewer units than subsets, rows and labels differ in number, or ``metric`` refuses.
    """
    if subsets < 2 or not 0.0 < confidence < 1.0:
        raise ParameterError(f"{subsets} subsets at confidence {confidence}: take at least 2, and between 0 and 1.")
    labels = _labels(sets, groups)
    value = float(metric(*sets))
    rng = np.random.default_rng(seed)
    dealt: dict[tuple, list[np.ndarray]] = {}
    for own in labels:
        units = np.unique(own)
        if len(units) < subsets:
            raise ParameterError(f"{len(units)} groups cannot be dealt into {subsets} subsets; take fewer subsets.")
        dealt.setdefault(tuple(units), np.array_split(rng.permutation(units), subsets))
    results = []
    for k in range(subsets):
        rows = [np.flatnonzero(np.isin(own, dealt[tuple(np.unique(own))][k])) for own in labels]
        if isinstance(groups, tuple):  # or a metric that unequal sizes bias refuses the subset
            fewest = min(len(r) for r in rows)
            rows = [np.sort(rng.permutation(r)[:fewest]) for r in rows]
        results.append(float(metric(*(np.asarray(s)[r] for s, r in zip(sets, rows, strict=True)))))
    share = np.array([len(part) for part in dealt[tuple(np.unique(labels[0]))]], dtype=np.float64)
    share /= share.sum()
    theta = np.array(results)
    mean = float(share @ theta)
    error = float(np.sqrt(share @ (theta - mean) ** 2 / (subsets - 1)))
    reach = float(student.ppf(0.5 + confidence / 2.0, subsets - 1)) * error
    return SetInterval(value, value - reach, value + reach, error, mean, subsets)


def disjoint_halves(
    n: int, *, groups: np.ndarray | None = None, size: int | None = None, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of two disjoint sets of equal size, for a floor: ``a, b = disjoint_halves(len(f)); fid(f[a], f[b])``.

    Args:
        n: rows there are.
        groups: labels (n,); no group has rows in both sets, so the floor holds what differs between heads.
        size: rows in each set; the most there are where not given.
        seed: of the drawing, without replacement.

    Raises:
        ParameterError: there are not two groups, or not ``size`` rows on either side.
    """
    labels = np.arange(n) if groups is None else np.asarray(groups)
    units = np.unique(labels)
    if labels.shape != (n,) or len(units) < 2:
        raise ParameterError(
            f"{n} rows with labels {labels.shape} of {len(units)} groups cannot be halved; give 2 or more."
        )
    rng = np.random.default_rng(seed)
    first = np.isin(labels, rng.permutation(units)[: len(units) // 2])
    sides = [rng.permutation(np.flatnonzero(side)) for side in (first, ~first)]
    most = min(len(side) for side in sides)
    if size is not None and not 1 <= size <= most:
        raise ParameterError(f"A half of {size} rows cannot be had; these groups give at most {most} a side.")
    a, b = (np.sort(side[: size or most]) for side in sides)
    return a, b


def _labels(sets: tuple[np.ndarray, ...], groups: np.ndarray | tuple[np.ndarray, ...] | None) -> list[np.ndarray]:
    """The unit of each row of each set; sets share all their units or none."""
    if not sets:
        raise ParameterError("An interval needs the sets that the metric compares; none was given.")
    if groups is None:
        groups = np.arange(len(sets[0]))
    labels = [np.asarray(g) for g in (groups if isinstance(groups, tuple) else (groups,) * len(sets))]
    if [g.shape for g in labels] != [(len(s),) for s in sets]:
        raise ParameterError(f"Labels {[g.shape for g in labels]} of {[len(s) for s in sets]} rows: give one a row.")
    units = [set(g.tolist()) for g in labels]
    if any(own != other and own & other for own in units for other in units):
        raise ParameterError("Two sets share some of their groups; they must share all of them or none.")
    return labels
