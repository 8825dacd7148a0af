"""Rankings of methods by several metrics: three ways to make one order of them, and how far the order depends on it.

A table has one row a method (the index) and one column a metric. `HIGHER` says of each metric whether more is better.
Ranks start at 1, the best. An average of ranks weighs the metrics equally and forgets by how much one method beats
another, so no single order of several metrics is *the* order: look at all of them, and at `win_shares`.

MedShift's Table 1 prints as realism rank the rank of CFID alone, as structure rank the rank of SSIM alone, and as
average their mean; coverage, CMMD and LPIPS do not enter. Of two equal values both get the better rank (1, 1, 3): with
this rule, and not with average, dense or worse ranks, all 13 rows come out as printed. Elsewhere ties share the average
(1.5, 1.5, 3), which keeps the sum of ranks of each metric the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import pandas as pd

from medshift.errors import ParameterError

HIGHER: Mapping[str, bool] = {"cfid": False, "coverage": True, "cmmd": False, "lpips": False, "ssim": True}
GROUPS: Mapping[str, tuple[str, ...]] = {"realism": ("cfid", "coverage", "cmmd"), "structure": ("lpips", "ssim")}

_DIGITS = 9  # to which two averages of ranks count as equal


def missing_runs(
    table: pd.DataFrame, higher: Mapping[str, bool] = HIGHER, methods: Sequence[str] | None = None
) -> list[str]:
    """What a ranking of ``table`` would lack, one entry each; empty where nothing is missing.

    Args:
        table: methods × metrics.
        higher: the metrics that will be ranked.
        methods: every method that was to be run; None takes those of the table.

    Raises:
        ParameterError: a metric or method that is unknown, a method with two rows, a metric that is not numbers.
    """
    _check(table, higher, methods)
    rows = table[list(higher)].reindex(list(table.index if methods is None else methods))
    lacking = []
    for method, absent in rows.isna().iterrows():
        if method not in table.index:
            lacking.append(f"{method}: no row")
        elif absent.any():
            lacking.append(f"{method}: no {', '.join(absent.index[absent])}")
    return lacking


def complete(
    table: pd.DataFrame, higher: Mapping[str, bool] = HIGHER, methods: Sequence[str] | None = None
) -> pd.DataFrame:
    """The ranked columns of ``table`` as float64, in the order of ``methods``, if nothing is missing.

    Infinity is a value (a PSNR of equal images) and NaN is none.

    Raises:
        ParameterError: a run is missing, all of them named; or what `missing_runs` refuses.
    """
    lacking = missing_runs(table, higher, methods)
    if lacking:
        raise ParameterError(
            f"These runs are missing: {'; '.join(lacking)}. Ranks need every method under every metric: run them, or "
            "leave the method or the metric out."
        )
    rows = table if methods is None else table.loc[list(methods)]
    return rows[list(higher)].astype(np.float64)


def _check(table: pd.DataFrame, higher: Mapping[str, bool], methods: Sequence[str] | None) -> None:
    if not higher:
        raise ParameterError("No metric is named; give at least one with its direction, {'ssim': True}.")
    unknown = [metric for metric in higher if metric not in table.columns]
    if unknown:
        raise ParameterError(f"The table has no metric {unknown[0]!r}; it has {', '.join(map(str, table.columns))}.")
    twice = table.index[table.index.duplicated()]
    if len(twice):
        raise ParameterError(f"{twice[0]!r} has more than one row; give each method, with its setting, one.")
    words = [metric for metric in higher if not pd.api.types.is_numeric_dtype(table[metric])]
    if words:
        raise ParameterError(f"Metric {words[0]!r} holds values that are not numbers; expected one number a method.")
    more = [] if methods is None else [method for method in table.index if method not in set(methods)]
    if more:
        raise ParameterError(f"{more[0]!r} has a row but is not among the methods named; name it, or drop its row.")


def ranks(
    table: pd.DataFrame,
    higher: Mapping[str, bool] = HIGHER,
    *,
    methods: Sequence[str] | None = None,
    ties: Literal["average", "min"] = "average",
) -> pd.DataFrame:
    """Rank of each method by each metric of ``higher``, 1 the best (methods × metrics).

    Args:
        table: methods × metrics; other columns are left aside.
        higher: metric -> whether a higher value is better.
        methods: every method that was to be run, where the table alone cannot tell.
        ties: equal values share their average rank, or all take the best of them ("min", as Table 1 prints).

    Raises:
        ParameterError: what `complete` refuses; a metric that is the same for all methods, and so ranks nothing.
    """
    if ties not in ("average", "min"):
        raise ParameterError(f"Ties cannot be broken by {ties!r}; use 'average' or 'min'.")
    values = complete(table, higher, methods)
    constant = [metric for metric in higher if values[metric].nunique() < 2]
    if constant:
        raise ParameterError(
            f"Metric {constant[0]!r} is the same for all {len(values)} methods and ranks nothing; leave it out."
        )
    return pd.DataFrame({m: values[m].rank(method=ties, ascending=not up) for m, up in higher.items()})


def paper_rank(
    table: pd.DataFrame,
    higher: Mapping[str, bool] = HIGHER,
    *,
    realism: str = "cfid",
    structure: str = "ssim",
    methods: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Columns realism_rank, structure_rank and average_rank, by the rule of MedShift's Table 1.

    Raises:
        ParameterError: ``realism`` or ``structure`` has no direction in ``higher``; what `ranks` refuses.
    """
    for metric in (realism, structure):
        if metric not in higher:
            raise ParameterError(f"{metric!r} has no direction; add it to `higher`, beside {', '.join(higher)}.")
    ranked = ranks(table, {m: higher[m] for m in (realism, structure)}, methods=methods, ties="min")
    result = pd.DataFrame({"realism_rank": ranked[realism], "structure_rank": ranked[structure]})
    return result.assign(average_rank=result.mean(axis=1))


