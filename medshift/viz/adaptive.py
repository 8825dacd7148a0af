"""Pictures of paired methods: curves over steps, the field as a film, differences with intervals, costs."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from medshift.viz.theme import PALETTE, WINDOW, heading

__all__ = ["Curve", "fig_costs", "fig_differences", "fig_field_film", "fig_modulations", "fig_profiles", "fig_steps"]

COLOURS = (PALETTE["vermilion"], PALETTE["blue"], PALETTE["green"], PALETTE["purple"], PALETTE["orange"])


@dataclass(frozen=True)
class Curve:
    """One method over numbers of steps: values with the ends of their intervals."""

    name: str
    steps: Sequence[int]
    values: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


def fig_steps(
    panels: Mapping[tuple[str, str], Sequence[Curve]],
    references: Mapping[tuple[str, str], Mapping[str, float]],
    labels: Mapping[tuple[str, str], str],
    *,
    title: str,
    footer: str,
) -> Figure:
    """Quantities against steps, one column a task and one row a quantity.

    Args:
        panels: (quantity, task) -> curves.
        references: (quantity, task) -> name -> level, drawn as a dashed line.
        labels: (quantity, task) -> what the vertical axis shows.
        title: what is shown.
        footer: n and the data.
    """
    quantities, tasks = (list(dict.fromkeys(key[k] for key in panels)) for k in (0, 1))
    size = (2.25 * len(tasks), 1.7 * len(quantities) + 0.7)
    figure, axes = plt.subplots(len(quantities), len(tasks), figsize=size, squeeze=False, sharex=True)
    colours: dict[str, str] = {}
    for axis in axes.flat:
        axis.set_visible(False)
    for (quantity, task), curves in panels.items():
        axis = axes[quantities.index(quantity), tasks.index(task)]
        axis.set_visible(True)
        for curve in curves:
            colour = colours.setdefault(curve.name, COLOURS[len(colours) % len(COLOURS)])
            axis.plot(curve.steps, curve.values, "o-", color=colour, markersize=2.5, label=curve.name)
            axis.fill_between(curve.steps, curve.low, curve.high, color=colour, alpha=0.18, linewidth=0)
        for name, level in references.get((quantity, task), {}).items():
            axis.axhline(level, color="0.4", linestyle="--", linewidth=0.8)
            axis.annotate(name, (1, level), fontsize=5, color="0.4", va="bottom")
        axis.set_xscale("log")
        ticks = sorted({step for curve in curves for step in curve.steps})
        axis.set_xticks(ticks, [str(step) for step in ticks])
        axis.minorticks_off()
        axis.set_title(task, fontsize=7)
        axis.set_ylabel(labels[quantity, task], fontsize=6.5)
        axis.tick_params(labelsize=6)
    handles = {label: h for axis in axes.flat for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(5, len(handles)), fontsize=6)
    for axis in axes[-1]:
        axis.set_xlabel("steps K, one evaluation each", fontsize=6.5)
    figure.suptitle(heading(title, footer, figure.get_figwidth()), fontsize=7)
    return figure


def fig_field_film(
    source: Tensor, target: Tensor, films: Mapping[str, Tensor], times: Sequence[int], *, title: str, footer: str
) -> Figure:
    """Λ over the image as time goes from target to source, one row a field, less the scalar λ where it is shown.

    Args:
        source: (1,H,W).
        target: (1,H,W).
        films: name -> Λ - λ, mean over channels, (times, h, w).
        times: integer times of the frames.
        title: what is shown.
        footer: the data.
    """
    columns = len(times) + 2
    figure, axes = plt.subplots(
        len(films), columns, figsize=(0.85 * columns + 0.5, 0.95 * len(films) + 0.7), squeeze=False
    )
    bound = max(float(film.abs().max()) for film in films.values()) or 1.0
    shown = None
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    for k, (name, film) in enumerate(films.items()):
        for j, (image, label) in enumerate(((source, "source y"), (target, "target x₀"))):
            axes[k, j].imshow(image.squeeze().numpy(), vmin=WINDOW[0], vmax=WINDOW[1], cmap="gray")
            if k == 0:
                axes[k, j].set_title(label, fontsize=6)
        axes[k, 0].set_ylabel(textwrap.fill(name, 14), fontsize=5)
        for j, frame in enumerate(film):
            shown = axes[k, j + 2].imshow(frame.numpy(), vmin=-bound, vmax=bound, cmap="PuOr_r")
            if k == 0:
                axes[k, j + 2].set_title(f"t = {times[j]}", fontsize=6)
    assert shown is not None
    bar = figure.colorbar(shown, ax=axes[:, -1], shrink=0.8)
    bar.ax.tick_params(labelsize=5)
    bar.set_label("Λ - λ", fontsize=6)
    figure.suptitle(heading(title, footer, figure.get_figwidth()), fontsize=7)
    return figure


def fig_modulations(values: Mapping[str, np.ndarray], *, bound: float, title: str, footer: str) -> Figure:
    """Histograms of the learned g, one row a field, with its bounds.

    Args:
        values: field -> g of all pixels and channels.
        bound: of |g|.
        title: what is shown.
        footer: the data.
    """
    figure, axes = plt.subplots(len(values), 1, figsize=(3.6, 0.5 * len(values) + 0.9), squeeze=False, sharex=True)
    edges = np.linspace(-1, 1, 81)
    for axis, (name, g) in zip(axes[:, 0], values.items(), strict=True):
        axis.hist(g, bins=edges, color=PALETTE["blue"], weights=np.full(len(g), 100 / len(g)))
        for end in (-bound, bound):
            axis.axvline(end, color=PALETTE["vermilion"], linewidth=0.8, linestyle="--")
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=6)
        axis.set_yticks([])
        axis.tick_params(labelsize=6)
    axes[-1, 0].set_xlabel("g, with its bounds", fontsize=6.5)
    figure.suptitle(heading(title, footer, figure.get_figwidth()), fontsize=7)
    return figure


def fig_differences(
    panels: Mapping[str, Mapping[str, tuple[float, float, float]]], units: Mapping[str, str], *, title: str, footer: str
) -> Figure:
    """Differences to one method with their intervals, one panel a metric.

    Args:
        panels: metric -> name -> mean, low, high.
        units: metric -> label of its axis.
        title: what is compared.
        footer: n and the data.
    """
    longest = max(len(rows) for rows in panels.values())
    figure, axes = plt.subplots(
        1, len(panels), figsize=(2.6 * len(panels) + 0.8, 0.21 * longest + 0.9), squeeze=False, sharey=True
    )
    for axis, (metric, rows) in zip(axes[0], panels.items(), strict=True):
        places = np.arange(len(rows))[::-1]
        for place, (mean, low, high) in zip(places, rows.values(), strict=True):
            colour = "0.45" if low <= 0 <= high else PALETTE["vermilion"]
            axis.plot([low, high], [place, place], color=colour)
            axis.plot(mean, place, "o", color=colour, markersize=3)
        axis.axvline(0, color="0.3", linewidth=0.7)
        axis.set_yticks(places, list(rows), fontsize=6)
        axis.set_xlabel(units[metric], fontsize=6.5)
        axis.tick_params(axis="x", labelsize=6)
    figure.suptitle(heading(title, footer, figure.get_figwidth()), fontsize=7)
    return figure


def fig_profiles(
    groups: Mapping[str, tuple[Sequence[float], Sequence[Sequence[float]]]], *, title: str, footer: str
) -> Figure:
    """Time profiles w_p(t) / mean of groups of pixels by their contrast, one panel a task; proportional ones coincide.

    Args:
        groups: task -> times, profiles from the least to the most contrast.
        title: what is shown.
        footer: the data.
    """
    figure, axes = plt.subplots(1, len(groups), figsize=(2.2 * len(groups), 2.2), squeeze=False, sharey=True)
    for axis, (task, (t, profiles)) in zip(axes[0], groups.items(), strict=True):
        for k, profile in enumerate(profiles):
            share = k / max(1, len(profiles) - 1)
            axis.plot(t, profile, color=plt.get_cmap("viridis")(0.9 * share), label=f"{k + 1}")
        axis.set_title(task, fontsize=7)
        axis.set_xlabel("t (0 target, 1 source)", fontsize=6.5)
        axis.tick_params(labelsize=6)
    axes[0, 0].set_ylabel("w(t) over its mean", fontsize=6.5)
    axes[0, -1].legend(title="contrast, fifths", fontsize=5, title_fontsize=5, frameon=False)
    figure.suptitle(heading(title, footer, figure.get_figwidth()), fontsize=7)
    return figure


def fig_costs(rows: Sequence[Mapping[str, float]], *, title: str, footer: str) -> Figure:
    """Seconds of a step's parts against the side of the image, and the field's share.

    Args:
        rows: ``size`` [pixels] and seconds of ``network``, ``field``, ``arithmetic``.
        title: what was timed.
        footer: on what.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(5.2, 2.2))
    sizes = [row["size"] for row in rows]
    for name, colour in zip(("network", "field", "arithmetic"), COLOURS, strict=False):
        left.plot(sizes, [1e3 * row[name] for row in rows], "o-", color=colour, markersize=3, label=name)
    left.set(xscale="log", yscale="log")
    left.set_ylabel("ms, batch 1", fontsize=6.5)
    left.legend(fontsize=6, frameon=False)
    total = [row["network"] + row["field"] + row["arithmetic"] for row in rows]
    right.plot(
        sizes,
        [100 * row["field"] / t for row, t in zip(rows, total, strict=True)],
        "o-",
        color=COLOURS[1],
        markersize=3,
    )
    right.set(xscale="log", ylim=(0, None))
    right.set_ylabel("field's share of a step [%]", fontsize=6.5)
    for axis in (left, right):
        axis.set_xticks(sizes, [f"{int(size)}" for size in sizes])
        axis.minorticks_off()
        axis.set_xlabel("side of the image [pixels]", fontsize=6.5)
        axis.tick_params(labelsize=6)
    figure.suptitle(heading(title, footer, figure.get_figwidth()), fontsize=7)
    return figure
