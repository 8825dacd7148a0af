"""Methods of a comparison: what each makes of a view, how each learnt, and samples of some."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator
from torch import Tensor

from medshift.viz.labels import plain_log
from medshift.viz.theme import PALETTE, WINDOW, heading

PAGE = 7.0  # inches, two columns of a paper: no figure is wider
FONT = 7.0  # points, the least
GLYPH = 4.1  # points, the width of a letter at 7 points
ERROR = 0.6  # display units of an error drawn in full colour
UNIT = "display units, of which the window holds 2"
DECADE = 10.0  # curves that differ by more than this factor get a logarithmic axis


def _filled(text: str, inches: float) -> str:
    return textwrap.fill(text, max(8, int(72 * inches / GLYPH)))


def _image(axis: Axes, image: Tensor) -> None:
    axis.imshow(image.squeeze().numpy(), vmin=WINDOW[0], vmax=WINDOW[1], cmap="gray")


def _bare(axes: np.ndarray) -> None:
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)


def fig_methods(
    source: Tensor,
    truth: Tensor,
    outputs: Mapping[str, Tensor],
    *,
    title: str,
    footer: str,
    columns: int = 7,
    groups: Mapping[str, str] | None = None,
) -> Figure:
    """What every method makes of one view, and below each image its error to the truth.

    Args:
        source: the image (1,H,W) that is translated.
        truth: what it should become, free of noise.
        outputs: name of a method -> its image.
        title: the pair.
        footer: the data.
        columns: images in a row.
        groups: name of a method -> its group; each begins a row of its own, under a line with its name.
    """
    blocks: dict[str, dict[str, Tensor]] = {"": {"source": source, "truth": truth}}
    for name, image in outputs.items():
        blocks.setdefault((groups or {}).get(name, ""), {})[name] = image
    if groups:  # source and truth stand before the first group, not alone
        first = next(name for name in blocks if name)
        blocks[first] = blocks.pop("") | blocks[first]
        blocks = {first: blocks.pop(first)} | blocks
    side = PAGE / columns
    lines = {name: -(-len(block) // columns) for name, block in blocks.items()}
    heights = [(1.85 * side + 0.3) * n + (0.22 if name else 0.0) for name, n in lines.items()]
    figure = plt.figure(figsize=(PAGE, sum(heights) + 1.05))
    parts = figure.subfigures(len(blocks) + 1, 1, height_ratios=[*heights, 0.5], squeeze=False)[:, 0]
    shown = None
    for part, (name, block) in zip(parts, blocks.items(), strict=False):
        shown = _methods(part, block, truth, lines[name], columns) or shown
        if name:
            part.suptitle(name, x=0.01, ha="left", fontsize=FONT + 1, fontweight="bold")
            part.add_artist(Line2D([0, 1], [1, 1], transform=part.transSubfigure, color="0.5", linewidth=0.8))
    if shown is not None:
        scale = parts[-1].subplots(1, 3, width_ratios=[1, 2, 1])
        for axis in scale[::2]:
            axis.set_visible(False)
        bar = figure.colorbar(shown, cax=scale[1], orientation="horizontal")
        bar.set_label(f"image minus truth [{UNIT}]", fontsize=FONT)
        bar.ax.tick_params(labelsize=FONT)
    note = f"{footer}; images in the window [{WINDOW[0]:g},\u00a0{WINDOW[1]:g}], below each its error"
    figure.suptitle(heading(title, note, PAGE), fontsize=FONT)
    return figure


def _methods(part: SubFigure, block: Mapping[str, Tensor], truth: Tensor, lines: int, columns: int) -> AxesImage | None:
    axes = part.subplots(2 * lines, columns, squeeze=False)
    _bare(axes)
    shown = None
    for place, (name, image) in enumerate(block.items()):
        line, column = divmod(place, columns)
        above, below = axes[2 * line, column], axes[2 * line + 1, column]
        _image(above, image)
        above.set_title(_filled(name, PAGE / columns), fontsize=FONT, pad=2)
        if name != "truth":
            error = (image - truth).squeeze().numpy()
            shown = below.imshow(error, vmin=-ERROR, vmax=ERROR, cmap="PuOr")
    return shown


def fig_samples(
    references: Mapping[str, Sequence[Tensor]], samples: Mapping[str, Sequence[Tensor]], *, title: str, footer: str
) -> Figure:
    """A few views of some methods, two methods in a row, the references above them.

    Args:
        references: name -> the same views (1,H,W); two of them.
        samples: name of a method -> its translations of these views.
        title: what is shown.
        footer: n and the data.
    """
    shown = {**references, **samples}
    n = len(next(iter(shown.values())))
    lines, side = -(-len(shown) // 2), PAGE / (2 * n + 0.5)
    size, widths = (PAGE, lines * (0.88 * side + 0.15) + 0.45), [1.0] * n + [0.3] + [1.0] * n
    figure, axes = plt.subplots(lines, 2 * n + 1, figsize=size, squeeze=False, width_ratios=widths)
    figure.set_layout_engine("constrained", h_pad=0.075, hspace=0.0)  # room for the line of text above each row
    _bare(axes)
    for place, (name, images) in enumerate(shown.items()):
        line, half = divmod(place, 2)
        own = axes[line, half * (n + 1) :][:n]
        for axis, image in zip(own, images, strict=True):
            _image(axis, image)
        # No title: one that is wider than its image would widen the image's column.
        weight = "bold" if name in references else "normal"
        text = own[0].annotate(
            name, (0, 1), xycoords="axes fraction", xytext=(0, 2), textcoords="offset points", fontsize=FONT,
            fontweight=weight, va="bottom",
        )  # fmt: skip
        text.set_in_layout(False)
    note = f"{footer}; window [{WINDOW[0]:g},\u00a0{WINDOW[1]:g}]"
    figure.suptitle(heading(title, note, PAGE), fontsize=FONT)
    return figure


def fig_watched(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float], bool]],
    *,
    title: str,
    footer: str,
    ylabel: str = "mean absolute error to the truth",
    further: Mapping[str, Sequence[tuple[Sequence[float], Sequence[float]]]] | None = None,
) -> Figure:
    """Error on validation views against images seen, one small panel a training.

    Args:
        curves: name -> images seen, error, whether it has converged.
        title: what was trained.
        footer: the data and the rule.
        ylabel: what the error is.
        further: name -> images seen and error under each further seed, drawn thinner.
    """
    columns = min(4, len(curves))
    rows = -(-len(curves) // columns)
    size = (PAGE * max(columns, 2) / 4, 1.35 * rows + 0.7)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
    for axis in axes.flat[len(curves) :]:
        axis.set_visible(False)
    for axis, (name, (x, y, converged)) in zip(axes.flat, curves.items(), strict=False):
        thousands = np.asarray(x) / 1000
        shade = PALETTE["blue"] if converged else PALETTE["vermilion"]
        axis.plot(thousands, y, "-", color=shade, linewidth=1.0)
        others = (further or {}).get(name, ())
        for u, v in others:
            axis.plot(np.asarray(u) / 1000, v, "-", color=shade, linewidth=0.5)
        axis.axvspan(0.8 * thousands.max(), thousands.max(), color="0.92", zorder=0)
        axis.set_title(_filled(name, size[0] / columns), fontsize=FONT)
        axis.set(xlim=(0, 1.03 * thousands.max()), ylim=(0, 1.08 * max(max(v) for v in (y, *(v for _, v in others)))))
        _few_ticks(axis)
    figure.supxlabel("images seen [thousands]", fontsize=FONT)
    figure.supylabel(ylabel, fontsize=FONT)
    figure.suptitle(heading(title, footer, size[0]), fontsize=FONT)
    return figure


def _few_ticks(axis: Axes) -> None:
    axis.tick_params(labelsize=FONT)
    axis.xaxis.set_major_locator(MaxNLocator(3))


def fig_losses(courses: Mapping[str, Mapping[str, Sequence[Sequence[float]]]], *, title: str, footer: str) -> Figure:
    """Every loss of some trainings against images seen, one panel a training, its legend beside it.

    A panel whose losses differ by more than a decade has a logarithmic axis, linear around zero where some are
    negative; the others begin at zero.

    Args:
        courses: training -> loss -> points (images seen, value).
        title: what is shown.
        footer: the data.
    """
    rows = -(-len(courses) // 2)
    figure, axes = plt.subplots(rows, 2, figsize=(PAGE, 1.45 * rows + 0.7), squeeze=False)
    for axis in axes.flat[len(courses) :]:
        axis.set_visible(False)
    for axis, (name, losses) in zip(axes.flat, courses.items(), strict=False):
        for loss, points in losses.items():
            axis.plot([x / 1000 for x, _ in points], [y for _, y in points], "-", linewidth=0.9, label=loss)
        _scaled(axis, np.array([y for points in losses.values() for _, y in points]))
        axis.set_title(name, fontsize=FONT)
        _few_ticks(axis)
        axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=FONT, frameon=False, handlelength=1.2)
    figure.supxlabel("images seen [thousands]", fontsize=FONT)
    figure.supylabel("loss", fontsize=FONT)
    figure.suptitle(heading(title, footer, PAGE), fontsize=FONT)
    return figure


def _scaled(axis: Axes, values: np.ndarray) -> None:
    """A linear axis from zero, or a logarithmic one where values differ by more than a decade."""
    sizes = np.abs(values[values != 0])
    if not len(sizes) or sizes.max() <= DECADE * np.quantile(sizes, 0.02):
        axis.set_ylim(bottom=min(0.0, float(values.min())))
    elif values.min() > 0:
        axis.set_yscale("log")
        plain_log(axis.yaxis)
    else:
        small = float(10.0 ** np.floor(np.log10(np.quantile(sizes, 0.05))))
        axis.set_yscale("symlog", linthresh=small)
        # Where it is linear, labels of its ends would lie on that of zero.
        far = 10.0 ** np.floor(np.log10(sizes.max()))
        axis.yaxis.set_major_locator(FixedLocator([-far, 0.0, far]))
    if values.min() < 0:
        axis.axhline(0.0, color="0.7", linewidth=0.6, zorder=0)
