"""The plane: paths and their average, what a network learns of it, particles, solvers and guidance.

Lengths are in standard deviations of the noise, so coordinates have no unit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from medshift.viz.plane import arrows, dots, plane, shade, sided
from medshift.viz.theme import PALETTE
from medshift.worlds.learned import Snapshot
from medshift.worlds.measures import Lattice, fitted_order
from medshift.worlds.panels import Guided

__all__ = [
    "fig_average",
    "fig_guidance",
    "fig_learning",
    "fig_particles",
    "fig_paths",
    "fig_points",
    "fig_snapshots",
    "fig_solver_errors",
]

SOLVERS = {
    "euler": (PALETTE["vermilion"], "o"),
    "midpoint": (PALETTE["green"], "s"),
    "heun": (PALETTE["blue"], "^"),
}
AVERAGES = (PALETTE["black"], PALETTE["orange"], PALETTE["blue"])


def fig_paths(
    noise: ArrayLike,
    targets: ArrayLike,
    lattice: ArrayLike,
    field: ArrayLike,
    law: Lattice,
    *,
    t: float,
    mark: ArrayLike,
) -> Figure:
    """Straight paths of single pairs, which cross, and the marginal field at one time, which cannot.

    Args:
        noise: starts (P, 2).
        targets: ends (P, 2).
        lattice: where the field is drawn (G, 2).
        field: the marginal velocity there (G, 2), drawn at a sixth of its length.
        law: p_t.
        t: the time of field and law.
        mark: a point (2,), marked in both panels.
    """
    figure, axes = plt.subplots(1, 2, figsize=(6.4, 3.2))
    start, end, (x, y) = np.asarray(noise), np.asarray(targets), np.asarray(mark)
    axes[0].plot(*np.stack([start, end]).transpose(2, 0, 1), color="0.6", linewidth=0.5)
    dots(axes[0], start, PALETTE["orange"], 9)
    dots(axes[0], end, PALETTE["blue"], 9)
    axes[0].set_title(f"{len(start)} pairs: noise (orange) to data (blue)")
    shade(axes[1], law)
    arrows(axes[1], lattice, field)
    axes[1].set_title(f"marginal velocity at t = {t:g}, over $p_t$")
    for axis, left in zip(axes, (True, False), strict=True):
        axis.plot(x, y, marker="*", markersize=9, color=PALETTE["vermilion"], linestyle="none", markeredgecolor="white")
        plane(axis, left=left)
    return figure


def fig_average(
    point: ArrayLike,
    t: float,
    targets: ArrayLike,
    weights: ArrayLike,
    averages: Mapping[str, ArrayLike],
    shown: ArrayLike,
) -> Figure:
    """At one point: where it may be heading, how likely each target is, and the average velocity.

    Every arrow lasts for the time that remains, 1 - t, so that a conditional one ends in its target.

    Args:
        point: x_t (2,).
        t: below 1.
        targets: possible x_1 (N, 2).
        weights: p(x_1 | x_t) of each (N,), of sum 1; the size of its dot.
        averages: velocities (2,) by name: the weighted average, the exact one, the learned one.
        shown: indices (S,) of targets that get an arrow, drawn by their weights.
    """
    figure, axis = plt.subplots(figsize=(3.5, 3.9))
    x, ends, share, chosen = (np.asarray(part) for part in (point, targets, weights, shown))
    dots(axis, ends, "0.82", 2)
    axis.scatter(
        ends[:, 0], ends[:, 1], s=14 * share / share.max(), color=PALETTE["sky"], linewidths=0, rasterized=True
    )
    for end in ends[chosen]:
        axis.annotate("", tuple(end), tuple(x), arrowprops={"arrowstyle": "->", "color": PALETTE["blue"], "shrinkB": 0})
    for (name, velocity), colour, width in zip(averages.items(), AVERAGES, (4.5, 2.2, 0.9), strict=False):
        v = np.asarray(velocity)
        style = {"arrowstyle": "-|>", "color": colour, "linewidth": width, "shrinkA": 4, "shrinkB": 0}
        axis.annotate("", tuple(x + (1 - t) * v), tuple(x), arrowprops=style, zorder=5)
        axis.plot([], [], color=colour, linewidth=width, label=f"{name}: ({v[0]:.2f}, {v[1]:.2f})")
    axis.plot(
        *x, marker="*", markersize=10, color=PALETTE["vermilion"], linestyle="none", markeredgecolor="white", zorder=9
    )
    plane(axis)
    axis.set_title(f"at t = {t:g}: {len(chosen)} of {len(ends)} targets, drawn by their weights")
    figure.legend(loc="outside lower center", frameon=False)
    return figure


def fig_learning(snapshots: Sequence[Snapshot], floor: float, errors: Mapping[str, Sequence[float]]) -> Figure:
    """The loss over its floor, and the distance to the exact field that the loss hides.

    Args:
        snapshots: of a training (S,).
        floor: the loss of the exact field.
        errors: RMS distance to the exact velocity by label (S,).
    """
    figure, axes = plt.subplots(1, 2, figsize=(6.4, 2.4))
    steps = [snapshot.step for snapshot in snapshots]
    axes[0].plot(steps, [snapshot.loss for snapshot in snapshots], color=PALETTE["blue"], label="learned field")
    axes[0].axhline(floor, color=PALETTE["black"], linestyle="--", linewidth=0.9, label="exact field: the floor")
    axes[0].set(xlabel="training step", ylabel="flow-matching loss")
    for (name, values), colour in zip(errors.items(), PALETTE.values(), strict=False):
        axes[1].plot(steps, values, color=colour, label=name)
    axes[1].set(xlabel="training step", ylabel="RMS error of the velocity", yscale="log")
    for axis in axes:
        axis.legend(frameon=False)
    return figure


def fig_snapshots(
    columns: Sequence[tuple[str, ArrayLike, ArrayLike]], lattice: ArrayLike, laws: tuple[Lattice, Lattice], *, t: float
) -> Figure:
    """A column for each field: above its arrows at time t over p_t, below what it makes of noise over the true law.

    Args:
        columns: title, velocities on the lattice (G, 2) and samples (N, 2) of each; the exact field is best the last.
        lattice: where arrows stand (G, 2).
        laws: p_t and p_1.
        t: of the upper row.
    """
    n = len(columns)
    figure, axes = plt.subplots(2, n, figsize=(1.65 * n + 0.4, 3.6), sharex=True, sharey=True, squeeze=False)
    for k, (title, velocities, samples) in enumerate(columns):
        shade(axes[0, k], laws[0])
        arrows(axes[0, k], lattice, velocities)
        shade(axes[1, k], laws[1])
        dots(axes[1, k], samples)
        for axis in axes[:, k]:
            plane(axis, left=k == 0)
        axes[0, k].set(title=title, xlabel="")
    figure.suptitle(f"above: velocity at t = {t:g}; below: samples at t = 1", fontsize=7)
    return figure


def fig_points(panels: Mapping[str, ArrayLike], law: Lattice, *, start: ArrayLike | None = None) -> Figure:
    """Points (N, 2) a panel, under their titles, over one law.

    Args:
        panels: points by title.
        law: behind all of them.
        start: where they came from (N, 2); those from the left half are then drawn blue, others orange.
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(2.1 * len(panels) + 0.3, 2.5), squeeze=False)
    for k, (axis, (title, points)) in enumerate(zip(axes[0], panels.items(), strict=True)):
        shade(axis, law)
        sided(axis, points, start)
        plane(axis, left=k == 0)
        axis.set_title(title)
    return figure


