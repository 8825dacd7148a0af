"""The trade-off in tau: agreement with the source and with the truth, floors and the noise twin as lines."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medshift.evaluate import TWIN
from medshift.rules import log_odds
from medshift.viz.theme import PALETTE

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
    for name, (colour, style) in FLOOR_STYLES.items():
        row = floors[floors["method"] == name]
        if len(row):
            axis.axhline(float(row[metric].iloc[0]), color=colour, linestyle=style, linewidth=0.9, label=name)
    for solver, group in sweep.groupby("solver", sort=False):
        group = group.sort_values("tau")
        x, shade = log_odds(group["tau"].to_numpy()), SOLVER_COLOURS[str(solver)]
        axis.plot(x, group[metric], marker="o", markersize=2.5, color=shade, label=f"MedShift, {solver}")
        axis.fill_between(x, group[f"{metric}_low"], group[f"{metric}_high"], color=shade, alpha=0.18, linewidth=0)
    if chosen is not None:
        axis.axvline(float(log_odds([chosen])[0]), color="0.6", linewidth=0.7, zorder=0)
    axis.set_ylabel(METRICS[metric])
    if metric == "psnr_source":
        # At tau = 1 the image is the source's, and its PSNR without a bound.
        finite = sweep[metric][sweep[metric] < 60]
        axis.set_ylim(top=float(finite.max()) + 3 if len(finite) else None)


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
    figure, axes = plt.subplots(2, columns, figsize=(2.35 * columns, 4.3), sharex=True, squeeze=False)
    for k, metric in enumerate(metrics):
        _draw(axes[k % 2, k // 2], sweep, floors, metric, chosen)
    ticks = [t for t in (0.005, 0.05, 0.3, 0.7, 0.95) if min(sweep["tau"]) <= t <= 1]
    for axis in axes[-1]:
        axis.set_xticks([*log_odds(ticks), log_odds([1.0])[0]], [*(f"{t:g}" for t in ticks), "1"])
        axis.set_xlabel("τ (log-odds)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    figure.suptitle(f"{title}\n{footer}" if footer else title, fontsize=7)
    return figure


def fig_spectra(
    frequency: np.ndarray, spectra: dict[str, np.ndarray], *, pixel_mm: float, title: str, footer: str
) -> Figure:
    """Mean radial power spectra on logarithmic axes.

    Args:
        frequency: (K,) [cycles/pixel].
        spectra: name -> mean power (K,) [display units² pixel²].
        pixel_mm: mean size of a pixel at the isocentre, for the second axis.
        title: what is compared.
        footer: n and the data.
    """
    figure, axis = plt.subplots(figsize=(3.5, 2.8))
    colours = list(PALETTE.values())
    for i, (name, power) in enumerate(spectra.items()):
        axis.loglog(frequency / pixel_mm, power, label=name, color=colours[i])
    axis.set(xlabel="spatial frequency at the isocentre [1/mm]", ylabel="power [display units² pixel²]", title=title)
    axis.legend(frameon=False)
    figure.supxlabel(footer, fontsize=6, color="0.35")
    return figure
