"""Pictures of notebooks 02 and 03: training losses, round trips, and what a codec keeps by spatial frequency."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from medshift.metrics.physics import radial_power_spectrum
from medshift.viz.images import fig_grid
from medshift.viz.theme import DOMAIN_COLOURS, PALETTE

ERROR_GAIN = 10.0


def fig_losses(history: pd.DataFrame, footer: str) -> Figure:
    """Every named loss against images seen, smoothed over a fiftieth of the run, one panel a loss."""
    names = [c for c in history.columns if c not in ("step", "images", "learning_rate", "seconds")]
    figure, axes = plt.subplots(1, len(names), figsize=(max(3.5, 2.2 * len(names)), 2.3), squeeze=False)
    window = max(1, len(history) // 50)
    for axis, name in zip(axes[0], names, strict=True):
        axis.plot(history["images"], history[name], color="0.8", linewidth=0.5)
        axis.plot(history["images"], history[name].rolling(window, min_periods=1).mean(), color=PALETTE["blue"])
        low, high = history[name].quantile([0.005, 0.98])
        axis.set(xlabel="images seen", ylabel=name.replace("_", " "), ylim=(min(low, 0.95 * low), 1.15 * high))
    figure.supxlabel(footer, fontsize=6, color="0.35")
    return figure


def fig_round_trip(trips: Mapping[str, Mapping[str, tuple[Tensor, Tensor]]], footer: str) -> Figure:
    """One image a domain: original, and for every codec the round trip and ten times its error.

    Args:
        trips: codec -> domain -> (images, round trips), each (N,1,H,W).
        footer: what the data is.
    """
    domains = list(next(iter(trips.values())))
    columns = ["original"]
    rows: list[list[Tensor]] = [[next(iter(trips.values()))[domain][0][0]] for domain in domains]
    for codec, by_domain in trips.items():
        columns += [codec, f"{ERROR_GAIN:g} × error"]
        for row, domain in zip(rows, domains, strict=True):
            image, back = by_domain[domain]
            row += [back[0], ERROR_GAIN * (back[0] - image[0])]
    return fig_grid(rows, columns, domains, footer=footer, side=1.1)


def fig_octaves(trips: Mapping[str, Mapping[str, tuple[Tensor, Tensor]]], footer: str) -> Figure:
    """Power after the round trip over power before, against spatial frequency; the last octave shaded."""
    figure, axes = plt.subplots(1, len(trips), figsize=(3.2 * len(trips), 2.5), sharey=True, squeeze=False)
    for axis, (codec, by_domain) in zip(axes[0], trips.items(), strict=True):
        axis.axvspan(0.25, 0.5, color="0.93", linewidth=0)
        axis.axhline(1, color="0.6", linewidth=0.7)
        for domain, (image, back) in by_domain.items():
            frequency, before = radial_power_spectrum(image)
            ratio = radial_power_spectrum(back)[1].mean(0) / before.mean(0)
            axis.plot(frequency, ratio, label=domain, color=DOMAIN_COLOURS.get(domain))
        axis.set(xlabel="spatial frequency [cycles/pixel]", title=codec)
    axes[0, 0].set_ylabel("power kept by the round trip")
    axes[0, -1].legend(frameon=False)
    figure.supxlabel(footer, fontsize=6, color="0.35")
    return figure
