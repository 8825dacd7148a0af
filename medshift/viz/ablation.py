"""Ablations: scores with their intervals against what was varied."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medshift.viz.theme import PALETTE
from medshift.viz.tradeoff import METRICS, log_odds

COLOURS = [PALETTE[name] for name in ("blue", "orange", "vermilion", "purple", "green", "black")]
SOLVER_COLOURS = {
    "euler": PALETTE["vermilion"],
    "midpoint": PALETTE["green"],
    "heun": PALETTE["blue"],
    "rk4": PALETTE["purple"],
    "dopri5": PALETTE["black"],
}


def _band(axis: Axes, x: np.ndarray, rows: pd.DataFrame, metric: str, **style: Any) -> None:
    axis.plot(x, rows[metric], marker="o", markersize=2.5, **style)
    axis.fill_between(x, rows[f"{metric}_low"], rows[f"{metric}_high"], color=style["color"], alpha=0.15, linewidth=0)


def fig_guidance(table: pd.DataFrame, footer: str, metrics: Sequence[str] = ("psnr_clean", "ssim_source")) -> Figure:
    """Scores against τ, one line a guidance scale, one column a number of steps.

    Args:
        table: finished runs with ``guidance``, ``tau``, ``steps`` and the metrics' means and intervals.
        footer: n and the data.
        metrics: rows of panels.
    """
    steps = sorted(table["steps"].unique())
    size = (2.3 * len(steps), 2.0 * len(metrics) + 0.6)
    figure, axes = plt.subplots(len(metrics), len(steps), figsize=size, sharex=True, sharey="row", squeeze=False)
    for j, n in enumerate(steps):
        for i, metric in enumerate(metrics):
            axis = axes[i, j]
            for k, (scale, rows) in enumerate(table[table["steps"] == n].groupby("guidance")):
                rows = rows.sort_values("tau")
                _band(axis, log_odds(rows["tau"].to_numpy()), rows, metric, color=COLOURS[k], label=f"w = {scale:g}")
            if j == 0:
                axis.set_ylabel(METRICS[metric])
        axes[0, j].set_title(f"{int(n)} Heun intervals")
        taus = np.sort(table["tau"].unique())
        axes[-1, j].set_xticks(log_odds(taus), [f"{t:g}" for t in taus])
        axes[-1, j].set_xlabel("τ (log-odds)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(COLOURS))
    figure.suptitle(footer, fontsize=6, color="0.35")
    return figure


def fig_sizes(table: pd.DataFrame, curves: pd.DataFrame, footer: str) -> Figure:
    """Left: loss on unseen heads while learning. Right: PSNR against parameters for each budget of images.

    Args:
        table: finished runs with ``width``, ``images``, ``parameters`` and PSNR with its interval.
        curves: ``images``, ``mean``, ``min``, ``max``, ``width``, ``budget``.
        footer: n and the data.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.0, 2.9))
    widths, budgets = sorted(table["width"].unique()), sorted(table["images"].unique())
    for k, width in enumerate(widths):
        for budget, style in zip(budgets, (":", "-"), strict=False):
            rows = curves[(curves["width"] == width) & (curves["budget"] == budget)]
            label = f"width {width:g}" if budget == budgets[-1] else None
            left.plot(rows["images"], rows["mean"], style, color=COLOURS[k], label=label, marker=".", markersize=3)
            if budget == budgets[-1]:
                left.fill_between(rows["images"], rows["min"], rows["max"], color=COLOURS[k], alpha=0.12, linewidth=0)
    left.set(xlabel="images seen", ylabel="loss on unseen heads", yscale="log")
    left.yaxis.set_major_formatter("{x:g}")
    left.yaxis.set_minor_formatter("{x:.2g}")
    left.legend(frameon=False, title="solid: all images; dotted: half", title_fontsize=6)
    for k, (budget, rows) in enumerate(table.groupby("images")):
        rows = rows.sort_values("parameters")
        x = rows["parameters"].to_numpy() / 1e6 * (1 + 0.03 * (2 * k - 1))  # beside each other, not on top
        centre = rows["psnr_clean"].to_numpy()
        error = np.abs(rows[["psnr_clean_low", "psnr_clean_high"]].to_numpy().T - centre)
        colour = PALETTE["grey"] if k == 0 else PALETTE["black"]
        right.errorbar(
            x, centre, error, marker="o", markersize=3, capsize=2, color=colour, label=f"{int(str(budget))} images"
        )
    right.set(xlabel="parameters [million]", ylabel=METRICS["psnr_clean"], xscale="log")
    ticks = np.sort(table["parameters"].unique()) / 1e6
    right.set_xticks(ticks, [f"{t:.2g}" for t in ticks])
    right.minorticks_off()
    right.margins(y=0.3)
    right.legend(frameon=False, loc="upper left")
    figure.supxlabel(footer, fontsize=6, color="0.35")
    return figure


def fig_solvers(table: pd.DataFrame, footer: str, metrics: Sequence[str] = ("psnr_clean", "ssim_clean")) -> Figure:
    """Scores against network evaluations, one line a solver, full lines on the refined grid, dashed on the uniform one.

    Args:
        table: finished runs with ``solver``, ``grid``, ``tau``, ``nfe`` and the metrics' means and intervals.
        footer: n and the data.
        metrics: rows of panels.
    """
    taus = sorted(table["tau"].unique())
    size = (max(3.5, 3.2 * len(taus)), 2.2 * len(metrics) + 0.6)
    figure, axes = plt.subplots(len(metrics), len(taus), figsize=size, sharex=True, sharey="row", squeeze=False)
    for j, tau in enumerate(taus):
        here = table[table["tau"] == tau]
        for i, metric in enumerate(metrics):
            axis = axes[i, j]
            for (solver, grid), rows in here.groupby(["solver", "grid"], dropna=False, sort=False):
                rows, colour = rows.sort_values("nfe"), SOLVER_COLOURS[str(solver)]
                if solver == "dopri5":
                    axis.axhline(float(rows[metric].iloc[0]), color=colour, linewidth=0.7, linestyle="-.",
                                 label=f"dopri5, {rows['nfe'].iloc[0]:.0f} evaluations")  # fmt: skip
                    continue
                style = "--" if grid == "uniform" else "-"
                label = f"{solver}, {grid if isinstance(grid, str) else 'refined'}"
                _band(axis, rows["nfe"].to_numpy(), rows, metric, color=colour, linestyle=style, label=label)
            axis.set_xscale("log", base=2)
            if j == 0:
                axis.set_ylabel(METRICS[metric])
        axes[0, j].set_title(f"τ = {tau:g}")
        axes[-1, j].set_xlabel("network evaluations of an image, both legs")
    handles: dict[str, Any] = {}
    for axis in axes[0]:
        handles |= {label: handle for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=3)
    figure.suptitle(footer, fontsize=6, color="0.35")
    return figure