def fig_particles(
    rows: Mapping[str, Sequence[ArrayLike]],
    times: Sequence[float],
    laws: Sequence[Lattice],
    columns: Sequence[int] = (0, 3, 6, 8, 10),
) -> Figure:
    """Particles at several times, a row for each field, over the true p_t.

    The colour is where a particle *started*, left or right of the middle: a flow does not mix what it moves.

    Args:
        rows: states (N, 2) at each time (T,), by field; all of one start.
        times: (T,).
        laws: p_t at each (T,).
        columns: which of the T are shown.
    """
    n = len(columns)
    figure, axes = plt.subplots(len(rows), n, figsize=(1.45 * n + 0.4, 1.55 * len(rows) + 0.3), squeeze=False)
    for row, (name, states) in enumerate(rows.items()):
        for axis, k in zip(axes[row], columns, strict=True):
            shade(axis, laws[k])
            sided(axis, states[k], states[0])
            plane(axis)
            label = name if axis is axes[row, 0] else ""
            axis.set(xlabel="", ylabel=label, title="" if row else f"t = {times[k]:g}")
    return figure


def fig_solver_errors(table: pd.DataFrame) -> Figure:
    """Error at t = 1 against steps and against evaluations, with the order fitted to the three finest.

    Args:
        table: of `medshift.worlds.measures.solver_errors`.
    """
    figure, axes = plt.subplots(1, 2, figsize=(6.4, 2.6), sharey=True)
    for solver, group in table.groupby("solver", sort=False):
        colour, marker = SOLVERS[str(solver)]
        order = fitted_order(group["steps"].tolist(), group["error"].tolist())
        for axis, column in zip(axes, ("steps", "evaluations"), strict=True):
            axis.loglog(group[column], group["error"], color=colour, marker=marker, markersize=3, linewidth=1,
                        label=f"{solver}: order {order:.2f}")  # fmt: skip
    axes[0].set(xlabel="steps on [0, 1]", ylabel="RMS distance to the exact end")
    axes[1].set(xlabel="evaluations of the velocity")
    axes[0].legend(frameon=False)
    return figure


def fig_guidance(made: Guided, field: str = "exact", shown: Sequence[float] = (1.0, 2.0, 5.0)) -> Figure:
    """Guided samples over the tilted law that they are often taken to follow, and the spread of both against w.

    Args:
        made: samples and laws by scale, and their spreads.
        field: whose samples are drawn.
        shown: at which scales.
    """
    n = len(shown)
    figure, axes = plt.subplots(1, n + 1, figsize=(7, 2.1), width_ratios=[1] * n + [1.25])
    for k, w in enumerate(shown):
        shade(axes[k], made.tilted[w])
        dots(axes[k], made.samples[field][w])
        plane(axes[k], left=k == 0)
        axes[k].set_title(f"w = {w:g}")
    axes[-1].plot(made.known["w"], made.known["tilted law"], "--", color=PALETTE["black"], label="tilted law")
    marks = zip(("o-", "^:"), (PALETTE["blue"], PALETTE["vermilion"]), strict=True)
    for name, (style, colour) in zip(made.samples, marks, strict=False):
        spread = made.spreads[f"guided, {name}"]
        axes[-1].plot(made.spreads["w"], spread, style, color=colour, markersize=3, label=f"guided, {name}")
    axes[-1].set(xlabel="guidance scale w", ylabel="spread", ylim=(0, None))
    axes[-1].legend(frameon=False, fontsize=6)
    return figure
