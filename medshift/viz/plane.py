"""A square of the plane, and what is put on it: densities, dots, arrows."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from medshift.viz.theme import PALETTE
from medshift.worlds.measures import Lattice

__all__ = ["arrows", "dots", "plane", "shade", "sided"]

LIMIT = 3.2


def plane(axis: Axes, *, left: bool = True, limit: float = LIMIT) -> None:
    """A square of the plane with sparse ticks; the second coordinate is named in the leftmost panel alone."""
    axis.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", xticks=[-2, 0, 2], yticks=[-2, 0, 2])
    axis.set(xlabel="coordinate 1", ylabel="coordinate 2" if left else "")


def shade(axis: Axes, law: Lattice, *, lines: bool = False) -> None:
    """A density in greys, or its contour lines, from 3 % of its maximum."""
    levels = np.array([0.03, 0.1, 0.25, 0.5, 0.8, 1.01]) * law.values.max()
    if lines:
        axis.contour(law.axis, law.axis, law.values, levels=levels[:-1], colors="0.25", linewidths=0.5)
    else:
        axis.contourf(law.axis, law.axis, law.values, levels=levels, cmap="Greys", alpha=0.45)


def dots(axis: Axes, points: ArrayLike, colour: str = PALETTE["blue"], size: float = 2.5) -> None:
    """Points (N, 2) as dots."""
    x, y = np.asarray(points).T
    axis.scatter(x, y, s=size, color=colour, linewidths=0, rasterized=True)


def sided(axis: Axes, points: ArrayLike, start: ArrayLike | None) -> None:
    """Points (N, 2) as dots in two colours, by the half of the plane in which they started."""
    place = np.asarray(points)
    left = np.ones(len(place), bool) if start is None else np.asarray(start)[:, 0] < 0
    dots(axis, place[left], PALETTE["blue"])
    dots(axis, place[~left], PALETTE["orange"])


def arrows(axis: Axes, points: ArrayLike, velocities: ArrayLike, colour: str = PALETTE["blue"]) -> None:
    """Velocities (G, 2) at points (G, 2), at a sixth of their length."""
    (x, y), (u, v) = np.asarray(points).T, np.asarray(velocities).T
    axis.quiver(x, y, u, v, color=colour, angles="xy", scale_units="xy", scale=6, width=0.006)
