"""Rules that choose tau without any truth, from what a user has: scores against the source, sets, noised data.

Each takes scores by rising tau and returns one of the taus. A knee is the point farthest from the chord between the
ends of a curve, both axes scaled to [0, 1] and tau in log-odds (Satopää et al., Finding a "Kneedle" in a Haystack,
2011, for a curve of one bend).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from medshift.errors import ParameterError

ENDS = 0.997  # tau = 1 has no log-odds; it is drawn and bent where this is


def log_odds(taus: Sequence[float] | np.ndarray) -> np.ndarray:
    """ln tau/(1-tau) (T,), the ends of [0, 1] moved inside."""
    t = np.clip(np.asarray(taus, dtype=np.float64), 1 - ENDS, ENDS)
    return np.log(t / (1 - t))


def knee(taus: Sequence[float], values: Sequence[float]) -> float:
    """The tau at the bend of ``values`` (T,) against tau.

    Raises:
        ParameterError: fewer than three taus, or values that are not finite.
    """
    x, y = log_odds(_rising(taus)), np.asarray(values, dtype=np.float64)
    if len(x) < 3 or len(x) != len(y) or not np.isfinite(y).all():
        raise ParameterError(
            f"A knee needs three taus or more, each with a finite value; there are {len(x)}, {len(y)}."
        )
    x, span = (x - x[0]) / (x[-1] - x[0]), y.max() - y.min()
    y = (y - y.min()) / (span or 1.0)
    distance = np.abs((y[-1] - y[0]) * x - (y - y[0]))
    return float(taus[int(distance.argmax())])


def best_rank(taus: Sequence[float], realism: Sequence[float], structure: Sequence[float]) -> float:
    """The paper's own rule: the least mean of the rank of a realism distance (low is good) and of SSIM (high is good).

    Ties go to the higher tau, which changes less.
    """
    ranks = (rankdata(realism) + rankdata(-np.asarray(structure, dtype=np.float64))) / 2
    return float(_rising(taus)[np.flatnonzero(ranks == ranks.min())[-1]])


def largest_below(taus: Sequence[float], auc: Sequence[float], threshold: float) -> float:
    """The largest tau whose noised data sets are told apart no better than ``threshold``; the least tau if none is.

    Above it a classifier still sees the source's domain in the noised data, and so in the translations.
    """
    below = np.flatnonzero(np.asarray(auc) <= threshold)
    return float(_rising(taus)[below[-1] if len(below) else 0])


def crossing(taus: Sequence[float], auc: Sequence[float], level: float) -> float:
    """The tau at which ``auc`` first exceeds ``level``, between taus linear in log-odds; NaN where it never does."""
    x, y = log_odds(_rising(taus)), np.asarray(auc, dtype=np.float64)
    above = np.flatnonzero(y > level)
    if not len(above) or above[0] == 0:
        return float(taus[0]) if len(above) else float("nan")
    k = int(above[0])
    odds = x[k - 1] + (level - y[k - 1]) / (y[k] - y[k - 1]) * (x[k] - x[k - 1])
    return float(1 / (1 + np.exp(-odds)))


def regret(scores: pd.DataFrame, tau: float, metric: str = "psnr_clean") -> pd.Series:
    """What a tau loses to the best one on these very views, view by view (N,), in the metric's unit.

    Args:
        scores: one row a view and tau, columns tau, view and the metric.
        tau: that of a rule, one of the table's.
        metric: high is good.

    Raises:
        ParameterError: the table lacks that tau.
    """
    wide = scores.pivot(index="view", columns="tau", values=metric)
    if tau not in wide.columns:
        raise ParameterError(f"tau {tau:g} was not evaluated; the table holds {', '.join(f'{t:g}' for t in wide)}.")
    return wide[wide.mean().idxmax()] - wide[tau]


def _rising(taus: Sequence[float]) -> Sequence[float]:
    if list(taus) != sorted(set(taus)):
        raise ParameterError(f"The taus {list(taus)} must rise, each once.")
    return taus
