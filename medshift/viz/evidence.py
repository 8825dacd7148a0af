"""Curves against tau, realism against structure, and heat maps: the figures of the evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medshift.rules import log_odds
from medshift.viz.theme import PALETTE, heading

TICKS = (0.005, 0.02, 0.1, 0.3, 0.6, 0.9)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


@dataclass(frozen=True)
class Curve:
    """One line: x and y (T,), with an interval or none."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    colour: str = ""
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """One axis: its curves, and lines across it by name.

    ``x`` is ``tau`` (in log-odds), ``linear`` or ``log``.
    """

    ylabel: str
    curves: Sequence[Curve]
    levels: Mapping[str, float] = field(default_factory=dict)
    title: str = ""
    xlabel: str = "τ (log-odds)"
    x: str = "tau"
    limits: tuple[float, float] | None = None
    log_y: bool = False


def fig_panels(panels: Sequence[Panel], *, title: str, footer: str = "", columns: int = 3) -> Figure:
    """Panels in rows, one legend for all below; the footer says n, intervals and the data."""
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(2.45 * columns, 2.45 * rows + 0.5), squeeze=False)
    seen: dict[str, Artist] = {}
    for axis, panel in zip(axes.flat, panels, strict=False):
        _panel(axis, panel)
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            seen.setdefault(label, handle)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    longest = max(map(len, seen), default=0)
    figure.legend(
        list(seen.values()),
        list(seen),
        loc="outside lower center",
        ncols=max(1, min(4, int(37 * columns / (longest + 6)))),
    )
    figure.suptitle(heading(title, footer, figure.get_figwidth()), fontsize=7)
    return figure


def _panel(axis: Axes, panel: Panel) -> None:
    shades = [shade for name, shade in PALETTE.items() if name != "grey"]
    every: list[float] = []
    for k, curve in enumerate(panel.curves):
        x = log_odds(curve.x) if panel.x == "tau" else np.asarray(curve.x, dtype=float)
        every += list(curve.x)
        shade = curve.colour or shades[k % len(shades)]
        style = "--" if curve.dashed else "-"
        axis.plot(x, curve.y, style, marker=MARKERS[k % 8], markersize=2.5, color=shade, label=curve.name)
        if curve.low is not None and curve.high is not None:
            axis.fill_between(x, curve.low, curve.high, color=shade, alpha=0.12, linewidth=0)
    for k, (name, level) in enumerate(panel.levels.items()):
        axis.axhline(level, color=("0.35", "0.6")[k % 2], linestyle=(":", "-.")[k % 2], linewidth=0.9, label=name)
    if panel.x == "tau" and every:
        reach = log_odds([max(every)])[0] - log_odds([min(every)])[0]
        ticks: list[float] = []
        for tick in (t for t in TICKS if min(every) <= t <= max(every)):  # none so near that labels would touch
            if not ticks or log_odds([tick])[0] - log_odds(ticks[-1:])[0] > 0.14 * reach:
                ticks.append(tick)
        labels = [f"{t:g}" for t in ticks]
        if max(every) >= 1:
            ticks, labels = [*ticks, 1.0], [*labels, "1"]
        axis.set_xticks(log_odds(ticks), labels)
    elif panel.x == "log":
        axis.set_xscale("log")
    if panel.log_y:
        axis.set_yscale("log")
    if panel.limits:
        axis.set_ylim(*panel.limits)
    axis.set(ylabel=panel.ylabel, xlabel=panel.xlabel, title=panel.title)


