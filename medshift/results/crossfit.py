"""Settings chosen on other heads than those they are judged on, so that no choice flatters itself.

The best of several settings on the very views it is judged on is too good by chance. Here each head is judged at the
setting of the best mean over all *other* heads (leave one head out), so what it says of a head was never seen by the
choice. Heads share their choosers, which correlates their values a little; the t interval over heads takes them as
independent.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from medshift.errors import ParameterError


def chosen_by_others(scores: pd.DataFrame, settings: list[str], metric: str = "psnr_clean") -> dict[Any, Any]:
    """Head -> the setting of the best mean of ``metric`` over the other heads, each head with one vote.

    Args:
        scores: one row a view and setting, with the columns head, ``settings`` and ``metric``.
        settings: columns that make a setting; with several, a setting is a tuple.
        metric: high is good.

    Raises:
        ParameterError: fewer than two heads, so that nobody else can choose.
    """
    means = scores.groupby([*settings, "head"])[metric].mean().unstack("head")
    if means.shape[1] < 2:
        raise ParameterError(f"Other heads choose a setting, and there is {means.shape[1]} head; give two or more.")
    return {head: means.drop(columns=head).mean(axis=1).idxmax() for head in means.columns}


def cross_fitted(scores: pd.DataFrame, settings: list[str], metric: str = "psnr_clean") -> pd.DataFrame:
    """The rows of ``scores`` at the setting that `chosen_by_others` gives their head, by view: one row a view."""
    parts = []
    for head, setting in chosen_by_others(scores, settings, metric).items():
        wanted = setting if isinstance(setting, tuple) else (setting,)
        here = scores["head"] == head
        for column, value in zip(settings, wanted, strict=True):
            here &= scores[column] == value
        parts.append(scores[here])
    return pd.concat(parts).sort_values("view").reset_index(drop=True)


def choices(scores: pd.DataFrame, settings: list[str], metric: str = "psnr_clean") -> str:
    """The settings that the heads' others chose, each once, as text."""
    found = dict.fromkeys(chosen_by_others(scores, settings, metric).values())
    return ", ".join(f"({', '.join(f'{v:g}' for v in s)})" if isinstance(s, tuple) else f"{s:g}" for s in sorted(found))
