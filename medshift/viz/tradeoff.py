"""The trade-off in tau: agreement with the source and with the truth, floors and the noise twin as lines."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medshift.evaluate import TWIN
from medshift.rules import log_odds
from medshift.viz.theme import PALETTE, heading

SOLVER_COLOURS = {"Heun, refined": PALETTE["blue"], "Euler 50, as published": PALETTE["vermilion"]}
FLOOR_STYLES = {
    "doing nothing": (PALETTE["grey"], ":"),
    "histogram match": (PALETTE["green"], "--"),
    "blur + tone curve": (PALETTE["orange"], "--"),
    "nearest target training image": (PALETTE["purple"], "-."),
    TWIN: (PALETTE["black"], "-"),
}
METRICS = {
    "psnr_clean": "PSNR to noise-free truth [dB]",
    "ssim_clean": "SSIM to noise-free truth",
    "psnr_noisy": "PSNR to noisy truth [dB]",
    "ssim_noisy": "SSIM to noisy truth",
    "psnr_source": "PSNR to source [dB]",
    "ssim_source": "SSIM to source",
}


def _draw(axis: Axes, sweep: pd.DataFrame, floors: pd.DataFrame, metric: str, chosen: float | None) -> None:
    for names, (colour, style) in _lines(floors).items():
        level = float(floors.loc[floors["method"] == names[0], metric].iloc[0])
        axis.axhline(level, color=colour, linestyle=style, linewidth=0.9, label=" = ".join(names))
    for solver, group in sweep.groupby("solver", sort=False):
        group = group.sort_values("tau")
        x, shade = log_odds(group["tau"].to_numpy()), SOLVER_COLOURS[str(solver)]
        axis.plot(x, group[metric], marker="o", markersize=2.5, color=shade, label=f"MedShift, {solver}")
        axis.fill_between(x, group[f"{metric}_low"], group[f"{metric}_high"], color=shade, alpha=0.18, linewidth=0)
    if chosen is not None:
        axis.axvline(float(log_odds([chosen])[0]), color="0.6", linewidth=0.7, zorder=0)
    axis.set_ylabel(METRICS[metric], fontsize=7)
    if metric == "psnr_source":
        # At tau = 1 the image is the source's, and its PSNR without a bound.
        finite = sweep[metric][sweep[metric] < 60]
        axis.set_ylim(top=float(finite.max()) + 3 if len(finite) else None)


def _lines(floors: pd.DataFrame) -> dict[tuple[str, ...], tuple[str, str]]:
    """Names of floors with the style of their line; floors that agree in every metric are one line with all names."""
    metrics = [m for m in METRICS if m in floors]
    found: dict[tuple[str, ...], tuple[str, str]] = {}
    for name, style in FLOOR_STYLES.items():
        row = floors[floors["method"] == name]
        if not len(row):
            continue
        same = next(
            (
                names
                for names in found
                if np.allclose(row[metrics], floors[floors["method"] == names[0]][metrics], rtol=1e-9, atol=1e-9)
            ),
            None,
        )
        if same is None:
            found[(name,)] = style
        else:
            found = {(*names, name) if names == same else names: kept for names, kept in found.items()}
    return found


def fig_tradeoff(
    sweep: pd.DataFrame, floors: pd.DataFrame, *, title: str, chosen: float | None = None, footer: str = ""
) -> Figure:
    """PSNR and SSIM against tau: to the source, the noise-free and the noisy truth.

    Args:
        sweep: `evaluate.summary` by solver and tau.
        floors: `evaluate.summary` by method; may be empty.
        title: the tier and the pair of domains.
        chosen: the tau fixed on validation, a grey line.
        footer: n, heads, the data.
    """
    metrics = [m for m in METRICS if m in sweep and sweep[m].notna().any()]
    columns = max(1, len(metrics) // 2)
    figure, axes = plt.subplots(2, columns, figsize=(2.35 * columns, 4.9), sharex=True, squeeze=False)
    for k, metric in enumerate(metrics):
        _draw(axes[k % 2, k // 2], sweep, floors, metric, chosen)
    ticks = [t for t in (0.005, 0.05, 0.3, 0.7, 0.95) if min(sweep["tau"]) <= t <= 1]
    for axis in axes[-1]:
        axis.set_xticks([*log_odds(ticks), log_odds([1.0])[0]], [*(f"{t:g}" for t in ticks), "1"])
        axis.set_xlabel("τ (log-odds)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    figure.suptitle(heading(title, footer, figure.get_figwidth()), fontsize=7)
    return figure