def mean_rank(
    table: pd.DataFrame, higher: Mapping[str, bool] = HIGHER, *, methods: Sequence[str] | None = None
) -> pd.Series:
    """Mean over all metrics of ``higher`` of the ranks of each method; ParameterError as of `ranks`."""
    return ranks(table, higher, methods=methods).mean(axis=1).rename("mean_rank")


def group_mean_rank(
    table: pd.DataFrame,
    higher: Mapping[str, bool] = HIGHER,
    *,
    groups: Mapping[str, Sequence[str]] = GROUPS,
    methods: Sequence[str] | None = None,
) -> pd.Series:
    """Mean over the groups of the mean rank within each, so that three metrics of one kind do not outvote two.

    Raises:
        ParameterError: a metric stands in no group or in two, a group holds none; what `ranks` refuses.
    """
    grouped = [metric for group in groups.values() for metric in group]
    if sorted(grouped) != sorted(higher) or not all(groups.values()):
        raise ParameterError(
            f"The groups hold {', '.join(grouped) or 'nothing'}; expected each of {', '.join(higher)} once, and no "
            "empty group."
        )
    ranked = ranks(table, higher, methods=methods)
    return pd.DataFrame({g: ranked[list(m)].mean(axis=1) for g, m in groups.items()}).mean(axis=1).rename("group_mean")


def aggregations(table: pd.DataFrame, *, methods: Sequence[str] | None = None) -> pd.DataFrame:
    """Columns paper, mean and group_mean: the three aggregated ranks of `HIGHER`'s metrics, lower is better."""
    table = complete(table, methods=methods)
    return pd.DataFrame(
        {
            "paper": paper_rank(table)["average_rank"],
            "mean": mean_rank(table),
            "group_mean": group_mean_rank(table),
        }
    )


def orders(scores: pd.DataFrame) -> dict[str, list[tuple[str, ...]]]:
    """Aggregation -> methods from the best to the worst; methods that are equal stand in one tuple, as in the table."""
    result = {}
    for name in scores.columns:
        rounded = scores[name].round(_DIGITS)
        result[str(name)] = [tuple(rounded.index[rounded == value]) for value in sorted(rounded.unique())]
    return result


def win_shares(
    table: pd.DataFrame,
    draws: int = 10_000,
    seed: int = 0,
    higher: Mapping[str, bool] = HIGHER,
    *,
    methods: Sequence[str] | None = None,
) -> pd.Series:
    """Share of all weightings of the metrics under which each method comes first; the shares sum to 1.

    Weights are drawn from Dirichlet(1, ..., 1), every weighting being equally likely, and applied to the ranks, so no
    metric's unit counts. Methods equal under a weighting share it.

    Args:
        table: methods × metrics.
        draws: weightings; the standard error of a share p is √(p(1-p)/draws).
        seed: of the drawing.
        higher: metric -> whether a higher value is better.
        methods: every method that was to be run.

    Raises:
        ParameterError: ``draws`` < 1; what `ranks` refuses.
    """
    if draws < 1:
        raise ParameterError(f"draws is {draws}; expected at least 1.")
    ranked = ranks(table, higher, methods=methods)
    weights = np.random.default_rng(seed).dirichlet(np.ones(ranked.shape[1]), size=draws)
    scores = (weights @ ranked.to_numpy().T).round(_DIGITS)
    first = scores == scores.min(axis=1, keepdims=True)
    return pd.Series((first / first.sum(axis=1, keepdims=True)).mean(axis=0), index=ranked.index, name="win_share")
