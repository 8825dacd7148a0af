"""Tests behind verdicts: one number a head, and Holm's correction where several verdicts stand side by side.

Views of one head share its anatomy, so a thousand views of four heads are four observations of how well a method does
on heads, not a thousand. A test over views that ignores this rejects true hypotheses far more often than it says. Here
each head counts once, by the mean of its views, and the test is Student's on those means; it is exact for normal means
and equal numbers of views, whatever the correlation within a head. The price is width: with 4 heads the 95 % interval
reaches 1.6 standard deviations of the heads either way, with 24 heads 0.42.

References:
    Aarts et al., Nature Neuroscience 17 (2014) 491: nested data. Holm, Scandinavian Journal of Statistics 6 (1979) 65.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import ttest_1samp

from medshift.errors import ParameterError


class HeadTest(NamedTuple):
    """The mean of the heads' means, its interval, and the two-sided p against the null value."""

    mean: float
    low: float
    high: float
    p: float


def holm(p_values: ArrayLike) -> np.ndarray:
    """Holm's adjusted p values (m,) of one family, in the order given: rejecting those ≤ α errs anywhere with chance α.

    Args:
        p_values: (m,) in [0, 1], m ≥ 1; every member of the family, the uninteresting ones too.

    Raises:
        ParameterError: the family is empty, or a value is outside [0, 1] or NaN.
    """
    from statsmodels.stats.multitest import multipletests  # takes seconds to import

    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not len(p):
        raise ParameterError(f"p values have shape {p.shape}; expected one row of at least one.")
    if not ((p >= 0) & (p <= 1)).all():
        bad = p[~((p >= 0) & (p <= 1))][0]
        raise ParameterError(f"{bad:g} is no p value; expected numbers from 0 to 1.")
    return np.asarray(multipletests(p, method="holm")[1])


def head_test(values: ArrayLike, heads: ArrayLike, null: float = 0.0, confidence: float = 0.95) -> HeadTest:
    """Student's one-sample test that the mean over heads is ``null``, and the t interval of that mean.

    To compare two methods give the differences of each view: the test is then paired. Heads are the outermost
    independent unit; where several networks were trained, give the network's number instead. Each head counts the
    same, however many views it has. The interval excludes ``null`` exactly where p < 1 - ``confidence``.

    Args:
        values: (N,) one finite number a view.
        heads: (N,) the head of each view; any labels.
        null: the value under test.
        confidence: of the two-sided interval.

    Raises:
        ParameterError: sizes differ, a value is not finite, a head has no label, there are fewer than two heads, or
            all heads have the same mean, from which no spread can be told.
    """
    values, labels = np.asarray(values, dtype=np.float64), pd.Series(np.asarray(heads))
    if values.ndim != 1 or len(values) != len(labels):
        raise ParameterError(
            f"Values {values.shape} and heads ({len(labels)},) differ; give each view's value its head."
        )
    if not np.isfinite(values).all() or labels.isna().any():
        raise ParameterError("A value or the label of a head is NaN or infinite; leave that view out and say so.")
    if not 0 < confidence < 1 or not np.isfinite(null):
        raise ParameterError(f"confidence {confidence:g} must lie between 0 and 1, and null {null:g} be finite.")
    means = pd.Series(values).groupby(labels).mean().to_numpy()
    if len(means) < 2:
        raise ParameterError(f"A test over heads needs at least two of them; there is {len(means)}.")
    # Equal up to the rounding of a mean: what is left is no spread between heads.
    if np.ptp(means) <= 1e-12 * np.abs(means).max():
        raise ParameterError(f"All {len(means)} heads have the mean {means[0]:g}; without spread there is no test.")
    result = ttest_1samp(means, null)
    low, high = result.confidence_interval(confidence)
    return HeadTest(float(means.mean()), float(low), float(high), float(result.pvalue))
