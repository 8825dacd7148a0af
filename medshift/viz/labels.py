"""Labels beside crowded points, none over another, each led back to its point; and plain numbers on a log axis."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

RADII = np.arange(6.0, 121.0, 3.0)  # points from a marker to the middle of its label
# Slanting ones alone: the lines of an interval leave a point along the axes.
ANGLES = np.deg2rad([45, 135, 315, 225, 25, 65, 115, 155, 205, 245, 295, 335])
MARKER = 3.5  # points from the middle of a marker to its edge
FREE = 9.0  # points; a label further away than this has a leader


def spread(
    points: np.ndarray, sizes: np.ndarray, bounds: tuple[float, float], obstacles: np.ndarray | None = None
) -> np.ndarray:
    """Middles (N,2) of boxes near their points, so that no box lies on another, on a point or out of bounds.

    The most crowded point is served first, each at the nearest place that is free; where none is free, at the nearest
    one within bounds. All lengths are in one unit.

    Args:
        points: (N,2), each of which wants a box.
        sizes: width and height (N,2) of the boxes.
        bounds: width and height of the field, which begins at 0.
        obstacles: further points (M,2) that no box may cover.
    """
    held = points if obstacles is None else np.concatenate([points, obstacles])
    crowd = [(np.hypot(*(points - p).T) < 30).sum() for p in points]
    middles = np.full_like(points, np.nan)
    for i in sorted(range(len(points)), key=lambda k: (-crowd[k], k)):
        half = sizes[i] / 2
        tried = np.array([points[i] + r * np.array([np.cos(a), np.sin(a)]) for r in RADII for a in ANGLES])
        inside = ((tried >= half) & (tried <= np.asarray(bounds) - half)).all(axis=1)
        placed = ~np.isnan(middles[:, 0])
        clear = ~_meets(tried, half, middles[placed], sizes[placed] / 2)
        clear &= ~_meets(tried, half, held, np.full((len(held), 2), MARKER))
        for wanted in (inside & clear, inside, np.ones_like(inside)):
            if wanted.any():
                middles[i] = tried[int(wanted.argmax())]
                break
    return middles


def _meets(middles: np.ndarray, half: np.ndarray, others: np.ndarray, halves: np.ndarray) -> np.ndarray:
    """Whether a box around each of some middles (K,2) meets any of other boxes (M,2)."""
    if not len(others):
        return np.zeros(len(middles), dtype=bool)
    apart = np.abs(middles[:, None] - others[None])
    return (apart < half + halves[None]).all(axis=2).any(axis=1)


def label_points(
    axis: Axes,
    points: Sequence[tuple[float, float]],
    texts: Sequence[str],
    colours: Sequence[str],
    *,
    fontsize: float = 7.0,
) -> None:
    """Write a text beside each point (x, y) of an axis, none over another, with a leader where it stands far off.

    Call it when the figure has its final size and limits: texts are placed in points of the page.
    """
    figure = axis.get_figure(root=True)
    assert figure is not None
    axis.set(xlim=axis.get_xlim(), ylim=axis.get_ylim())
    figure.draw_without_rendering()
    scale = 72.0 / figure.dpi
    corner, far = np.asarray(axis.bbox.min) * scale, np.asarray(axis.bbox.max) * scale
    placed = axis.transData.transform(np.asarray(points, dtype=float)) * scale - corner
    sizes = np.array([_size(axis, text, fontsize) for text in texts]) * scale
    width, height = far - corner
    middles = spread(placed, sizes, (float(width), float(height)))
    for point, text, colour, offset in zip(points, texts, colours, middles - placed, strict=True):
        leader = {"arrowstyle": "-", "linewidth": 0.4, "color": "0.6", "shrinkA": 0.0, "shrinkB": 1.5}
        written = axis.annotate(
            text,
            point,
            xytext=(float(offset[0]), float(offset[1])),
            textcoords="offset points",
            fontsize=fontsize,
            color=colour,
            ha="center",
            va="center",
            path_effects=[withStroke(linewidth=1.0, foreground="white")],
            arrowprops=leader if np.hypot(*offset) > FREE else None,
        )
        written.set_in_layout(False)


def _size(axis: Axes, text: str, fontsize: float) -> tuple[float, float]:
    """Width and height of a text [pixels]."""
    written = axis.text(0.5, 0.5, text, fontsize=fontsize, transform=axis.transAxes)
    box = written.get_window_extent()
    written.remove()
    return box.width + 1.0, box.height


def plain_log(axis: Axis) -> None:
    """Ticks of a logarithmic axis as plain numbers: 1, 2 and 5 of each decade, or the decades where these are many."""
    low, high = axis.get_view_interval()
    many = np.log10(high / low) > 2.2
    axis.set_major_locator(LogLocator(subs=(1.0,) if many else (1.0, 2.0, 5.0)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())
