"""Intervals and floors for metrics of whole sets, in which no row is ever drawn twice.

A bootstrap with replacement repeats rows, which FID, coverage and AUC take for structure of the data. See
`medshift.metrics.intervals` for intervals of means of metrics of images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from medshift.errors import ParameterError

__all__ = ["SetInterval", "disjoint_halves", "jackknife_interval"]


@dataclass(frozen=True)
class SetInterval:
    """A metric of whole sets with its interval.

    Attributes:
        value: the metric of all rows, bias and all.
        low: end of the interval for what `value` would be on average over sets of that size.
        high: its other end.
        standard_error: of `value`.
        heads: how many were left out in turn.
    """

    value: float
    low: float
    high: float
    standard_error: float
    heads: int

    @property
    def reach(self) -> float:
        """Half of the interval's length."""
        return (self.high - self.low) / 2


def jackknife_interval(
    metric: Callable[..., float], *sets: np.ndarray, heads: Sequence[np.ndarray], confidence: float = 0.95
) -> SetInterval:
    """An interval for ``metric(*sets)`` from leaving out one head at a time, in all sets.

    With θ_h the metric without head h and H heads, the squared standard error is (H-1)/H Σ (θ_h - θ̄)², and the
    interval is the value ± that times Student's t of H-1. A bias of the metric shifts all θ_h alike and stays in
    the value.

    Measured at 15 rows a head and 6 features, of FID, KID, CMMD, density and coverage: 95 % intervals cover the mean
    value in .92 to .98 of all cases between different laws, of 4 and of 8 heads, with and without differences between
    heads. Between equal laws the metrics' variance falls faster than 1/size, and intervals are too long: .93 to .99.

    Args:
        metric: one number of the sets, as `kid` is, or ``lambda a, b: density_coverage(a, b).coverage``. It gets sets
            of equal numbers of rows wherever all ``sets`` have equal numbers: where heads do not, the last rows of the
            longer ones are cut.
        sets: rows (N,...), features for one.
        heads: for each set the head of each row (N,); the same heads in every set.
        confidence: of the two-sided interval.

    Raises:
        ParameterError: heads do not fit the rows, differ between sets or are fewer than two, or ``metric`` refuses
            what is left.
    """
    labels = [np.asarray(own) for own in heads]
    if not sets or [own.shape for own in labels] != [(len(s),) for s in sets]:
        raise ParameterError(
            f"Heads {[own.shape for own in labels]} of sets of {[len(s) for s in sets]} rows: give one a row of each."
        )
    names = np.unique(labels[0])
    if any(not np.array_equal(np.unique(own), names) for own in labels):
        raise ParameterError("The sets are not of the same heads, so no head can be left out of all; drop lone heads.")
    if len(names) < 2 or not 0.0 < confidence < 1.0:
        raise ParameterError(f"{len(names)} heads at confidence {confidence}: take at least 2, and between 0 and 1.")
    equal = len({len(own) for own in labels}) == 1
    value, without = float(metric(*sets)), []
    for name in names:
        rows = [np.flatnonzero(own != name) for own in labels]
        fewest = min(map(len, rows)) if equal else None
        without.append(float(metric(*(s[r[:fewest]] for s, r in zip(sets, rows, strict=True)))))
    theta, n = np.array(without), len(names)
    error = float(np.sqrt((n - 1) / n * ((theta - theta.mean()) ** 2).sum()))
    reach = float(student.ppf(0.5 + confidence / 2.0, n - 1)) * error
    return SetInterval(value, value - reach, value + reach, error, n)


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
