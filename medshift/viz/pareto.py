"""Methods of a comparison between realism, structure and truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from medshift.viz.evidence import MARKERS
from medshift.viz.labels import label_points, plain_log
from medshift.viz.theme import PALETTE, heading

SHADES = ("grey", "black", "blue", "orange", "vermilion", "green", "purple")
WIDTH = 7.0  # inches, two columns of a paper
KEY_COLUMNS = 3
LINE = 0.135  # inches of a line of the key

Span = tuple[float, float] | None


@dataclass(frozen=True)
class Dot:
    """A method in the plane: its name, its group, x and y with intervals or none; hollow where it is not ranked."""

    name: str
    group: str
    x: float
    y: float
    x_span: Span = None
    y_span: Span = None
    hollow: bool = False


@dataclass(frozen=True)
class Plane:
    """One panel: dots, a curve through some taus, and what the axes are."""

    dots: Sequence[Dot]
    curve: Sequence[tuple[float, float, float]]  # tau, x, y
    xlabel: str
    ylabel: str
    log_x: bool = False


def fig_pareto(planes: Sequence[Plane], *, curve: str, title: str, footer: str, hollow: str = "not ranked") -> Figure:
    """Planes above each other; dots are numbered, and the list of numbers stands below.

    Args:
        planes: with the same methods in the same order.
        curve: name of the line.
        title: what is compared.
        footer: n and the data.
        hollow: what a hollow marker says.
    """
    dots = planes[0].dots
    lines = -(-len(dots) // KEY_COLUMNS)
    heights = [3.2] * len(planes) + [LINE * lines]
    figure, axes = plt.subplots(len(heights), 1, figsize=(WIDTH, sum(heights) + 0.9), height_ratios=heights)
    groups = list(dict.fromkeys(dot.group for dot in dots))
    styles = {g: (PALETTE[SHADES[k % len(SHADES)]], MARKERS[k % len(MARKERS)]) for k, g in enumerate(groups)}
    for axis, plane in zip(axes[:-1], planes, strict=True):
        _plane(axis, plane, styles)
    _key(axes[-1], dots, styles, lines)
    handles = [Line2D([], [], linestyle="", marker=marker, color=shade) for shade, marker in styles.values()]
    names = [*styles]
    if any(dot.hollow for dot in dots):
        handles.append(Line2D([], [], linestyle="", marker="o", color="0.3", markerfacecolor="none"))
        names.append(f"hollow: {hollow}")
    handles.append(Line2D([], [], color="0.6"))
    figure.legend(handles, [*names, curve], loc="outside lower center", ncols=4)
    figure.suptitle(heading(title, footer, WIDTH), fontsize=7)
    for axis, plane in zip(axes[:-1], planes, strict=True):
        _labels(axis, plane)
    return figure


def _plane(axis: Axes, plane: Plane, styles: Mapping[str, tuple[str, str]]) -> None:
    if plane.curve:
        axis.plot([x for _, x, _ in plane.curve], [y for _, _, y in plane.curve], "-", color="0.6", zorder=1)
    for dot in plane.dots:
        shade, marker = styles[dot.group]
        if dot.x_span is not None:
            axis.plot(dot.x_span, [dot.y, dot.y], "-", color=shade, linewidth=0.5, alpha=0.7, zorder=0)
        if dot.y_span is not None:
            axis.plot([dot.x, dot.x], dot.y_span, "-", color=shade, linewidth=0.5, alpha=0.7, zorder=0)
        fill = "white" if dot.hollow else shade
        axis.plot(dot.x, dot.y, marker, color=shade, markersize=4.5, markerfacecolor=fill)
    if plane.log_x:
        axis.set_xscale("log")
        plain_log(axis.xaxis)
    axis.set(xlabel=plane.xlabel, ylabel=plane.ylabel)
    axis.margins(x=0.06, y=0.08)


def _labels(axis: Axes, plane: Plane) -> None:
    """Numbers of dots, one label where several coincide, and every other tau of the curve in grey."""
    numbers: dict[tuple[float, float], list[str]] = {}
    for number, dot in enumerate(plane.dots, start=1):
        numbers.setdefault((dot.x, dot.y), []).append(str(number))
    taus = plane.curve[::2]
    label_points(
        axis,
        [*numbers, *((x, y) for _, x, y in taus)],
        [*(", ".join(n) for n in numbers.values()), *(f"τ {tau:g}" for tau, _, _ in taus)],
        ["black"] * len(numbers) + ["0.45"] * len(taus),
    )


def _key(axis: Axes, dots: Sequence[Dot], styles: Mapping[str, tuple[str, str]], lines: int) -> None:
    axis.axis("off")
    axis.set(xlim=(0, KEY_COLUMNS), ylim=(lines, 0))
    for k, dot in enumerate(dots):
        column, line = divmod(k, lines)
        shade, marker = styles[dot.group]
        fill = "white" if dot.hollow else shade
        axis.plot(column + 0.02, line + 0.5, marker, color=shade, markersize=4, markerfacecolor=fill, clip_on=False)
        axis.text(column + 0.05, line + 0.5, f"{k + 1}  {dot.name}", fontsize=7, va="center")
