"""Failure signatures beside what they should have been, and where edges were invented or lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from medshift.metrics.edges import INVENTED, KEPT, LOST, EdgeMap
from medshift.viz.theme import PALETTE, WINDOW, heading

COLOURS = {KEPT: "0.65", INVENTED: PALETTE["vermilion"], LOST: PALETTE["sky"]}
NAMES = {KEPT: "edge kept", INVENTED: "edge invented", LOST: "edge lost"}


@dataclass(frozen=True)
class Failure:
    """One row: its name, images (1,H,W) and the edge map of this output against the truth (of one image)."""

    name: str
    source: Tensor
    output: Tensor
    truth: Tensor
    edges: EdgeMap
    note: str = ""


def fig_failures(rows: Sequence[Failure], *, title: str, footer: str) -> Figure:
    """Source, output, truth, difference and edges of every row, in one grey window."""
    figure, axes = plt.subplots(len(rows), 5, figsize=(6.6, 1.22 * len(rows) + 0.6), squeeze=False)
    columns = ("source", "output", "truth, noise-free", "output − truth", "edges")
    for line, row in zip(axes, rows, strict=True):
        images = [row.source, row.output, row.truth]
        for axis, image in zip(line, images, strict=False):
            axis.imshow(image.squeeze().numpy(), vmin=WINDOW[0], vmax=WINDOW[1], cmap="gray")
        difference = (row.output - row.truth).squeeze().numpy()
        line[3].imshow(difference, vmin=-0.6, vmax=0.6, cmap="PuOr")
        line[4].imshow(painted(row.edges.labels[0]))
        for axis in line:
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        line[0].set_ylabel(row.name, fontsize=6.5)
        line[4].set_xlabel(row.note, fontsize=6)
    for axis, name in zip(axes[0], columns, strict=True):
        axis.set_title(name, fontsize=7)
    handles = [Line2D([], [], color=shade, lw=3, label=NAMES[label]) for label, shade in COLOURS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    figure.suptitle(f"{title}\n{footer}; window [{WINDOW[0]:g}, {WINDOW[1]:g}], difference ± 0.6", fontsize=7)
    return figure


@dataclass(frozen=True)
class ObjectRow:
    """One row of `fig_objects`: its name, images in the grey window and what the object adds to each, all (1,H,W)."""

    name: str
    images: Sequence[Tensor]
    added: Sequence[Tensor]


def fig_objects(rows: Sequence[ObjectRow], titles: Sequence[str], *, footer: str) -> Figure:
    """Images in one grey window, and what an object adds to them on a diverging scale, one for each row.

    Args:
        rows: from top to bottom.
        titles: of the columns, images first.
        footer: n and the data.
    """
    columns = len(titles)
    figure, axes = plt.subplots(len(rows), columns, figsize=(6.6, 1.22 * len(rows) + 0.7), squeeze=False)
    for line, row in zip(axes, rows, strict=True):
        for axis, image in zip(line, row.images, strict=False):
            axis.imshow(image.squeeze().numpy(), vmin=WINDOW[0], vmax=WINDOW[1], cmap="gray")
        limit = max(float(x.abs().max()) for x in (row.added[0], row.added[-1])) or 1.0  # that of noise-free images
        for axis, change in zip(line[len(row.images) :], row.added, strict=True):
            shown = axis.imshow(change.squeeze().numpy(), vmin=-limit, vmax=limit, cmap="PuOr")
        for axis in line:
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        line[0].set_ylabel(row.name, fontsize=6.5)
        figure.colorbar(shown, ax=line[-1], shrink=0.8).ax.tick_params(labelsize=6)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=7)
    heading_of = heading("Unseen objects", f"{footer}; window [{WINDOW[0]:g}, {WINDOW[1]:g}]", figure.get_figwidth())
    figure.suptitle(heading_of, fontsize=7)
    return figure


def painted(labels: Tensor) -> np.ndarray:
    """Edge labels (H,W) as colours (H,W,3) on white."""
    from matplotlib.colors import to_rgb

    picture = np.ones((*labels.shape, 3))
    for label, shade in COLOURS.items():
        picture[labels.numpy() == label] = to_rgb(shade)
    return picture
