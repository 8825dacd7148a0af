"""Curves against tau, realism against structure, and heat maps: the figures of the evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from medshift.rules import log_odds
from medshift.viz.theme import PALETTE, heading

TICKS = (0.005, 0.02, 0.1, 0.3, 0.6, 0.9)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


@dataclass(frozen=True)
class Curve:
    """One line: x and y (T,), with an interval of y or none, and of x where a panel draws points."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    colour: str = ""
    dashed: bool = False
    x_low: Sequence[float] | None = None
    x_high: Sequence[float] | None = None


@dataclass(frozen=True)
class Panel:
    """One axis: its curves, and lines across it by name.

    ``x`` is ``tau`` (in log-odds), ``linear`` or ``log``. ``points`` draws no lines and bars for bands, for x without
    an order.
    """

    ylabel: str
    curves: Sequence[Curve]
    levels: Mapping[str, float] = field(default_factory=dict)
    title: str = ""
    xlabel: str = "τ (log-odds)"
    x: str = "tau"
    limits: tuple[float, float] | None = None
    log_y: bool = False
    points: bool = False


def fig_panels(
    panels: Sequence[Panel], *, title: str, footer: str = "", columns: int = 3, width: float = 2.45
) -> Figure:
    """Panels ``width`` inches wide in rows, one legend for all below; the footer says n, intervals and the data."""
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(width * columns, 2.45 * rows + 0.5), squeeze=False)
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
        ncols=max(1, min(4, int(15 * width * columns / (longest + 6)))),
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
        if panel.points:
            _points(axis, x, curve, shade, MARKERS[k % 8])
            continue
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


def _points(axis: Axes, x: np.ndarray, curve: Curve, shade: str, marker: str) -> None:
    """Points with bars both ways."""

    def reach(centre: np.ndarray, low: Sequence[float] | None, high: Sequence[float] | None) -> np.ndarray | None:
        if low is None or high is None:
            return None
        return np.stack([centre - np.asarray(low), np.asarray(high) - centre]).clip(min=0)

    y = np.asarray(curve.y, dtype=float)
    axis.errorbar(x, y, reach(y, curve.low, curve.high), reach(x, curve.x_low, curve.x_high), fmt=marker, markersize=3,
                  color=shade, ecolor=(*to_rgb(shade), 0.4), elinewidth=0.8, label=curve.name)  # fmt: skip


def fig_realism_structure(
    table: pd.DataFrame,
    panels: Sequence[tuple[str, str, str, str]],
    fixed: pd.DataFrame,
    *,
    title: str,
    footer: str,
) -> Figure:
    """Realism against structure, one curve a method in the order of tau, with intervals and as many taus as fit.

    Args:
        table: method, tau and the columns drawn; ends of an interval in ``<column>_low`` and ``_high``, where there
            are some, NaN for none.
        panels: column and label of x, column and label of y; the legend takes the place after the last.
        fixed: methods without tau, one point each, same columns.
        title: the pair.
        footer: n, what the bars are, and the data.
    """
    rows = (len(panels) + 2) // 2
    figure, axes = plt.subplots(rows, 2, figsize=(5.8, 2.55 * rows + 0.4), squeeze=False)
    shades = [shade for name, shade in PALETTE.items() if name != "grey"]
    for axis, (x, xlabel, y, ylabel) in zip(axes.flat, panels, strict=False):
        for k, (method, points) in enumerate(table.groupby("method", sort=False)):
            points = points.sort_values("tau").dropna(subset=[x, y])
            bars = {"xerr": _reach(points, x), "yerr": _reach(points, y)}
            axis.errorbar(points[x], points[y], **bars, fmt="-" + MARKERS[k], markersize=3.5, color=shades[k],
                          ecolor=(*to_rgb(shades[k]), 0.35), elinewidth=0.8, label=method)  # fmt: skip
            first = points.iloc[:1]
            axis.plot(first[x], first[y], "o", markersize=8, color=shades[k], markerfacecolor="none")
        for k, (_, row) in enumerate(fixed.dropna(subset=[x, y]).iterrows()):
            one = row.to_frame().T
            bars = {"xerr": _reach(one, x), "yerr": _reach(one, y)}
            axis.errorbar([row[x]], [row[y]], **bars, fmt=MARKERS[3 + k], color="0.3", markersize=5, elinewidth=0.8,
                          markerfacecolor="none", label=row["method"])  # fmt: skip
        axis.set(xlabel=xlabel, ylabel=ylabel)
    figure.suptitle(heading(title, footer, figure.get_figwidth()), fontsize=7)
    for axis, (x, _, y, _) in zip(axes.flat, panels, strict=False):
        _name_taus(figure, axis, table.dropna(subset=[x, y]), x, y)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    handles, labels = axes[0, 0].get_legend_handles_labels()
    axes.flat[len(panels)].legend(handles, labels, loc="center", frameon=False)
    return figure


def _reach(rows: pd.DataFrame, column: str) -> np.ndarray | None:
    """How far an interval reaches down and up (2,N), nothing where there is none."""
    if f"{column}_low" not in rows:
        return None
    ends = rows[[column, f"{column}_low", f"{column}_high"]].to_numpy(dtype=float)
    return np.nan_to_num(np.stack([ends[:, 0] - ends[:, 1], ends[:, 2] - ends[:, 0]]).clip(min=0))


def _name_taus(figure: Figure, axis: Axes, table: pd.DataFrame, x: str, y: str, apart: float = 15.0) -> None:
    """The tau beside points, those at the ends first, none within ``apart`` points of print of a named one."""
    figure.draw_without_rendering()
    placed: list[np.ndarray] = []
    ends = table.groupby("method")["tau"].transform("min").eq(table["tau"]) | table.groupby("method")["tau"].transform(
        "max"
    ).eq(table["tau"])
    for _, row in table.assign(end=ends).sort_values("end", ascending=False, kind="stable").iterrows():
        place = np.asarray(axis.transData.transform((row[x], row[y]))) * 72 / figure.dpi
        if all(np.hypot(*(place - other)) >= apart for other in placed):
            placed.append(place)
            axis.annotate(f"{row['tau']:g}", (row[x], row[y]), xytext=(3, 4), textcoords="offset points", fontsize=6)


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
