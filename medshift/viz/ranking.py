"""A published table under several aggregations of ranks: who leads depends on how ranks are added up."""

from __future__ import annotations

from itertools import pairwise

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from medshift.viz.theme import PALETTE, heading

NAMES = {
    "paper": "as in the paper\n(CFID, SSIM)",
    "mean": "mean over\nfive metrics",
    "group mean": "mean of\ngroup means",
}


LEADER = 0.25  # of the distance between two aggregations, from a line's end to its label


def fig_ranking(table: pd.DataFrame, *, footer: str) -> Figure:
    """Lines from aggregation to aggregation, one a method, and shares of first places beside them.

    Args:
        table: method, the columns of `NAMES`, and ``first under random weights``.
        footer: the source.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(6.6, 3.6), gridspec_kw={"width_ratios": [2.2, 1]})
    shades = {"MedShift": PALETTE["blue"], "CycleGAN-Turbo": PALETTE["vermilion"], "SDEdit": PALETTE["green"]}
    columns = list(NAMES)
    labels = apart(list(table[columns[-1]]), 0.24)
    for (_, row), place in zip(table.iterrows(), labels, strict=True):
        family = next((name for name in shades if str(row["method"]).startswith(name)), "")
        shade = shades.get(family, "0.7")
        left.plot(range(len(columns)), [row[c] for c in columns], marker="o", markersize=3, color=shade)
        end, colour = len(columns) - 1, shade if family else "0.4"
        left.plot([end, end + LEADER], [row[columns[-1]], place], color=colour, linewidth=0.6)  # to a label moved away
        left.annotate(row["method"], (end + LEADER, place), xytext=(3, -2), textcoords="offset points", fontsize=6,
                      color=colour)  # fmt: skip
    left.set_xticks(range(len(columns)), list(NAMES.values()))
    left.set(ylabel="aggregated rank (lower is better)", xlim=(-0.2, len(columns) - 0.1))
    left.invert_yaxis()
    shares = table[table["first under random weights"] > 0].sort_values("first under random weights")
    right.barh(shares["method"], shares["first under random weights"], color=PALETTE["grey"])
    right.set(xlabel="share of first places,\nrandom weights of the five metrics")
    right.tick_params(axis="y", labelsize=6)
    figure.suptitle(heading("Who leads depends on how ranks are added up", footer, figure.get_figwidth()), fontsize=7)
    return figure


def apart(places: list[float], gap: float) -> list[float]:
    """Places for labels, in the order given, no two nearer than ``gap``, each near its own."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    found = list(places)
    for before, after in pairwise(order):
        found[after] = max(found[after], found[before] + gap)
    return found