def fig_realism_structure(
    table: pd.DataFrame,
    panels: Sequence[tuple[str, str, str, str]],
    fixed: pd.DataFrame,
    *,
    title: str,
    footer: str,
) -> Figure:
    """Realism against structure, one curve a method, every point named by its tau.

    Args:
        table: method, tau and the columns drawn.
        panels: column and label of x, column and label of y.
        fixed: methods without tau, one point each, same columns.
        title: the pair.
        footer: n and the data.
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(3.2 * len(panels), 3.0), squeeze=False)
    shades = [shade for name, shade in PALETTE.items() if name != "grey"]
    for axis, (x, xlabel, y, ylabel) in zip(axes[0], panels, strict=True):
        for k, (method, rows) in enumerate(table.groupby("method", sort=False)):
            rows = rows.sort_values("tau")
            axis.plot(rows[x], rows[y], marker=MARKERS[k], markersize=3, color=shades[k], label=method)
            for _, row in rows.iloc[::2].iterrows():  # every other, or the numbers would lie on each other
                axis.annotate(
                    f"{row['tau']:g}", (row[x], row[y]), xytext=(2, 2), textcoords="offset points", fontsize=5
                )
        for k, (_, row) in enumerate(fixed.iterrows()):
            axis.plot(
                row[x], row[y], MARKERS[3 + k], color="0.3", markersize=4, markerfacecolor="none", label=row["method"]
            )
        axis.set(xlabel=xlabel, ylabel=ylabel)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    figure.suptitle(heading(title, footer, figure.get_figwidth()), fontsize=7)
    return figure


def fig_heatmaps(
    maps: Mapping[str, pd.DataFrame], *, xlabel: str, ylabel: str, unit: str, title: str, footer: str
) -> Figure:
    """Square tables by name in one diverging scale around zero, every cell with its number.

    Args:
        maps: name -> table, index down, columns across.
        xlabel: of the columns.
        ylabel: of the index.
        unit: of the numbers.
        title: what they are.
        footer: n and the data.
    """
    figure, axes = plt.subplots(1, len(maps), figsize=(2.1 * len(maps) + 0.6, 2.5), squeeze=False)
    limit = max(float(np.abs(table.to_numpy()).max()) for table in maps.values()) or 1.0
    for axis, (name, table) in zip(axes[0], maps.items(), strict=True):
        shown = axis.imshow(table.to_numpy(), cmap="PuOr", vmin=-limit, vmax=limit, aspect="auto")
        for i, row in enumerate(table.to_numpy()):
            for j, value in enumerate(row):
                dark = abs(value) > 0.6 * limit
                axis.text(
                    j, i, f"{value:.1f}", ha="center", va="center", fontsize=7, color="white" if dark else "black"
                )
        axis.set_xticks(range(table.shape[1]), [f"{c:g}" for c in table.columns])
        axis.set_yticks(range(table.shape[0]), [f"{c:g}" for c in table.index])
        axis.set(title=name, xlabel=xlabel, ylabel=ylabel)
    figure.colorbar(shown, ax=axes[0], label=unit, shrink=0.8)
    figure.suptitle(heading(title, footer, figure.get_figwidth()), fontsize=7)
    return figure


def fig_intervals(table: pd.DataFrame, *, xlabel: str, title: str, footer: str) -> Figure:
    """Rows down, a mean with its interval across, one colour a group.

    Args:
        table: row, group, mean, low, high; rows from top to bottom in their order.
        xlabel: with its unit.
        title: what is compared.
        footer: n and the data.
    """
    rows, groups = list(dict.fromkeys(table["row"])), list(dict.fromkeys(table["group"]))
    figure, axis = plt.subplots(figsize=(4.6, 0.32 * len(rows) + 1.1))
    shades = [shade for name, shade in PALETTE.items() if name != "grey"]
    for k, group in enumerate(groups):
        here = table[table["group"] == group].set_index("row").loc[rows]
        y = np.arange(len(rows)) + 0.14 * (2 * k - len(groups) + 1)
        spread = np.abs(here[["low", "high"]].to_numpy().T - here["mean"].to_numpy())
        axis.errorbar(here["mean"], y, xerr=spread, fmt=MARKERS[k], markersize=4, color=shades[k], label=group)
    axis.set_yticks(range(len(rows)), rows)
    axis.invert_yaxis()
    axis.set_xlabel(xlabel)
    axis.axvline(0, color="0.7", linewidth=0.7, zorder=0)
    figure.legend(loc="outside lower center", ncols=len(groups))
    figure.suptitle(heading(title, footer, figure.get_figwidth()), fontsize=7)
    return figure
