"""Embeddings of z_tau, a colour a domain, and their numbers."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from medshift.viz.theme import DOMAIN_COLOURS, PALETTE, heading

WIDTH = 7.0  # inches; as wide as a page, so no print shrinks
DOT = {"s": 11, "alpha": 0.7, "linewidths": 0}


def fig_embedding(table: pd.DataFrame, auc: pd.Series, kinds: Mapping[str, str], *, title: str, footer: str) -> Figure:
    """One row a method and kind of latents, one column a tau; the domain AUC stands over panels of the first method.

    Dots are drawn in random order, of a fixed seed, so that no domain lies on top of the others.

    Args:
        table: domain, kind, method, tau, x, y.
        auc: by kind and tau.
        kinds: kinds in the order of the rows, and what each is called.
        title: what is embedded.
        footer: n and the data.
    """
    methods, taus = list(table["method"].unique()), sorted(table["tau"].unique())
    rows = [(method, kind) for method in methods for kind in kinds]
    figure, axes = plt.subplots(
        len(rows),
        len(taus),
        figsize=(WIDTH, 1.5 * len(rows) + 0.9),
        squeeze=False,
        subplot_kw={"xticks": [], "yticks": []},
    )
    spare = iter(PALETTE.values())
    shades = {str(domain): DOMAIN_COLOURS.get(str(domain)) or next(spare) for domain in sorted(set(table["domain"]))}
    for line, (method, kind) in zip(axes, rows, strict=True):
        for axis, tau in zip(line, taus, strict=True):
            here = table[(table["method"] == method) & (table["kind"] == kind) & (table["tau"] == tau)]
            here = here.iloc[np.random.default_rng(0).permutation(len(here))]
            axis.scatter(here["x"], here["y"], c=[shades[str(d)] for d in here["domain"]], **DOT)
            above = f"τ = {tau:g}, AUC {auc.loc[kind, tau]:.2f}" if method == methods[0] else f"τ = {tau:g}"
            axis.set_title(above, fontsize=7)
        line[0].set_ylabel(f"{str(method).upper()},\n{kinds[kind]}")
    dots = [Line2D([], [], linestyle="", marker="o", color=shade, label=name) for name, shade in shades.items()]
    figure.legend(handles=dots, loc="outside lower center", ncols=len(dots), markerscale=0.7)
    figure.suptitle(heading(title, footer, WIDTH), fontsize=7)
    return figure
