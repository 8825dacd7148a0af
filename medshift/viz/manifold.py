"""Embeddings of z_tau, a colour a domain, and their numbers."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from medshift.viz.evidence import MARKERS
from medshift.viz.theme import DOMAIN_COLOURS, PALETTE, heading


def fig_embedding(table: pd.DataFrame, auc: pd.Series, *, first: str, second: str, title: str, footer: str) -> Figure:
    """One row a method, one column a tau; the domain AUC of two domains stands over each column.

    Args:
        table: domain, method, tau, x, y.
        auc: by tau.
        first: one of the two domains.
        second: the other.
        title: what is embedded.
        footer: n and the data.
    """
    methods, taus = list(table["method"].unique()), sorted(table["tau"].unique())
    figure, axes = plt.subplots(
        len(methods), len(taus), figsize=(1.75 * len(taus), 1.8 * len(methods) + 0.6), squeeze=False
    )
    shades = list(PALETTE.values())
    for line, method in zip(axes, methods, strict=True):
        for axis, tau in zip(line, taus, strict=True):
            here = table[(table["method"] == method) & (table["tau"] == tau)]
            for k, (domain, rows) in enumerate(here.groupby("domain", sort=False)):
                shade = DOMAIN_COLOURS.get(str(domain), shades[k % len(shades)])
                axis.scatter(rows["x"], rows["y"], s=4, marker=MARKERS[k % 8], color=shade, linewidths=0, label=domain)
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(str(method).upper())
    for axis, tau in zip(axes[0], taus, strict=True):
        axis.set_title(f"τ = {tau:g}, AUC {auc.loc[tau]:.2f}", fontsize=7)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, markerscale=2.5)
    above = f"{title}; AUC: {first} against {second}"
    figure.suptitle(heading(above, footer, figure.get_figwidth()), fontsize=7)
    return figure
