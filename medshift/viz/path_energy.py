"""Paths of mixtures in a world of two pixels, and the energies of the best ones."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse

from medshift.viz.theme import PALETTE, heading

# Colour and width; the wide line stays visible under the global path, which lies on it.
STYLES = {"linear": ("0.45", 4.0), "global": (PALETTE["sky"], 1.6), "pixel-wise": (PALETTE["vermilion"], 1.6)}
BARS = {
    "linear": "0.7",
    "global, one g": PALETTE["blue"],
    "global": PALETTE["sky"],
    "pixel-wise, one g": PALETTE["orange"],
    "pixel-wise": PALETTE["vermilion"],
}
MARKS = 8  # equal intervals of time between the markers of a path
ELLIPSE = 0.5  # standard deviations: half an axis of the ellipses of equal cost


def _draw_plane(axis: Axes, ends: np.ndarray, weights: np.ndarray, t: np.ndarray) -> None:
    """Both modes over the Gaussians of precision w(t) about the straight path, averaged over t."""
    margin = 0.6 * np.abs(ends[1] - ends[0]).max()
    x = np.linspace(ends.min(0) - margin, ends.max(0) + margin, 161).T  # the two axes of the plane
    mean = ends[0][:, None] + t * (ends[1] - ends[0])[:, None]
    one, two = np.exp(-((x[..., None] - mean[:, None]) ** 2) * weights[:, None] / 2) * np.sqrt(weights)[:, None]
    steps = np.diff(t)
    field = two * (np.append(steps, 0) + np.append(0, steps)) / 2 @ one.T  # the trapezoidal rule over t
    axis.contourf(*x, field, levels=np.linspace(0.06, 1, 9) * field.max(), cmap="Greys", alpha=0.35)
    for name, (px, py), shift in zip(("target", "source"), ends, (-11, 7), strict=True):
        axis.plot(px, py, marker="*", markersize=8, color=PALETTE["black"], linestyle="none", zorder=5)
        axis.annotate(name, (px, py), xytext=(0, shift), textcoords="offset points", ha="center", fontsize=7)
    axis.set(xlabel="pixel 1", ylabel="pixel 2", aspect="equal")


def _draw_path(axis: Axes, place: np.ndarray, weights: np.ndarray, t: np.ndarray, name: str, ellipses: bool) -> None:
    """The path, a marker at equal times, and on demand what can be moved there at equal cost."""
    colour, width = STYLES[name]
    axis.plot(*place, color=colour, linewidth=width, label=name)
    times = np.linspace(0, 1, MARKS + 1)[1:-1]
    marked, half = (np.stack([np.interp(times, t, row) for row in rows]) for rows in (place, ELLIPSE / weights**0.5))
    axis.plot(*marked, color=colour, marker="o", markersize=3.8, linestyle="none", markeredgecolor="white",
              markeredgewidth=0.5, zorder=4)  # fmt: skip
    for centre, (a, b) in zip(marked.T, half.T, strict=True):
        if ellipses:
            axis.add_patch(Ellipse((centre[0], centre[1]), 2 * a, 2 * b, fill=False, edgecolor=colour, linewidth=0.5))


def fig_curved_path(
    target: np.ndarray,
    source: np.ndarray,
    weights: np.ndarray,
    t: np.ndarray,
    paths: Mapping[str, np.ndarray],
    *,
    title: str,
    footer: str = "",
) -> Figure:
    """Paths in the plane of two pixels over where linear mixtures lie, and their Λ against t.

    A path that both pixels share stays on the straight segment, however it is timed: only its markers move. Ellipses
    show what can be moved at equal cost at that time: half an axis is 1/√w_p, drawn at half size.

    Args:
        target: the mode where Λ = 0, (2,).
        source: the mode where Λ = 1, (2,).
        weights: w (2, N).
        t: nodes (N,).
        paths: Λ (N,) or (2, N) by name: "linear", "global", "pixel-wise".
        title: the world.
        footer: the numbers.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(6.6, 3.2))
    ends = np.stack([target, source]).astype(float)
    _draw_plane(left, ends, weights, t)
    for name, path in paths.items():
        rows, (colour, width) = np.atleast_2d(path), STYLES[name]
        place = ends[0][:, None] + np.broadcast_to(rows, (2, len(t))) * (ends[1] - ends[0])[:, None]
        _draw_path(left, place, weights, t, name, ellipses=len(rows) == 2)
        for k, row in enumerate(rows):
            label = f"{name}, pixel {k + 1}" if len(rows) == 2 else f"{name}, both pixels"
            right.plot(t, row, color=colour, linestyle=("-", "--")[k], linewidth=width, label=label)
    right.set(xlabel="t (0 target, 1 source)", ylabel="share of the source Λ", xlim=(0, 1), ylim=(-0.02, 1.02))
    right.legend(frameon=False, loc="lower right")
    left.set_title(f"paths, a marker every 1/{MARKS} of the time;\ngrey: where linear mixtures lie", fontsize=7)
    right.set_title("schedules", fontsize=7)
    figure.suptitle(heading(title, footer, figure.get_figwidth()), fontsize=7)
    return figure


def fig_energies(table: pd.DataFrame, *, title: str, footer: str = "") -> Figure:
    """Bars of the least energies in several worlds, as shares of the linear path's.

    Args:
        table: one row a world, by name in the index; columns as `medshift.path_energy.energies` gives them, of which
            "linear" has to be there.
        title: what the worlds are.
        footer: n and the data.
    """
    names = [name for name in BARS if name in table]
    figure, axis = plt.subplots(figsize=(max(3.5, 1.25 * len(table) + 0.8), 2.9))
    width = 0.84 / len(names)
    for k, name in enumerate(names):
        share = (table[name] / table["linear"]).to_numpy(dtype=float)
        place = np.arange(len(table)) + (k - (len(names) - 1) / 2) * width
        bars = axis.bar(place, share, width=0.92 * width, color=BARS[name], label=name)
        axis.bar_label(bars, fmt="%.2f", fontsize=5, padding=1)
    axis.set_xticks(range(len(table)), [str(world) for world in table.index])
    axis.set(ylabel="least energy / that of Λ = t", ylim=(0, 1.1))
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=min(len(names), 3))
    figure.suptitle(heading(title, footer, figure.get_figwidth()), fontsize=7)
    return figure
