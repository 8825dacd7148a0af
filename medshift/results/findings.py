"""Findings: named numbers with intervals that notebooks write and the ledger of claims decides with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import t as student

from medshift.metrics.intervals import Interval
from medshift.metrics.verdicts import head_test

COLUMNS = ("finding", "value", "low", "high", "n", "heads", "p", "unit", "figure", "text")


def over_heads(values: ArrayLike, heads: ArrayLike, confidence: float = 0.95) -> Interval:
    """The mean of the heads' means and its t interval, from one value a view; the one interval of tables and ledger.

    Views without a value (NaN) are left out, and n says how many remain. Where all heads agree exactly, as rules that
    choose one tau do, the interval is the value.

    Raises:
        ParameterError: fewer than two heads have a value.
    """
    values, heads = np.asarray(values, dtype=np.float64), np.asarray(heads)
    there = np.isfinite(values)
    means = pd.Series(values[there]).groupby(heads[there]).mean()
    n = int(there.sum())
    if len(means) > 1 and np.ptp(means) <= 1e-12 * np.abs(means).max():
        value = float(means.iloc[0])
        return Interval(value, value, value, n, len(means))
    found = head_test(values[there], heads[there], confidence=confidence)
    return Interval(found.mean, found.low, found.high, n, len(means))


def measured(
    name: str, values: ArrayLike, heads: ArrayLike, text: str, *, unit: str = "", figure: str = "", null: float = 0.0
) -> dict[str, Any]:
    """A mean over heads with the interval of `over_heads` and the two-sided p of ``null``, from one value a view.

    Where all heads agree exactly there is no spread to test: p is 1 at ``null`` and else unknown.
    """
    values, heads = np.asarray(values, dtype=np.float64), np.asarray(heads)
    found, there = over_heads(values, heads), np.isfinite(values)
    row = stated(name, found.mean, text, low=found.low, high=found.high, n=found.n, heads=found.heads, unit=unit,
                 figure=figure)  # fmt: skip
    if found.low == found.high:
        return row | {"p": 1.0 if found.mean == null else None}
    return row | {"p": head_test(values[there], heads[there], null).p}


def ratio_over_heads(
    power: np.ndarray, reference: np.ndarray, heads: ArrayLike
) -> tuple[list[float], list[float], list[float]]:
    """Mean of power (N,K) over that of a reference (N,K), column by column, with the ends of its 95 % interval.

    Each head has one ratio, of its mean powers; their geometric mean and t interval are taken.
    """
    labels = np.asarray(heads)
    units = np.unique(labels)
    means = [np.stack([some[labels == head].mean(axis=0) for head in units]) for some in (power, reference)]
    found = [over_heads(logs, units) for logs in np.log(means[0] / means[1]).T]
    return (
        [float(np.exp(f.mean)) for f in found],
        [float(np.exp(f.low)) for f in found],
        [float(np.exp(f.high)) for f in found],
    )


def left_out(number: Callable[[Any], float], heads: ArrayLike, confidence: float = 0.95) -> Interval:
    """A number of all heads with its jackknife t interval, each head left out in turn (Tukey 1958).

    For numbers that are no mean over heads: a place of a maximum, a distance of sets. No row is drawn twice. The ends
    are NaN with fewer than three heads, of which leaving one out leaves nothing to compare.

    Args:
        number: takes the head to leave out, None for none.
        heads: the head of each view.
        confidence: of the interval.
    """
    labels = np.asarray(heads)
    units, value = list(dict.fromkeys(labels.tolist())), float(number(None))
    g = len(units)
    if g < 3:
        return Interval(value, float("nan"), float("nan"), len(labels), g)
    without = np.array([number(head) for head in units])
    error = np.sqrt((g - 1) / g * ((without - without.mean()) ** 2).sum())
    reach = float(student.ppf((1 + confidence) / 2, g - 1) * error)
    return Interval(value, value - reach, value + reach, len(labels), g)


def stated(
    name: str,
    value: float,
    text: str,
    *,
    low: float | None = None,
    high: float | None = None,
    n: int | None = None,
    heads: int | None = None,
    unit: str = "",
    figure: str = "",
) -> dict[str, Any]:
    """A number that is no mean of views, with an interval where it has one.

    ``heads`` are the independent units of a t interval: one more than its degrees of freedom. Without them the ledger
    takes the interval for a normal one. Ends that are NaN, as of an interval over too few heads, are left out.
    """
    if low is None or high is None or not (np.isfinite(low) and np.isfinite(high)):
        low = high = None
    row = {"finding": name, "value": float(value), "low": low, "high": high, "n": n, "heads": heads, "p": None}
    return row | {"unit": unit, "figure": figure, "text": text}
