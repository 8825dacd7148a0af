"""Methods of a comparison: where each lies between realism, structure and truth, what each makes, how each learnt."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from medshift.viz.evidence import MARKERS
from medshift.viz.theme import PALETTE, WINDOW, heading

SHADES = ("grey", "black", "blue", "orange", "vermilion", "green", "purple")


@dataclass(frozen=True)
class Dot:
    """A method in the plane: its name, its group, x and y with intervals or none."""

    name: str
    group: str
    x: float
    y: float
    y_low: float | None = None
    y_high: float | None = None
    hollow: bool = False


@dataclass(frozen=True)
class Plane:
    """One panel: dots, a curve through some taus, and what the axes are; ``better`` says where the good corner is."""

    dots: Sequence[Dot]
    curve: Sequence[tuple[float, float, float]]  # tau, x, y
    xlabel: str
    ylabel: str
    log_x: bool = False


def fig_pareto(planes: Sequence[Plane], *, curve: str, title: str, footer: str) -> Figure:
    """Planes side by side; dots are numbered, and the list of numbers stands to the right.

    Args:
        planes: with the same methods in the same order.
        curve: name of the line.
        title: what is compared.
        footer: n and the data.
    """
    figure, axes = plt.subplots(
        1,
        len(planes) + 1,
        figsize=(3.1 * len(planes) + 2.3, 4.6),
        width_ratios=[1.0] * len(planes) + [0.72],
        squeeze=False,
    )
    groups = list(dict.fromkeys(dot.group for dot in planes[0].dots))
    styles = {g: (PALETTE[SHADES[k % len(SHADES)]], MARKERS[k % len(MARKERS)]) for k, g in enumerate(groups)}
    for axis, plane in zip(axes[0], planes, strict=False):
        _plane(axis, plane, styles, curve)
    _key(axes[0, -1], planes[0].dots, styles)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    figure.suptitle(heading(title, footer, figure.get_figwidth()), fontsize=7)
    return figure


def _plane(axis: Axes, plane: Plane, styles: Mapping[str, tuple[str, str]], curve: str) -> None:
    if plane.curve:
        axis.plot(
            [x for _, x, _ in plane.curve], [y for _, _, y in plane.curve], "-", color="0.6", zorder=1, label=curve
        )
        for tau, x, y in plane.curve[::2]:
            axis.annotate(f"{tau:g}", (x, y), xytext=(2, -6), textcoords="offset points", fontsize=4.5, color="0.45")
    seen: set[str] = set()
    for number, dot in enumerate(plane.dots, start=1):
        shade, marker = styles[dot.group]
        label = dot.group if dot.group not in seen else None
        seen.add(dot.group)
        axis.plot(
            dot.x,
            dot.y,
            marker,
            color=shade,
            markersize=4,
            markerfacecolor="none" if dot.hollow else shade,
            label=label,
        )
        if dot.y_low is not None and dot.y_high is not None:
            axis.plot([dot.x, dot.x], [dot.y_low, dot.y_high], "-", color=shade, linewidth=0.5, zorder=0)
        axis.annotate(str(number), (dot.x, dot.y), xytext=(2.5, 2), textcoords="offset points", fontsize=5, color=shade)
    if plane.log_x:
        axis.set_xscale("log")
    axis.set(xlabel=plane.xlabel, ylabel=plane.ylabel)


def _key(axis: Axes, dots: Sequence[Dot], styles: Mapping[str, tuple[str, str]]) -> None:
    axis.axis("off")
    for number, dot in enumerate(dots, start=1):
        y = 1.0 - (number - 0.5) / len(dots)
        text = f"{number}  {dot.name}" + (" *" if dot.hollow else "")
        axis.text(0.0, y, text, fontsize=5.2, color=styles[dot.group][0], transform=axis.transAxes, va="center")
    if any(dot.hollow for dot in dots):
        axis.text(0.0, -0.03, "* hollow: not converged", fontsize=5.2, transform=axis.transAxes)


def fig_methods(
    source: Tensor, truth: Tensor, outputs: Mapping[str, Tensor], *, title: str, footer: str, columns: int = 10
) -> Figure:
    """What every method makes of one view, and below each image its error to the truth.

    Args:
        source: the image (1,H,W) that is translated.
        truth: what it should become, free of noise.
        outputs: name of a method -> its image.
        title: the pair.
        footer: the data.
        columns: images in a row.
    """
    shown = {"source": source, "truth": truth, **outputs}
    lines = -(-len(shown) // columns)
    size = (0.78 * columns, 2 * 0.86 * lines + 0.4)
    figure, axes = plt.subplots(2 * lines, columns, figsize=size, squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    for place, (name, image) in enumerate(shown.items()):
        line, column = divmod(place, columns)
        above, below = axes[2 * line, column], axes[2 * line + 1, column]
        above.imshow(image.squeeze().numpy(), vmin=WINDOW[0], vmax=WINDOW[1], cmap="gray")
        above.set_title(textwrap.fill(name, 19), fontsize=4.8, pad=2)
        if name != "truth":
            below.imshow((image - truth).squeeze().numpy(), vmin=-0.6, vmax=0.6, cmap="PuOr")
    note = f"{footer}; window [{WINDOW[0]:g}, {WINDOW[1]:g}], error to the truth ± 0.6 below each"
    figure.suptitle(heading(title, note, figure.get_figwidth()), fontsize=7)
    return figure


def fig_watched(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float], bool]], *, title: str, footer: str
) -> Figure:
    """Error on validation views against images seen, one small panel a training.

    Args:
        curves: name -> images seen, mean absolute error, whether it has converged.
        title: what was trained.
        footer: the data and the rule.
    """
    columns = min(5, len(curves))
    rows = -(-len(curves) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(1.5 * columns, 1.25 * rows + 0.5), squeeze=False, sharex=True)
    for axis in axes.flat[len(curves) :]:
        axis.set_visible(False)
    for axis, (name, (x, y, converged)) in zip(axes.flat, curves.items(), strict=False):
        shade = PALETTE["blue"] if converged else PALETTE["vermilion"]
        axis.plot(x, y, "-", color=shade, linewidth=1.0)
        axis.axvspan(0.8 * max(x), max(x), color="0.92", zorder=0)
        axis.set_title(name, fontsize=5.5)
        axis.tick_params(labelsize=5)
        axis.set_ylim(bottom=0)
    figure.supxlabel("images seen", fontsize=6)
    figure.supylabel("mean absolute error to the truth", fontsize=6)
    figure.suptitle(heading(title, footer, figure.get_figwidth()), fontsize=7)
    return figure


def fig_losses(courses: Mapping[str, Mapping[str, Sequence[Sequence[float]]]], *, title: str, footer: str) -> Figure:
    """Every loss of some trainings against images seen, one panel a training.

    Args:
        courses: training -> loss -> points (images seen, value).
        title: what is shown.
        footer: the data.
    """
    columns = min(4, len(courses))
    rows = -(-len(courses) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(1.9 * columns, 1.7 * rows + 0.5), squeeze=False)
    for axis in axes.flat[len(courses) :]:
        axis.set_visible(False)
    for axis, (name, losses) in zip(axes.flat, courses.items(), strict=False):
        for loss, points in losses.items():
            axis.plot([x for x, _ in points], [y for _, y in points], "-", linewidth=0.9, label=loss)
        axis.set_title(name, fontsize=5.5)
        axis.tick_params(labelsize=5)
        axis.legend(fontsize=4.5, frameon=False)
    figure.supxlabel("images seen", fontsize=6)
    figure.supylabel("loss", fontsize=6)
    figure.suptitle(heading(title, footer, figure.get_figwidth()), fontsize=7)
    return figure
