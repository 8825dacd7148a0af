"""Findings: named numbers with intervals that notebooks write and the ledger of claims decides with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from medshift.metrics.verdicts import head_test

COLUMNS = ("finding", "value", "low", "high", "n", "p", "unit", "figure", "text")


def measured(
    name: str, values: ArrayLike, heads: ArrayLike, text: str, *, unit: str = "", figure: str = "", null: float = 0.0
) -> dict[str, Any]:
    """A mean over heads with its t interval and the p of ``null``, from one value a view.

    Views without a value (NaN) are left out, and n says how many remain. Where all heads agree exactly, as rules that
    choose one tau do, there is no spread to test: the interval is the value, and p is 1 at ``null`` and else unknown.
    """
    values, heads = np.asarray(values, dtype=np.float64), np.asarray(heads)
    there = np.isfinite(values)
    means = pd.Series(values[there]).groupby(heads[there]).mean()
    if len(means) > 1 and np.ptp(means) <= 1e-12 * np.abs(means).max():
        value = float(means.iloc[0])
        row = stated(name, value, text, low=value, high=value, n=int(there.sum()), unit=unit, figure=figure)
        return row | {"p": 1.0 if value == null else None}
    found = head_test(values[there], heads[there], null)
    row = {"finding": name, "value": found.mean, "low": found.low, "high": found.high, "n": int(there.sum())}
    return row | {"p": found.p, "unit": unit, "figure": figure, "text": text}


def stated(
    name: str,
    value: float,
    text: str,
    *,
    low: float | None = None,
    high: float | None = None,
    n: int | None = None,
    unit: str = "",
    figure: str = "",
) -> dict[str, Any]:
    """A number that is no mean of views, with an interval where it has one."""
    return {"finding": name, "value": float(value), "low": low, "high": high, "n": n, "p": None, "unit": unit} | {
        "figure": figure,
        "text": text,
    }
