"""The two coloured domains: translations by anatomy, the sweep over tau, couplings, lost noise, CDTSDE's path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from medshift.viz.plane import shade
from medshift.viz.theme import PALETTE
from medshift.worlds.couplings import Coupling
from medshift.worlds.measures import Lattice, ShiftPath
from medshift.worlds.panels import Journey

__all__ = [
    "fig_couplings",
    "fig_identity",
    "fig_legs",
    "fig_lost_noise",
    "fig_shift_paths",
    "fig_tau",
]

ANATOMIES = np.array([PALETTE[name] for name in ("blue", "orange", "green", "vermilion", "purple")])
METHODS = {  # colour, marker
    0: (PALETTE["blue"], "o"),
    1: (PALETTE["green"], "s"),
    2: (PALETTE["vermilion"], "^"),
}
WIDE, HIGH = 3.2, 1.7  # half sides of the strip of the plane in which the two domains lie


def _strip(axis: Axes, *, left: bool = True, high: float = HIGH) -> None:
    axis.set(xlim=(-WIDE, WIDE), ylim=(-high, high), aspect="equal", xticks=[-2, 0, 2], yticks=[-1, 0, 1])
    axis.set(xlabel="anatomy", ylabel="colour" if left else "")


def fig_legs(journey: Journey) -> Figure:
    """A's points, z_tau and the translations, a row for each field, coloured by the anatomy they had in A.

    A cross marks a point whose anatomy has changed. Behind z_tau, p_tau^A is grey and p_tau^B lines.
    """
    rows = len(journey.legs)
    figure, axes = plt.subplots(rows, 3, figsize=(7, 1.75 * rows + 0.1), squeeze=False)
    was = np.asarray(journey.before)
    backgrounds = (journey.laws[:1], journey.laws[1:3], journey.laws[3:])
    for i, (name, legs) in enumerate(journey.legs.items()):
        lost = was != np.asarray(journey.after[name])
        titles = (
            f"A, {len(was)} points",
            f"$z_τ$ at τ = {journey.tau:g}, {name} field",
            f"{name} field: {lost.mean():.0%} changed, over $p_B$",
        )
        for k, (axis, behind) in enumerate(zip(axes[i], backgrounds, strict=True)):
            for law, lines in zip(behind, (False, True), strict=False):
                shade(axis, law, lines=lines)
            place = np.asarray((journey.x, legs.z_tau, legs.out)[k])
            axis.scatter(*place[~lost].T, s=3, c=ANATOMIES[was[~lost]], linewidths=0)
            axis.scatter(*place[lost].T, s=9, c=ANATOMIES[was[lost]], marker="x", linewidths=0.7)
            _strip(axis, left=k == 0, high=2.2)
            axis.set_title(titles[k], fontsize=7)
            if i < rows - 1:
                axis.set_xlabel("")
    return figure


def fig_tau(table: pd.DataFrame, known: pd.DataFrame, least: float) -> Figure:
    """Colour shift, changed anatomy, distance to B and divergence of the noised laws against tau; lines are known.

    Args:
        table: of `medshift.worlds.translation.tau_sweep`, with 95 % intervals.
        known: columns tau, shift, changed, fresh (shares in closed form), divergence [nat].
        least: share that any coupling of A and B changes.
    """
    figure, grid = plt.subplots(2, 2, figsize=(6.4, 4.6))
    axes = grid.flat
    axes[0].plot(known["tau"], known["shift"], color=PALETTE["blue"], linewidth=1)
    axes[1].plot(known["tau"], known["changed"], color=PALETTE["blue"], linewidth=1, label="closed form, exact field")
    axes[1].plot(
        known["tau"], known["fresh"], color=PALETTE["vermilion"], linewidth=1, label="closed form, fresh noise"
    )
    axes[1].axhline(least, color=PALETTE["black"], linestyle=":", linewidth=0.9, label="least of any coupling")
    methods = [name for name in table["method"].unique() if name != "B itself"]
    for k, name in enumerate(methods):
        colour, marker = METHODS[k]
        group = table[table["method"] == name]
        place = group["tau"] + 0.008 * (k - 1)
        style = {"color": colour, "marker": marker, "markersize": 2.5, "linestyle": "none"}
        axes[0].plot(place, group["shift"], **style)
        for axis, value in zip(axes[1:], ("changed", "error"), strict=False):
            reach = np.abs(group[[f"{value}_low", f"{value}_high"]].to_numpy().T - group[value].to_numpy())
            axis.errorbar(place, group[value], reach, linewidth=0.7, label=name, **style)
    floor = table[table["method"] == "B itself"].iloc[0]
    axes[2].axhspan(floor["error_low"], floor["error_high"], color="0.85", label="B itself: the floor", zorder=0)
    rising = known[known["divergence"] > 1e-3]
    axes[3].plot(rising["tau"], rising["divergence"], color=PALETTE["black"])
    axes[3].set(ylabel="KL($p_τ^A$ ‖ $p_τ^B$) [nat]", yscale="log")
    axes[0].set(ylabel="share φ(τ) of the colour shift", ylim=(0, 1.08))
    axes[1].set(ylabel="share of changed anatomy", ylim=(0, None))
    axes[2].set(ylabel="sliced W2 to B", ylim=(0, None))
    for axis in grid.flat:
        axis.set(xlabel="τ", xlim=(-0.03, 1.03))
    handles, labels = axes[1].get_legend_handles_labels()
    more, names = axes[2].get_legend_handles_labels()
    keep = [k for k, name in enumerate(names) if name not in labels]
    figure.legend([*handles, *(more[k] for k in keep)], [*labels, *(names[k] for k in keep)],
                  loc="outside lower center", ncols=4, frameon=False)  # fmt: skip
    return figure


def fig_identity(x: ArrayLike, outs: Mapping[str, ArrayLike], before: ArrayLike, law: Lattice) -> Figure:
    """A to A with several pairs of guidance scales: A's points in black, where they end in the colour of their anatomy.

    Args:
        x: points of A (N, 2).
        outs: where they end (N, 2), by title.
        before: anatomy of each (N,).
        law: p_A.
    """
    rows = -(-len(outs) // 4)
    figure, axes = plt.subplots(rows, 4, figsize=(7, 1.6 * rows), squeeze=False)
    start, colours = np.asarray(x), ANATOMIES[np.asarray(before)]
    for k, (axis, (title, out)) in enumerate(zip(axes.flat, outs.items(), strict=False)):
        end = np.asarray(out)
        distance = np.sqrt(((end - start) ** 2).sum(1).mean())
        shade(axis, law)
        axis.plot(*np.stack([start, end]).transpose(2, 0, 1), color="0.6", linewidth=0.3)
        axis.scatter(*start.T, s=1.5, color="black", linewidths=0)
        axis.scatter(*end.T, s=3, c=colours, linewidths=0)
        _strip(axis, left=k % 4 == 0)
        axis.set_title(f"{title}\nRMS {distance:.2g}")
    return figure


def fig_couplings(couplings: Sequence[Coupling], before: ArrayLike, laws: tuple[Lattice, Lattice]) -> Figure:
    """Lines from sources to partners, coloured by the sources' anatomy; cost, changed anatomy and error over each.

    Args:
        couplings: of `medshift.worlds.couplings.compared`, of one set of sources.
        before: anatomy of the sources (N,).
        laws: p_A and p_B.
    """
    columns = 4
    rows = -(-len(couplings) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(7.4, 1.6 * rows), squeeze=False)
    colours = ANATOMIES[np.asarray(before)]
    for axis, coupling in zip(axes.flat, couplings, strict=False):
        x, y = np.asarray(coupling.x), np.asarray(coupling.y)
        for law in laws:
            shade(axis, law)
        axis.add_collection(LineCollection(list(np.stack([x, y], 1)), colors=list(colours), linewidths=0.35, alpha=0.6))
        axis.scatter(*y.T, s=2, c=colours, linewidths=0)
        _strip(axis, left=axis in axes[:, 0])
        axis.set_title(
            f"{coupling.name}\ncost {coupling.cost:.2f}, changed {coupling.changed:.0%}\nerror {coupling.error:.2f}",
            fontsize=6.5,
        )
    for axis in axes.flat[len(couplings) :]:
        axis.set_axis_off()
    for axis in axes[:-1].flat:
        axis.set_xlabel("")
    return figure


def fig_lost_noise(table: pd.DataFrame) -> Figure:
    """Share of a standard deviation that a translation A to A keeps, against steps; closed forms are lines.

    Args:
        table: columns solver, spread, steps, exact, and measured on points.
    """
    figure, axis = plt.subplots(figsize=(3.5, 2.8))
    shades = dict(zip(table["spread"].unique(), ("vermilion", "orange", "blue", "green"), strict=False))
    for (solver, spread), group in table.groupby(["solver", "spread"], sort=False):
        colour = PALETTE[shades[spread]]
        style, marker = ("-", "o") if solver == "euler" else ("--", "x")
        axis.plot(group["steps"], group["exact"], color=colour, linestyle=style, label=f"{solver}, s = {spread:g}")
        axis.plot(group["steps"], group["measured"], color=colour, marker=marker, markersize=3.5, linestyle="none")
    axis.axhline(1, color="0.5", linewidth=0.6)
    axis.set(xscale="log", xlabel="equal steps on [0, 1]", ylabel="kept of the standard deviation", ylim=(0, None))
    ticks = sorted(table["steps"].unique())
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()
    axis.legend(frameon=False)
    return figure


def fig_shift_paths(paths: Mapping[str, ShiftPath]) -> Figure:
    """CDTSDE's mean path between a source and a target for several mixing fields, Λ itself, and what the network sees.

    Circles of radius σ_t stand about the mean, at a few times.

    Args:
        paths: of `medshift.worlds.measures.shift_path`, all between one pair of points.
    """
    figure, axes = plt.subplots(1, 3, figsize=(7, 2.8))
    colours = [PALETTE[name] for name in ("grey", "vermilion", "blue")]
    for (name, path), colour in zip(paths.items(), colours, strict=False):
        axes[0].plot(*path.shifted.T, color=colour, label=name)
        axes[0].scatter(*path.shifted[::20].T, s=7, color=colour)
        for k, style in enumerate(("-", "--")):
            axes[1].plot(path.t, path.mixing[:, k], color=colour, linestyle=style)
        axes[2].plot(*path.mean.T, color=colour)
        for centre, radius in zip(path.mean[::30], path.noise[::30], strict=True):
            axes[2].add_patch(plt.Circle((centre[0], centre[1]), radius, fill=False, color=colour, linewidth=0.4))
    first = next(iter(paths.values()))
    ends = (("target", first.shifted[0], (4, -10)), ("source", first.shifted[-1], (-26, 5)))
    for axis in (axes[0], axes[2]):
        for name, place, shift in ends:
            axis.plot(*place, marker="*", markersize=8, color="black", linestyle="none")
            axis.annotate(name, place, xytext=shift, textcoords="offset points", fontsize=7)
        axis.margins(0.16, 0.3)
    last = first.mean[-1]
    axes[2].plot(*last, marker="o", markersize=4, color="black", markerfacecolor="white")
    axes[2].annotate("t = 1", last, xytext=(4, 5), textcoords="offset points", fontsize=7)
    axes[0].set(title="Λy + (1-Λ)$x_0$", xlabel="pixel 1", ylabel="pixel 2", aspect="equal")
    axes[1].set(title="Λ: pixel 1 (—), 2 (- -)", xlabel="t: 0 target, 1 source", ylabel="mixing Λ")
    axes[2].set(title="mean of $x_t$, circles of radius $σ_t$", xlabel="pixel 1", ylabel="pixel 2", aspect="equal")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure
